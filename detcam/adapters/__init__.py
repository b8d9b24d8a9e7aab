"""The families of models that detcam explains, and the choice of one for a given model."""

from __future__ import annotations

from typing import Any

from detcam.adapters.base import TARGETS, Adapter, LayerPlan, Readout, Selection, Source, Target
from detcam.adapters.custom import CallableAdapter
from detcam.adapters.rfdetr import RfdetrAdapter
from detcam.adapters.shared.attention import AttentionPlan, sampling
from detcam.adapters.smp import SmpAdapter
from detcam.adapters.timm import TimmClassifier
from detcam.adapters.torchvision.classify import TorchvisionClassifier
from detcam.adapters.torchvision.one_stage import FcosAdapter, RetinaNetAdapter, SsdAdapter
from detcam.adapters.torchvision.rcnn import RcnnAdapter
from detcam.adapters.torchvision.semantic import TorchvisionSegmenterAdapter
from detcam.adapters.transformers.classify import TransformersClassifier
from detcam.adapters.transformers.detr import DetrAdapter
from detcam.adapters.transformers.grounding_dino import GroundingDinoAdapter
from detcam.adapters.transformers.mask_queries import MaskQueryAdapter, PanopticAdapter
from detcam.adapters.transformers.omdet import OmDetAdapter
from detcam.adapters.transformers.owl import OwlAdapter
from detcam.adapters.transformers.sam import SamAdapter
from detcam.adapters.transformers.semantic import TransformersSegmenterAdapter
from detcam.adapters.ultralytics.classify import UltralyticsClassifier
from detcam.adapters.ultralytics.rtdetr import RtdetrAdapter
from detcam.adapters.ultralytics.yolo import YoloAdapter
from detcam.errors import ModelError
from detcam.models.versions import require_supported

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

NAMED: dict[str, type[Adapter]] = {"panoptic": PanopticAdapter}  # those that a preset may ask for by name


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
    "NAMED",
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
