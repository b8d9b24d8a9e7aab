"""Classifiers: the library's own logits, presets, CAM by formula, and targets by hand."""

from typing import Any

import numpy as np
import pytest
import torch
from classifier_models import MODELS, built, library_logits
from PIL import Image
from support import few, random_picture
from torch import Tensor, nn

from detcam import Explainer
from detcam.adapters import Adapter, adapter_for
from detcam.engine import shadow
from detcam.errors import InputError, ModelError, TargetError


def adapted(module: nn.Module, imgsz: int | None = None, **options: Any) -> Adapter:
    return adapter_for(module)(shadow(module), module, imgsz, **options)


@pytest.mark.parametrize("model", few(MODELS, "torchvision resnet18", "transformers ViT"))
def test_logits_are_those_of_the_library(model: str, seed: int) -> None:
    picture = random_picture(seed, 90, 140)
    module = built(model, seed)
    expected = library_logits(model, module, picture)
    explainer = Explainer(module, layers="level", imgsz=MODELS[model])
    adapter = explainer.adapter
    logits = adapter.forward(adapter.prepare(picture)[0][None], 1).logits[0].detach()
    torch.testing.assert_close(logits - logits.logsumexp(0), expected - expected.logsumexp(0), rtol=1e-4, atol=1e-4)
    last = explainer.plan.names
    assert len(last) == 1
    assert not set(last) & set(adapter.layers("evidence").names), "the stages before the last map"


EXPECTED = {
    "torchvision resnet18": ("layer4", ["layer1", "layer2", "layer3"]),
    "torchvision convnext_tiny": ("features", ["features.2.0", "features.4.0", "features.6.0"]),
    "torchvision vit_b_16": ("encoder.layers.encoder_layer_1", ["conv_proj"]),  # the last but one of three
    "transformers ViT": ("vit.layers.1", ["vit.embeddings.patch_embeddings.projection"]),
    "transformers Beit": ("beit.layers.2", ["beit.embeddings.patch_embeddings.projection"]),  # it averages the patches
    "ultralytics yolov8n-cls": ("model.9.conv", ["model.2", "model.4", "model.6"]),
}


@pytest.mark.parametrize("model", few(EXPECTED, "torchvision resnet18", "torchvision vit_b_16", "transformers ViT"))
def test_presets_name_the_last_map_and_the_ends_of_stages(model: str, seed: int) -> None:
    adapter = adapted(built(model, seed), MODELS[model])
    last, earlier = EXPECTED[model]
    assert adapter.layers("level").names == (last,)
    assert list(adapter.layers("evidence").names) == earlier


def test_gradcam_is_cam_where_pooling_and_a_linear_layer_follow(seed: int) -> None:
    """CAM (Zhou 2016): sum over channels of the linear layer's weight times the last map; Grad-CAM pools 1 / cells."""
    picture = random_picture(seed, 120, 90)
    module: Any = built("torchvision resnet18", seed)
    maps: dict[str, Tensor] = {}
    explainer = Explainer(module, method="gradcam", imgsz=96)
    explanation = explainer(picture)
    handle = module.layer4.register_forward_hook(lambda m, a, out: maps.update(last=out[0]))
    with torch.no_grad():
        logits = module(explainer.adapter.prepare(picture)[0][None])[0]
    handle.remove()
    cells = maps["last"].shape[1] * maps["last"].shape[2]
    by_hand = sum(w * channel for w, channel in zip(module.fc.weight[logits.argmax()], maps["last"], strict=True))
    torch.testing.assert_close(explanation.maps[0], by_hand.detach() / cells, rtol=1e-4, atol=1e-6)


def test_targets_are_logit_probability_and_margin(seed: int) -> None:
    picture = random_picture(seed, 80, 80)
    adapter = adapted(built("torchvision resnet18", seed), 64)
    pixels, geometry = adapter.prepare(picture)
    outputs = adapter.forward(pixels[None], 1)
    objects = adapter.detect(outputs, [geometry], 0.9999, 0.7, 1)
    logits = sorted(outputs.logits[0].tolist())
    value = {target: adapter.score(outputs, objects, target).item() for target in adapter.available}
    assert value["class"] == pytest.approx(logits[-1])
    assert value["margin"] == pytest.approx(logits[-1] - logits[-2], abs=1e-5)
    assert value["prob"] == pytest.approx(np.exp(logits[-1]) / np.exp(logits).sum(), rel=1e-4)
    with pytest.raises(TargetError):
        Explainer(built("torchvision resnet18", seed), target="box")


