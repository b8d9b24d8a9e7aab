"""Letterbox, resize, crop and padding, for every family: what changes at the layers is shown where the picture changed.

A random network has no reason to look at anything, so the map here is the plainest that geometry allows: how much each
cell of the captured layers changes when a square is painted into the picture. It takes the way of every other map, from
`Adapter.prepare` through the captured grids to `Explanation.heatmaps`, and must be hottest on the square.
Mask-classification, prompted and rfdetr models are in the tests of their own families; FCN, whose dilated convolutions
carry a change further than a cell, in those of semantic regions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from square_change import assert_square_is_hot
from support import random_picture, random_yolo
from torch import nn

from detcam import Explainer

SIDE = 256  # px of the network's input, about

Built = tuple[nn.Module, dict[str, Any]]  # and the explainer's options


def _yolo(config: str, seed: int) -> Built:
    pytest.importorskip("ultralytics")
    if any(task in config for task in ("pose", "obb", "world", "yoloe")):
        from test_yolo_tasks import random_task

        return random_task(f"{config}.yaml", seed, random_picture(seed, 90, 120), SIDE), {"imgsz": SIDE}
    return random_yolo(f"{config}.yaml", seed, random_picture(seed, 90, 120), SIDE), {"imgsz": SIDE}


def _rtdetr(config: str, seed: int) -> Built:
    pytest.importorskip("ultralytics")
    from detr_models import random_rtdetr

    return random_rtdetr(f"{config}.yaml", seed), {"imgsz": SIDE}


def _classifier(name: str, seed: int) -> Built:
    from test_classify import MODELS, built

    return built(name, seed), {} if MODELS[name] is None else {"imgsz": 224}


def _torchvision(name: str, seed: int) -> Built:
    pytest.importorskip("torchvision")
    from torchvision_models import small

    return small(name, seed, random_picture(seed, 90, 120), min_size=192, max_size=SIDE), {}


def _ssd(name: str, seed: int) -> Built:
    pytest.importorskip("torchvision")
    from torchvision_models import architecture

    return architecture(name, seed, random_picture(seed, 90, 120)), {}


def _detr(name: str, seed: int) -> Built:
    pytest.importorskip("transformers")
    from detr_models import random_detr

    model, processor = random_detr(name, seed)
    keeps_aspect = "shortest_edge" in dict(processor.size)
    size = {"shortest_edge": 192, "longest_edge": SIDE} if keeps_aspect else {"height": 192, "width": SIDE}
    return model, {"processor": type(processor)(size=size)}


def _segmenter(name: str, seed: int) -> Built:
    pytest.importorskip("transformers")
    from semantic_models import options, random_segmenter

    given = options(name)
    return random_segmenter(name, seed), given if "processor" in given else {"imgsz": SIDE}


FAMILIES: dict[str, tuple[Callable[[str, int], Built], tuple[str, ...]]] = {
    "ultralytics": (
        _yolo,
        ("yolov8n", "yolov8n-seg", "yolo26n", "yolov8n-pose", "yolov8n-obb", "yolov8n-worldv2", "yoloe-v8n-seg"),
    ),
    "rtdetr": (_rtdetr, ("yolov8-rtdetr",)),
    "torchvision": (_torchvision, ("mask", "retinanet", "fcos")),
    "ssd": (_ssd, ("ssdlite320_mobilenet_v3_large",)),
    "detr": (_detr, ("detr", "conditional_detr", "dab-detr", "deformable_detr", "rt_detr", "d_fine", "yolos")),
    "segmenter": (
        _segmenter,
        ("lraspp", "segformer", "upernet-convnext", "beit", "smp-unet"),
    ),
    "classifier": (
        _classifier,
        ("torchvision resnet18", "timm resnet18", "transformers ViT", "ultralytics yolov8n-cls"),
    ),
}
TABLE = [(family, name) for family, (_, names) in FAMILIES.items() for name in names]


@pytest.mark.parametrize(("family", "name"), TABLE)
def test_the_hot_spot_lies_on_the_square(family: str, name: str, seed: int) -> None:
    """At the maps that enter the neck: with random weights, what follows carries a change to anywhere."""
    model, given = FAMILIES[family][0](name, seed)
    layers = list(Explainer(model, **given).adapter.layers("evidence").names)
    assert_square_is_hot(lambda method, _: Explainer(model, method, layers, conf=0.0, max_det=1, **given), seed)
