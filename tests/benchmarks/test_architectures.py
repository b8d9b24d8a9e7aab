"""Each stage of an architecture against plain autograd: see benchmarks/architectures.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support import few

from benchmarks import architectures
from benchmarks.architecture_models import Case, torchvision_detector


def timm(name: str, **options: Any) -> Callable[[Any], Any]:
    def make(size: tuple[int, int]) -> Any:
        sized = {"img_size": size} if name.startswith(("vit", "deit", "swin")) else {}
        torch.manual_seed(0)
        return pytest.importorskip("timm").create_model(name, num_classes=5, **sized, **options)

    return make


def torchvision(name: str, **options: Any) -> Callable[[Any], Any]:
    def make(size: tuple[int, int]) -> Any:
        models = pytest.importorskip("torchvision.models")
        torch.manual_seed(0)
        return models.SwinTransformer(**options) if name == "swin" else models.get_model(name, weights=None, **options)

    return make


def smp(decoder: str, encoder: str) -> Callable[[Any], Any]:
    def make(size: tuple[int, int]) -> Any:
        torch.manual_seed(0)
        library = pytest.importorskip("segmentation_models_pytorch")
        return library.create_model(decoder, encoder, encoder_weights=None, classes=4)

    return make


SWIN = {"patch_size": [4, 4], "embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 8], "window_size": [7, 7]}
MODELS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "timm convnext": ("[B, C, h, w]", timm("convnext_atto", depths=(1, 1, 1, 1))),
    "timm vit": ("tokens", timm("vit_tiny_patch16_224", depth=2)),
    "timm deit distilled": ("tokens", timm("deit_tiny_distilled_patch16_224", depth=2)),
    "timm swin": ("[B, h, w, C]", timm("swin_tiny_patch4_window7_224", depths=(1, 1, 1, 1), embed_dim=24)),
    "timm sequencer": ("[B, h, w, C]", timm("sequencer2d_s", layers=(1, 1, 1, 1))),
    "timm mixer": ("tokens", timm("resmlp_12_224", num_blocks=2)),
    "torchvision resnet": ("[B, C, h, w]", torchvision("resnet18", num_classes=5)),
    "torchvision swin": ("[B, h, w, C]", torchvision("swin", num_classes=5, stochastic_depth_prob=0.0, **SWIN)),
    "torchvision lraspp": ("[B, C, h, w]", torchvision("lraspp_mobilenet_v3_large", weights_backbone=None)),
    "torchvision retinanet": ("[B, h, w, C]", lambda size: torchvision_detector("retinanet", "swin", size)),
    "smp mit": ("tokens", smp("unet", "mit_b0")),
    "smp fpn": ("[B, C, h, w]", smp("fpn", "resnet18")),
}


@pytest.mark.parametrize("model", few(MODELS, "timm vit", "torchvision swin", "torchvision resnet"))
def test_every_stage_is_exact_or_refused(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layout, make = MODELS[model]
    monkeypatch.setattr(architectures, "MOST", 3 if "resnet" in model or model == "torchvision swin" else 6)
    unsized = model.startswith("smp")
    case = Case("", "", model, make, (lambda m, size: {}) if unsized else (lambda m, size: {"imgsz": size}))
    row = architectures.row_of(case)
    assert "left_out" not in row, row
    assert layout in row["layouts"] or architectures.MOST == 3
    assert not set(row["outcomes"]) - {"exact", "refused"}, row["outcomes"]
    assert len(row["outcomes"]["exact"][""]) >= 5


def test_a_map_at_other_axes_is_told_from_a_right_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sweep can fail: with axes that are swapped for good, stages are wrong or none fits."""
    monkeypatch.setattr("detcam.runners.base.channels_last", lambda size, module, shape: True)
    monkeypatch.setattr(architectures, "MOST", 2)
    row = architectures.row_of(Case("", "", "resnet", MODELS["torchvision resnet"][1]))
    assert "wrong" in row["outcomes"]
    assert "exact" not in row["outcomes"]


def test_the_committed_rows_have_no_wrong_map() -> None:
    rows = json.loads(architectures.RESULT.read_text())["results"]
    assert rows
    assert [row["key"] for row in rows if "wrong" in row.get("outcomes", {})] == []
