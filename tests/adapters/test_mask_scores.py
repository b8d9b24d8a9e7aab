"""Scalars of masks: a ring by hand, and the two factors of a YOLO mask apart."""

from pathlib import Path

import pytest
import torch
from mask_query_models import random_segmenter
from support import few, random_picture, random_yolo
from torchvision_models import small

from detcam import Explainer
from detcam.adapters.shared.mask_scores import mask_weights, ring
from detcam.errors import TargetError


def test_a_ring_by_hand() -> None:
    """Around an 8 x 8 square two cells (a quarter of 8), cut at the border, and none of the square itself."""
    regions = torch.zeros(2, 20, 30, dtype=torch.bool)
    regions[0, 6:14, 10:18] = True
    regions[1, 0, 0] = True  # of one cell: at least one cell around it
    rings = ring(regions)
    expected = torch.zeros_like(regions)
    expected[0, 4:16, 8:20] = True
    expected[1, :2, :2] = True
    assert torch.equal(rings, expected & ~regions)


def test_weights_by_hand(seed: int) -> None:
    logits = torch.randn(1, 20, 30, generator=torch.Generator().manual_seed(seed))
    region = torch.zeros(1, 20, 30, dtype=torch.bool)
    region[0, 6:14, 10:18] = True
    around = ring(region)
    torch.testing.assert_close((logits * mask_weights(region, "mask")).sum(), logits[region].mean())
    margin = (logits * mask_weights(region, "mask-margin")).sum()
    torch.testing.assert_close(margin, logits[region].mean() - logits[around].mean())
    left = torch.zeros_like(region)
    left[..., :10] = True
    margin = (logits * mask_weights(region, "mask-margin", left)).sum()
    torch.testing.assert_close(margin, logits[region].mean() - logits[around & left].mean())
    everywhere = torch.ones_like(region)
    torch.testing.assert_close((logits * mask_weights(everywhere, "mask-margin")).sum(), logits.mean())


@pytest.mark.parametrize("layers", few([["model.9"], ["model.4"]], ["model.4"]), ids=str)
def test_the_two_factors_of_a_yolo_mask_add_up(layers: list[str], seed: int) -> None:
    """Maps of gradient times activation are linear in the gradient, and d(c . P) = dc . P + c . dP."""
    picture = random_picture(seed, 96, 128)
    model = random_yolo("yolov8n-seg.yaml", seed, picture, 128)
    raw = {
        target: Explainer(model, target=target, layers=layers, conf=0.0, max_det=4, imgsz=128)(picture).maps
        for target in ("mask", "mask-coefficients", "mask-prototypes", "mask-margin")
    }
    for whole, coefficients, prototypes, margin in zip(*raw.values(), strict=True):
        largest = float(max(coefficients.abs().max(), prototypes.abs().max()))
        assert largest > 0
        torch.testing.assert_close(coefficients + prototypes, whole, rtol=0, atol=1e-4 * largest)
        assert not torch.allclose(margin, whole, rtol=0, atol=1e-3 * largest)


@pytest.mark.parametrize("family", ["yolo", "rcnn", "queries"])
def test_every_family_with_masks_has_the_margin(family: str, seed: int, tmp_path: Path) -> None:
    picture = random_picture(seed, 96, 128)
    if family == "yolo":
        model, options = random_yolo("yolov8n-seg.yaml", seed, picture, 128), {"imgsz": 128, "conf": 0.0}
    elif family == "rcnn":
        model, options = small("mask", seed, picture), {"conf": 0.0}
    else:
        model, processor = random_segmenter("mask2former", seed, tmp_path)
        options = {"processor": processor, "conf": 0.0}
    explanation = Explainer(model, target="mask-margin", max_det=6, **options)(picture)
    assert len(explanation)
    assert all(bool(m.isfinite().all()) and bool(m.any()) for m in explanation.maps)
    plain = Explainer(model, target="mask", max_det=6, **options)(picture)
    differ = [not torch.equal(a, b) for a, b in zip(explanation.maps, plain.maps, strict=True)]
    assert explanation.objects.mask_logits is not None
    full = [bool((logits > 0).all()) for logits in explanation.objects.mask_logits]  # no ring is around those
    assert any(differ)
    assert all(a or b for a, b in zip(differ, full, strict=True))


def test_a_detector_without_masks_has_none(seed: int) -> None:
    picture = random_picture(seed, 96, 128)
    model = random_yolo("yolov8n.yaml", seed, picture, 128)
    for target in ("mask-margin", "mask-coefficients"):
        with pytest.raises(TargetError, match=target):
            Explainer(model, target=target)
