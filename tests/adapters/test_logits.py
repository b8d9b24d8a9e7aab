"""Any segmenter with logits [B, C, h, w]: the maps of the adapters that know the network, and formulas by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from support import fingerprint, random_picture
from torch import Tensor, nn

from detcam import Explainer
from detcam.adapters import LogitsAdapter
from detcam.errors import LayerError, ModelError


class Named(nn.Module):
    """A network that returns its logits in a dict, as torchvision's do."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 5, padding=2), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1))
        self.classify = nn.Conv2d(6, classes, 1)

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        return {"aux": pixels, "out": self.classify(self.body(pixels).relu())}


@pytest.fixture
def image() -> np.ndarray:
    return random_picture(3, 48, 64)


def network(seed: int, classes: int) -> nn.Module:
    torch.manual_seed(seed)
    return Named(classes).eval()


@pytest.mark.parametrize("layers", ["level", "auto"])
def test_equals_the_adapter_that_knows_the_network(seed: int, image: np.ndarray, layers: str) -> None:
    smp = pytest.importorskip("segmentation_models_pytorch")
    torch.manual_seed(seed)
    model = smp.Unet("mobilenet_v2", encoder_weights=None, decoder_channels=(16, 12, 8, 8, 8), classes=3).eval()
    options: Any = {"conf": 0.0, "imgsz": 64, "layers": layers}
    expected = Explainer(model, **options)(image)
    before = fingerprint(model)
    found = Explainer(model, adapter=LogitsAdapter(layers=["decoder"]), **options)(image)
    assert fingerprint(model) == before
    assert len(found) == len(expected) >= 2
    assert found.labels == expected.labels
    torch.testing.assert_close(found.scores, expected.scores)
    for ours, theirs in zip(found.maps, expected.maps, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))


def test_classes_with_a_sigmoid_each_overlap(seed: int, image: np.ndarray) -> None:
    """Mean and deviation by hand: a mask is where the model's own logit is positive."""
    model, mean, std = network(seed, 3), [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
    with torch.no_grad():
        model.classify.bias.copy_(torch.tensor([1.0, 0.2, -9.0]))
        pixels = torch.from_numpy((image / 255 - mean) / std).permute(2, 0, 1)[None].float()
        logits = model(pixels)["out"][0]
    adapter = LogitsAdapter(names=["whole", "part", "nothing"], multilabel=True, mean=mean, std=std, stride=16)
    explanation = Explainer(model, adapter=adapter, conf=0.0)(image)
    assert explanation.masks is not None
    assert set(explanation.labels) == {"whole", "part"}
    for label, mask, score in zip(explanation.labels, explanation.masks, explanation.scores, strict=True):
        row = logits[["whole", "part"].index(label)]
        assert torch.equal(mask, row > 0)
        torch.testing.assert_close(score, row.sigmoid()[row > 0].mean())


def test_one_channel_is_a_class_with_a_sigmoid(seed: int, image: np.ndarray) -> None:
    explanation = Explainer(network(seed, 1), adapter=LogitsAdapter(names=["road"], stride=16), conf=0.0)(image)
    with torch.no_grad():
        logits = network(seed, 1)(torch.from_numpy(image / 255).permute(2, 0, 1)[None].float())["out"][0]
    assert explanation.labels == ["road"] * bool((logits > 0).any())
    assert explanation.masks is not None
    assert torch.equal(explanation.masks, logits[: len(explanation)] > 0)


def test_what_is_not_described_is_said(seed: int, image: np.ndarray) -> None:
    with pytest.raises(LayerError, match=r"layers 'level': this LogitsAdapter names none: give"):
        Explainer(network(seed, 2), adapter=LogitsAdapter(), layers="level")
    flat = LogitsAdapter(logits=lambda output: output["out"].flatten(2))
    with pytest.raises(ModelError, match=r"LogitsAdapter: expected logits \[B, C, h, w\], got \[1, 2, 4096\]"):
        Explainer(network(seed, 2), adapter=flat)
