"""Attention of vision transformers: the patches that the class token attended to, computed by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from support import fingerprint, random_picture
from torch import Tensor, nn

from detcam import Explainer
from detcam.errors import MethodError

SIDE = 64


def timms(seed: int) -> nn.Module:
    timm = pytest.importorskip("timm")
    torch.manual_seed(seed)
    model = timm.create_model("vit_tiny_patch16_224", img_size=SIDE, depth=3, embed_dim=48, num_heads=3, num_classes=4)
    nn.init.normal_(model.head.weight)
    return model.eval()


def torchvisions(seed: int) -> nn.Module:
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(seed)
    sizes = {"image_size": 224, "patch_size": 56, "num_layers": 2, "num_heads": 2, "hidden_dim": 32, "mlp_dim": 64}
    model = torchvision.models.VisionTransformer(**sizes, num_classes=4)
    nn.init.normal_(model.heads.head.weight)
    return model.eval()


def transformers_model(seed: int) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(seed)
    config = transformers.ViTConfig(
        image_size=SIDE, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, num_labels=4
    )
    return transformers.ViTForImageClassification(config).eval()


def weights_by_hand(model: nn.Module, pixels: Tensor) -> list[np.ndarray]:
    """[tokens, tokens] attention of each layer, mean over heads, from the inputs of the layers' attention."""
    if hasattr(model, "config") and hasattr(model.config, "num_hidden_layers"):
        model.set_attn_implementation("eager")
        with torch.no_grad():
            return [a[0].mean(dim=0).numpy() for a in model(pixels, output_attentions=True).attentions]
    layers: Any = model.blocks if hasattr(model, "blocks") else model.encoder.layers
    inputs: list[Tensor] = []
    handles = [
        getattr(layer, "attn", getattr(layer, "self_attention", None)).register_forward_pre_hook(
            lambda module, args: inputs.append(args[0])
        )
        for layer in layers
    ]
    with torch.no_grad():
        model(pixels)
        found = []
        for layer, tokens in zip(layers, inputs, strict=True):
            part = getattr(layer, "attn", getattr(layer, "self_attention", None))
            timm = hasattr(part, "qkv")
            weight, bias = (part.qkv.weight, part.qkv.bias) if timm else (part.in_proj_weight, part.in_proj_bias)
            query, key, _ = (
                nn.functional.linear(tokens[0], weight, bias).unflatten(1, (3, part.num_heads, -1)).unbind(1)
            )
            scores = torch.einsum("qhd,khd->hqk", query, key) / query.shape[2] ** 0.5
            found.append(scores.softmax(dim=2).mean(dim=0).numpy())
    for handle in handles:
        handle.remove()
    return found


@pytest.fixture(params=[timms, torchvisions, transformers_model])
def model(request: pytest.FixtureRequest, seed: int) -> nn.Module:
    built: nn.Module = request.param(seed)
    return built


def test_rollout_and_attention_by_hand(model: nn.Module, seed: int) -> None:
    """Abnar & Zuidema 2020: the row of the class token in the product of (A + I) / 2."""
    picture = random_picture(seed, SIDE, SIDE)
    before = fingerprint(model)
    explainer = Explainer(model, "rollout")
    explanation = explainer(picture)
    last = Explainer(model, "attention")(picture)
    assert fingerprint(model) == before
    weights = weights_by_hand(model, explainer.adapter.prepare(picture)[0][None])
    flow = np.eye(len(weights[0]))
    for layer in weights:
        flow = (layer + np.eye(len(layer))) / 2 @ flow
    np.testing.assert_allclose(explanation.maps[0].flatten().numpy(), flow[0, 1:], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(last.maps[0].flatten().numpy(), weights[-1][0, 1:], rtol=1e-4, atol=1e-6)


def test_relevance_follows_the_class(seed: int) -> None:
    """Attention that has no gradient of the score counts for nothing: two targets have two maps."""
    model, picture = timms(seed), random_picture(seed, SIDE, SIDE)
    by_class, by_margin = (Explainer(model, "relevance", target=t)(picture).maps[0] for t in ("class", "margin"))
    assert by_class.shape == (4, 4)
    assert bool((by_class > 0).any())
    assert not torch.allclose(by_class, by_margin)


def test_classifiers_without_a_class_token_are_refused() -> None:
    torchvision = pytest.importorskip("torchvision")
    with pytest.raises(MethodError, match="ResNet has no class token that attends to patches: use a method that reads"):
        Explainer(torchvision.models.resnet18(), "rollout")