def test_the_weights_own_transforms_may_be_given(seed: int) -> None:
    from torchvision.models import EfficientNet_B0_Weights

    picture = random_picture(seed, 150, 120)
    transforms = EfficientNet_B0_Weights.IMAGENET1K_V1.transforms()
    adapter = adapted(built("torchvision resnet18", seed), processor=transforms)
    expected = transforms(Image.fromarray(picture))
    torch.testing.assert_close(adapter.prepare(picture)[0], expected)
    with pytest.raises(ModelError, match="processor"):
        adapted(built("torchvision resnet18", seed), processor=object())


def test_names_of_imagenet(seed: int) -> None:
    from torchvision.models import ResNet18_Weights, resnet18

    explanation = Explainer(resnet18().eval(), imgsz=64)(random_picture(seed, 70, 70))
    names = ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
    assert explanation.labels == [names[int(explanation.class_ids[0])]]
    assert (
        Explainer(built("torchvision resnet18", seed), imgsz=64)(random_picture(seed, 70, 70)).labels[0][:6] == "class "
    )


def test_a_head_of_zeros_still_has_its_layers_and_says_why_the_map_is_zero(seed: int) -> None:
    module: Any = built("torchvision vit_b_16", seed)
    nn.init.zeros_(module.heads.head.weight)
    explanation = Explainer(module, layers="level")(random_picture(seed, 70, 70))
    assert explanation.settings["layers"] == ["encoder.layers.encoder_layer_1"]
    assert explanation.notes[0] is not None
    assert not bool(explanation.heatmaps.any())


def swins() -> dict[str, Any]:
    """Name -> (a small random Swin, its stages' outputs by name, all [B, h, w, C])."""
    import timm
    import torchvision

    torch.manual_seed(0)
    small = {"num_classes": 5, "depths": (1, 1, 1, 1), "embed_dim": 24, "num_heads": (1, 2, 4, 8)}
    ours = timm.create_model("swin_tiny_patch4_window7_224", **small)
    theirs = torchvision.models.SwinTransformer([4, 4], 24, [1, 1, 1, 1], [1, 2, 4, 8], [7, 7], num_classes=5)
    square = timm.create_model("swin_tiny_patch4_window7_224", **{**small, "embed_dim": 56})  # [1, 56, 56, 56]
    return {"timm": (ours, "layers.3"), "torchvision": (theirs, "features.7"), "square": (square, "layers.0")}


@pytest.mark.parametrize("kind", ["timm", "torchvision", "square"])
def test_maps_with_the_channels_last(kind: str) -> None:
    """Gradient times activation, summed over the last axis, as plain autograd gives it."""
    model, stage = swins()[kind]
    model.eval()
    picture = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    for layers in ([stage], "level", [f"{stage}.0.norm1"] if kind == "torchvision" else [f"{stage}.blocks.0.norm1"]):
        explainer = Explainer(model, "odam", layers=layers)
        explanation = explainer(picture)
        name = explainer.plan.names[0] if layers != "level" or kind == "square" else stage
        outputs: list[torch.Tensor] = []
        handle = model.get_submodule(name).register_forward_hook(lambda m, args, out, to=outputs: to.append(out))
        logits = model(explainer.adapter.prepare(picture)[0][None])
        handle.remove()
        gradient = torch.autograd.grad(logits[0, explanation.class_ids[0]], outputs[0])[0]
        plain = (gradient * outputs[0]).sum(dim=-1)[0].detach()
        torch.testing.assert_close(explanation.maps[0], plain, rtol=1e-4, atol=1e-4 * float(plain.abs().max()))


@pytest.mark.parametrize("size", [(64, 32), (48, 48)])
def test_a_timm_model_of_another_size_than_its_pretrained_configuration(size: tuple[int, int]) -> None:
    import timm

    model = timm.create_model("vit_tiny_patch16_224", depth=1, num_classes=3, img_size=size).eval()
    picture = random_picture(0, 80, 90)
    explanation = Explainer(model, "odam")(picture)
    assert tuple(explanation.maps[0].shape) == (size[0] // 16, size[1] // 16)
    with pytest.raises(InputError, match=f"imgsz: 224, but the model takes {size[0]} x {size[1]} pixels"):
        Explainer(model, imgsz=224)
