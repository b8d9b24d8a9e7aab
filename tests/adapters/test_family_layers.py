"""`detcam layers` answers for every family: maps, tuples, dicts and tokens, each name one that the explainer takes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detr_models import random_detr, random_rtdetr
from mask_query_models import random_segmenter
from support import fingerprint, random_picture, random_yolo
from torch import nn
from torchvision_models import small

from detcam import Explainer
from detcam.layers import Layer, candidate_layers


def torchvision_model(name: str, module: str) -> nn.Module:
    models = pytest.importorskip(f"torchvision.models{module}")
    return getattr(models, name)(weights=None, weights_backbone=None, num_classes=5).eval()


def built(family: str, seed: int, picture: np.ndarray) -> tuple[nn.Module, dict[str, Any]]:
    """A small model with random weights, and the explainer's options for it."""
    torch.manual_seed(seed)
    kind, _, name = family.partition(" ")
    if kind == "yolo":
        return random_yolo(f"{name}.yaml", seed, picture, 128), {"imgsz": 128}
    if kind == "rtdetr":
        return random_rtdetr(f"{name}.yaml", seed), {"imgsz": 128}
    if kind == "detr":
        model, processor = random_detr(name, seed)
        return model, {"processor": processor}
    if kind == "queries":
        model, processor = random_segmenter(name, seed, Path())
        return model, {"processor": processor, "conf": 0.02}
    if kind == "rfdetr":
        pytest.importorskip("rfdetr")
        from test_rfdetr import random_rfdetr

        return random_rfdetr(name, seed).model.model, {"imgsz": 96}
    if kind == "torchvision":
        return small(name, seed, picture), {}
    if kind == "ssdlite":
        return torchvision_model("ssdlite320_mobilenet_v3_large", ".detection"), {}
    if kind == "lraspp":
        model = torchvision_model("lraspp_mobilenet_v3_large", ".segmentation")
        with torch.no_grad():
            model.classifier.low_classifier.bias[0] -= 100  # not all of it background, which is no object
        return model, {"imgsz": 96}
    if kind == "smp":
        smp = pytest.importorskip("segmentation_models_pytorch")
        return smp.Unet("resnet18", encoder_weights=None, classes=5).eval(), {"imgsz": 96}
    if kind == "classify":
        return pytest.importorskip("torchvision.models").get_model(name, weights=None, num_classes=5).eval(), {
            "imgsz": 64
        }
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32, image_size=64, num_labels=5
    )
    return transformers.ViTForImageClassification(config).eval(), {}


FAMILIES = [
    *("yolo yolov8n-seg", "rtdetr yolov8n-rtdetr", "ssdlite", "lraspp", "smp", "classify resnet18", "vit"),
    *(f"torchvision {kind}" for kind in ("mask", "retinanet")),
    *(f"queries {kind}" for kind in ("maskformer", "mask2former", "eomt", "detr")),
    "rfdetr RFDETRSegNano",
    *(f"detr {kind}" for kind in ("detr", "deformable_detr", "d_fine", "yolos")),
]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_its_layers(family: str, seed: int) -> None:
    picture = random_picture(seed, 96, 128)
    model, options = built(family, seed, picture)
    explainer = Explainer(model, **options)
    before = fingerprint(model)
    rows = candidate_layers(explainer, picture)
    assert fingerprint(model) == before
    adapter = explainer.adapter
    for preset in ("level", "evidence"):
        assert {row.name for row in rows if preset in row.presets} == set(adapter.layers(preset).names)
    network = adapter.prepare(picture)[1].network
    assert len({(row.name, row.output) for row in rows}) == len(rows)
    for row in rows:
        assert isinstance(model.get_submodule(row.name), nn.Module)
        assert row.channels >= 1
        assert row.stride == pytest.approx(network[0] / row.height)
        assert row.gradient is not None
    reached = [row for row in rows if row.gradient and row.gradient > 0]
    assert any(row.presets for row in reached)
    assert len(rows) > 2, "more than the presets"
    _explained(model, options, reached[len(reached) // 2], picture)


def _explained(model: nn.Module, options: dict[str, Any], row: Layer, picture: np.ndarray) -> None:
    """The name of a layer that objects reach is one that the explainer takes, and gives maps of the listed size."""
    explainer = Explainer(model, layers=[row.name], max_det=2, **{"conf": 0.0, **options})
    explanation = explainer(picture)
    assert len(explanation) >= 1
    shapes = {tuple(m.shape) for m in explanation.maps}
    if not row.output:
        assert shapes == {(row.height, row.width)}
    assert all(bool(m.isfinite().all()) for m in explanation.maps)
