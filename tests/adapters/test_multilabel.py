"""Segmenters whose classes have a sigmoid each: every class over its threshold is an object, and classes overlap."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from support import random_picture
from torch import Tensor, nn

from detcam import Explainer
from detcam.errors import ModelError


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return random_picture(0, 64, 96)


def smp_model(seed: int, activation: Any = "sigmoid") -> Any:
    smp = pytest.importorskip("segmentation_models_pytorch")
    torch.manual_seed(seed)
    model = smp.Unet(
        "resnet18", encoder_depth=3, decoder_channels=(8, 8, 8), encoder_weights=None, classes=4, activation=activation
    ).eval()
    with torch.no_grad():
        nn.init.normal_(model.segmentation_head[0].weight, 0, 0.3)
        model.segmentation_head[0].bias.copy_(torch.tensor([3.0, 0.0, -30.0, 0.5]))
    return model


def predicted(model: nn.Module, picture: np.ndarray) -> Tensor:
    with torch.no_grad():
        return model(torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255)[0]


@pytest.mark.parametrize("activation", ["sigmoid", nn.Sigmoid])
def test_objects_of_overlapping_classes(activation: Any, picture: np.ndarray, seed: int) -> None:
    model = smp_model(seed, activation)
    p = predicted(model, picture)
    expected = {c: p[c] > 0.5 for c in range(4) if bool((p[c] > 0.5).any())}
    assert 2 not in expected
    assert len(expected) == 3
    explainer = Explainer(model, conf=0.0, layers="level", method="odam")
    found = explainer(picture)
    assert sorted(found.class_ids.tolist()) == sorted(expected)
    areas = found.masks.sum(dim=(1, 2)).tolist()
    assert areas == sorted(areas, reverse=True)
    assert bool((found.masks.sum(dim=0) > 1).any()), "classes overlap"
    for number, mask, score in zip(found.class_ids.tolist(), found.masks, found.scores.tolist(), strict=True):
        assert torch.equal(mask, expected[number])
        assert score == pytest.approx(float(p[number][mask].mean()), abs=1e-5)
    assert len(explainer(picture).labels) == 3
    assert len(Explainer(model, conf=0.0, max_det=2, layers="level")(picture)) == 2
    assert "margin" not in explainer.adapter.available


def test_the_scalar_is_the_classs_own(picture: np.ndarray, seed: int) -> None:
    """Against autograd: the mean sigmoid over the mask, as the shares of cells weight it."""
    model = smp_model(seed)
    explainer = Explainer(model, method="odam", target="prob", conf=0.0, layers="level", max_det=1)
    found = explainer(picture)
    number, share = int(found.class_ids[0]), (found.objects.mask_logits[0] + 1) / 2
    pixels = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
    decoded = model.decoder(model.encoder(pixels)).detach().requires_grad_()
    p = model.segmentation_head[0](decoded)[0, number].sigmoid()
    (gradient,) = torch.autograd.grad((p * share).sum() / share.sum(), decoded)
    expected = (gradient * decoded)[0].sum(dim=0).detach()
    torch.testing.assert_close(found.maps[0].clamp(min=0), expected.clamp(min=0), rtol=1e-3, atol=1e-6)


def test_prompts_select_the_region_of_a_class(picture: np.ndarray, seed: int) -> None:
    model = smp_model(seed)
    p = predicted(model, picture)
    row, column = map(int, (p[1] > 0.5).nonzero()[0])
    found = Explainer(model, conf=0.0, layers="level")(picture, prompts=[((column, row), "class 1")])
    assert found.class_ids.tolist() == [1]
    assert bool(found.masks[0][row, column])
    assert bool((p[1][found.masks[0]] > 0.5).all())


def test_a_torchvision_segmenter_of_one_class(picture: np.ndarray, seed: int) -> None:
    from torchvision.models.segmentation import lraspp_mobilenet_v3_large

    torch.manual_seed(seed)
    model = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=1).eval()
    explainer = Explainer(model, conf=0.0, imgsz=64, layers="level")
    pixels, geometry = explainer.adapter.prepare(picture)
    with torch.no_grad():
        logits = model(pixels[None])["out"]
    p = nn.functional.interpolate(logits, geometry.source, mode="bilinear")[0, 0].sigmoid()
    found = explainer(picture)
    assert len(found) == int(bool((p > 0.5).any()))
    for mask in found.masks if len(found) else []:
        assert torch.equal(mask, p > 0.5)
    assert set(found.labels) <= {"foreground"}


class Unlike(nn.Module):
    """A head whose last convolution is not its output."""

    def __init__(self, change: Any) -> None:
        super().__init__()
        self.conv, self.change = nn.Conv2d(8, 4, 1), change

    def forward(self, x: Tensor) -> Any:
        return self.change(self.conv(x))


FACTORS = torch.tensor([1.0, -2.0, 1.0, 3.0]).view(1, 4, 1, 1)
HEADS: dict[str, Any] = {
    "scaled": lambda: Unlike(lambda x: x * FACTORS),
    "norm": lambda: nn.Sequential(nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4, affine=False).eval()),
    "convolution": lambda: nn.Conv2d(8, 4, 1),
    "transposed": lambda: nn.Sequential(nn.ConvTranspose2d(8, 4, 2, 2), nn.MaxPool2d(2)),
    "two": lambda: nn.Sequential(nn.Conv2d(8, 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 1)),
}


@pytest.mark.parametrize("head", HEADS)
def test_edited_heads_give_the_models_own_classes_and_gradient(head: str, picture: np.ndarray, seed: int) -> None:
    model = smp_model(seed, None)
    model.segmentation_head = HEADS[head]()
    p = predicted(model, picture)
    found = Explainer(model, conf=0.0, layers="level", method="odam")(picture)
    assert sorted(found.class_ids.tolist()) == p.argmax(0).unique().tolist()
    for number, mask in zip(found.class_ids.tolist(), found.masks, strict=True):
        assert torch.equal(mask, p.argmax(0) == number)
    number, share = int(found.class_ids[0]), (found.objects.mask_logits[0] + 1) / 2
    pixels = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
    decoded = model.decoder(model.encoder(pixels)).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(
        (model.segmentation_head(decoded)[0, number] * share).sum() / share.sum(), decoded
    )
    expected = (gradient * decoded)[0].sum(dim=0).detach().clamp(min=0)
    torch.testing.assert_close(found.maps[0].clamp(min=0), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("change", [torch.sigmoid, lambda x: x.softmax(dim=1), lambda x: {"out": x}])
def test_probabilities_without_a_module_and_dicts_are_refused(change: Any, picture: np.ndarray, seed: int) -> None:
    model = smp_model(seed, None)
    model.segmentation_head = Unlike(change)
    with pytest.raises(ModelError, match=r"puts out (probabilities of its logits|a dict, not logits \[B, C, H, W\])"):
        Explainer(model, layers="level", method="odam")(picture)


@pytest.mark.parametrize("activation", [nn.Hardsigmoid, lambda: nn.Sequential(nn.Sigmoid())])
def test_other_sigmoids(activation: Any, seed: int) -> None:
    assert Explainer(smp_model(seed, activation), layers="level").adapter.multilabel  # type: ignore[attr-defined]


def test_a_torchvision_segmenter_that_returns_its_logits(picture: np.ndarray, seed: int) -> None:
    from torchvision.models.segmentation import LRASPP, lraspp_mobilenet_v3_large

    class Plain(LRASPP):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(x)["out"] * -1

    torch.manual_seed(seed)
    model = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4).eval()
    model.__class__ = Plain
    explainer = Explainer(model, conf=0.0, imgsz=64, layers="level", method="odam")
    pixels, geometry = explainer.adapter.prepare(picture)
    with torch.no_grad():
        labels = nn.functional.interpolate(model(pixels[None]), geometry.source, mode="bilinear")[0].argmax(0)
    found = explainer(picture)
    assert sorted(found.class_ids.tolist()) == [c for c in labels.unique().tolist() if c]
    for number, mask in zip(found.class_ids.tolist(), found.masks, strict=True):
        assert torch.equal(mask, labels == number)
