"""Layers by name whose outputs are laid out in a way of their own: read by their true axes, by `reshape=`, or refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from support import few, few_rows, random_picture
from torch import Tensor, nn

from detcam import Explainer
from detcam.adapters import channels_last
from detcam.errors import LayerError

SIZE = (64, 96)


def timm_model(name: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = pytest.importorskip("timm").create_model(name, num_classes=5, **options)
    return model.eval().double()


def plain(explainer: Explainer, picture: np.ndarray, layer: str, place: Callable[[Tensor], Tensor]) -> Tensor:
    """Gradient times activation at a layer by plain autograd, its output [1, ...] made [1, C, h, w] by `place`."""
    outputs: list[Tensor] = []
    handle = explainer.adapter.module.get_submodule(layer).register_forward_hook(lambda m, a, out: outputs.append(out))
    pixels = explainer.prepare(picture).tensor[None].requires_grad_()
    logits = explainer.adapter.module(pixels)
    handle.remove()
    gradient = torch.autograd.grad(logits[0, logits.argmax()], outputs[0])[0]
    return place(gradient * outputs[0]).sum(dim=1)[0].detach()


def assert_equal_maps(ours: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(ours.double(), expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


ROWS: list[tuple[str, dict[str, Any], str]] = [
    ("vit_tiny_patch16_224", {"depth": 2, "img_size": SIZE}, "blocks.0.attn.q_norm"),  # [B, heads, L, C]
    ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1), "img_size": SIZE}, "layers.0.blocks.0.attn.softmax"),
    ("nest_tiny", {"img_size": 64}, "levels.0.transformer_encoder"),  # [B, 16, 16, C]
    ("hiera_tiny_224", {"stages": (1, 1, 1, 1), "img_size": SIZE}, "blocks.0"),
]


@pytest.mark.parametrize(("name", "options", "layer"), few_rows(ROWS, ROWS[0]))
def test_windows_attention_and_tokens_in_another_order_are_refused_by_name(
    name: str, options: dict[str, Any], layer: str
) -> None:
    side = options["img_size"]
    explainer = Explainer(timm_model(name, **options), "odam", layers=[layer], imgsz=side)
    picture = random_picture(0, *(side if isinstance(side, tuple) else (side, side)))
    with pytest.raises(LayerError, match=rf"layer '{layer}' .* not known to be a map \[B,C,h,w\]: .* or give reshape="):
        explainer(picture)


@pytest.mark.parametrize("method", few(["odam", "gradcam", "scorecam", "layerig"], "odam"))
def test_reshape_places_what_no_rule_knows(method: str) -> None:
    """The windows of a Swin's first block, 7 x 7 cells of 16 x 24, put together to the map that the block works on."""
    model = timm_model("swin_tiny_patch4_window7_224", depths=(1, 1, 1, 1), img_size=(56, 84))
    layer, picture = "layers.0.blocks.0.attn", random_picture(0, 56, 84)

    def reshape(windows: Tensor) -> Tensor:
        return windows.view(-1, 2, 3, 7, 7, windows.shape[-1]).permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)

    explainer = Explainer(model, method, layers=[layer], reshape=reshape)
    first, _ = explainer([picture, picture[:, ::-1].copy()])
    assert first.maps[0].shape == (14, 21)
    if method == "odam":
        assert_equal_maps(first.maps[0], plain(explainer, picture, layer, reshape))


@pytest.mark.parametrize("reshape", [lambda out: out, lambda out: out.view(1, 2, 3), lambda out: out.float()[None]])
def test_what_reshape_cannot_return(reshape: Callable[[Tensor], Tensor]) -> None:
    model = timm_model("vit_tiny_patch16_224", depth=2, img_size=SIZE)
    explainer = Explainer(model, "odam", layers=["blocks.0"], reshape=reshape)
    with pytest.raises(
        LayerError, match=r"reshape: made no map of layer 'blocks.0' \[1, 25, 192\]: return \[B,C,h,w\]"
    ):
        explainer(random_picture(0, *SIZE))


@pytest.mark.parametrize(
    ("module", "shape", "expected"),
    [
        (nn.ReLU(), (1, 24, 8, 12), False),
        (nn.ReLU(), (1, 8, 12, 24), True),
        (nn.ReLU(), (1, 3, 24, 64), None),
        (nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)), (1, 8, 5, 5), False),  # pooled to a fixed number
        (nn.Sequential(nn.Conv2d(3, 8, 1), nn.Linear(8, 8)), (1, 4, 6, 9), True),
        (nn.Sequential(nn.Linear(8, 8)), (1, 6, 16, 8), None),
        (nn.Softmax(), (1, 3, 24, 24), None),
        (nn.Identity(), (1, 3, 44, 66), None),  # between the strides 1 and 2
        (nn.Conv2d(3, 3, 5), (1, 3, 60, 92), False),
    ],
)
def test_the_axes_with_the_aspect_of_the_input(module: nn.Module, shape: tuple[int, ...], expected: Any) -> None:
    assert channels_last(SIZE, module, shape) is expected


def smp_unet(encoder: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = pytest.importorskip("segmentation_models_pytorch").create_model(
        "unet", encoder, encoder_weights=None, classes=4, **options
    )
    return model.eval().double()


@pytest.mark.nightly
def test_stages_of_an_encoder_with_a_fixed_size() -> None:
    """The stem is searched at the size that the encoder takes."""
    model = smp_unet("tu-swin_tiny_patch4_window7_224", img_size=SIZE)
    assert Explainer(model, "odam", layers="stem").plan.names == ("encoder.model.patch_embed.proj",)


@pytest.mark.nightly
def test_an_encoder_whose_first_map_is_empty_and_whose_blocks_put_out_tokens() -> None:
    """MiT: its first output has no channels; its blocks' norms put out [B, L, C]."""
    model, picture = smp_unet("mit_b0"), random_picture(0, *SIZE)
    with pytest.raises(LayerError, match=r"layer 'encoder\[0\]': the class score does not depend on it"):
        Explainer(model, "odam", layers=["encoder"], conf=0.0)(picture)
    explanation = Explainer(model, "odam", layers=["encoder.block1.0.norm1"], conf=0.0)(picture)
    assert explanation.maps[0].shape == (16, 24)
