"""The families of models that detcam explains, and the choice of one for a given model."""

from __future__ import annotations

from typing import Any

from detcam.adapters.base import TARGETS, Adapter, LayerPlan, Readout, Selection, Source, Target
from detcam.adapters.classify import TimmClassifier, TorchvisionClassifier, UltralyticsClassifier
from detcam.adapters.classify_transformers import TransformersClassifier
from detcam.adapters.dense import FcosAdapter, RetinaNetAdapter, SsdAdapter
from detcam.adapters.detr import DetrAdapter
from detcam.adapters.own import CallableAdapter
from detcam.adapters.rcnn import RcnnAdapter
from detcam.adapters.rtdetr import RtdetrAdapter
from detcam.adapters.semantic import TorchvisionSegmenterAdapter
from detcam.adapters.semantic_smp import SmpAdapter
from detcam.adapters.semantic_transformers import TransformersSegmenterAdapter
from detcam.adapters.yolo import YoloAdapter
from detcam.errors import ModelError

ADAPTERS: tuple[type[Adapter], ...] = (
    RtdetrAdapter,
    UltralyticsClassifier,
    YoloAdapter,
    DetrAdapter,
    RcnnAdapter,
    RetinaNetAdapter,
    FcosAdapter,
    SsdAdapter,
    TorchvisionSegmenterAdapter,
    TransformersSegmenterAdapter,
    SmpAdapter,
    TorchvisionClassifier,
    TimmClassifier,
    TransformersClassifier,
)


def adapter_for(model: Any) -> type[Adapter]:
    """The adapter class that serves `model`.

    Raises:
        ModelError: if no family does.
    """
    for adapter in ADAPTERS:
        if adapter.serves(model):
            return adapter
    raise ModelError(
        f"{type(model).__module__}.{type(model).__name__} is no detector that detcam knows: give a model of one of "
        f"the families {', '.join(a.family for a in ADAPTERS)}"
    )


__all__ = [
    "ADAPTERS",
    "TARGETS",
    "Adapter",
    "CallableAdapter",
    "LayerPlan",
    "Readout",
    "Selection",
    "Source",
    "Target",
    "YoloAdapter",
    "adapter_for",
]
