"""The families of models that detcam explains, and the choice of one for a given model."""

from __future__ import annotations

from typing import Any

from detcam.adapters.attended import AttentionPlan, sampling
from detcam.adapters.base import TARGETS, Adapter, LayerPlan, Readout, Selection, Source, Target
from detcam.adapters.classify import TimmClassifier, TorchvisionClassifier, UltralyticsClassifier
from detcam.adapters.classify_transformers import TransformersClassifier
from detcam.adapters.dense import FcosAdapter, RetinaNetAdapter, SsdAdapter
from detcam.adapters.detr import DetrAdapter
from detcam.adapters.grounding import GroundingDinoAdapter
from detcam.adapters.mask_queries import MaskQueryAdapter, PanopticAdapter
from detcam.adapters.omdet import OmDetAdapter
from detcam.adapters.owl import OwlAdapter
from detcam.adapters.own import CallableAdapter
from detcam.adapters.rcnn import RcnnAdapter
from detcam.adapters.rfdetr import RfdetrAdapter
from detcam.adapters.rtdetr import RtdetrAdapter
from detcam.adapters.sam import SamAdapter
from detcam.adapters.semantic import TorchvisionSegmenterAdapter
from detcam.adapters.semantic_smp import SmpAdapter
from detcam.adapters.semantic_transformers import TransformersSegmenterAdapter
from detcam.adapters.yolo import YoloAdapter
from detcam.errors import ModelError
from detcam.versions import require_supported

ADAPTERS: tuple[type[Adapter], ...] = (
    RtdetrAdapter,
    UltralyticsClassifier,
    YoloAdapter,
    GroundingDinoAdapter,
    OwlAdapter,
    OmDetAdapter,
    DetrAdapter,
    MaskQueryAdapter,
    RfdetrAdapter,
    RcnnAdapter,
    RetinaNetAdapter,
    FcosAdapter,
    SsdAdapter,
    TorchvisionSegmenterAdapter,
    TransformersSegmenterAdapter,
    SmpAdapter,
    SamAdapter,
    TorchvisionClassifier,
    TimmClassifier,
    TransformersClassifier,
)


def adapter_for(model: Any) -> type[Adapter]:
    """The adapter class that serves `model`.

    Raises:
        ModelError: if no family does, or its library is too old.
    """
    require_supported(model)
    for adapter in ADAPTERS:
        if adapter.serves(model):
            return adapter
    raise ModelError(
        f"{type(model).__module__}.{type(model).__name__} is no detector that detcam knows: give a model of one of "
        f"the families {', '.join(a.family for a in ADAPTERS)}, or adapter=CallableAdapter(...) for one of your own"
    )


__all__ = [
    "ADAPTERS",
    "TARGETS",
    "Adapter",
    "AttentionPlan",
    "CallableAdapter",
    "LayerPlan",
    "PanopticAdapter",
    "Readout",
    "Selection",
    "Source",
    "Target",
    "YoloAdapter",
    "adapter_for",
    "sampling",
]
