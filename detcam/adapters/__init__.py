"""Adapters: one per family of models; `adapter_for` finds the adapter of a model."""

from typing import Any

from torch import nn

from detcam.adapters.base import TARGETS, Adapter, ImageSize, LayerPlan, Readout, Selection, Source, Target
from detcam.adapters.custom import CallableAdapter
from detcam.adapters.logits import LogitsAdapter
from detcam.adapters.rfdetr import RfdetrAdapter
from detcam.adapters.shared.attention import AttentionPlan, sampling
from detcam.adapters.shared.stages import channels_last
from detcam.adapters.smp import SmpAdapter
from detcam.adapters.timm import TimmClassifier
from detcam.adapters.torchvision.classify import TorchvisionClassifier
from detcam.adapters.torchvision.rcnn import RcnnAdapter
from detcam.adapters.torchvision.retinanet import FcosAdapter, RetinaNetAdapter
from detcam.adapters.torchvision.semantic import TorchvisionSegmenterAdapter
from detcam.adapters.torchvision.ssd import SsdAdapter
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
from detcam.adapters.wrappers import model_inside, unwrapped
from detcam.errors import ModelError
from detcam.models.versions import require_supported

ADAPTERS: tuple[type[Adapter], ...] = (
    RtdetrAdapter, UltralyticsClassifier, YoloAdapter, GroundingDinoAdapter, OwlAdapter, OmDetAdapter, DetrAdapter,
    MaskQueryAdapter, RfdetrAdapter, RcnnAdapter, RetinaNetAdapter, FcosAdapter, SsdAdapter,
    TorchvisionSegmenterAdapter, TransformersSegmenterAdapter, SmpAdapter, SamAdapter, TorchvisionClassifier,
    TimmClassifier, TransformersClassifier,
)  # fmt: skip

AnyAdapter = type[Adapter] | CallableAdapter | LogitsAdapter  # what `Explainer(adapter=)` takes
NAMED: dict[str, type[Adapter]] = {"panoptic": PanopticAdapter}  # adapters that a preset may name


def opened(model: Any) -> tuple[Any, Any]:
    """The model that an adapter serves, out of a wrapper if need be, and the wrapper's processor or None.

    Raises:
        ModelError: for a wrapper that cannot be opened; names the attribute to give.
    """

    def serves(part: Any) -> bool:
        return any(adapter.serves(part) for adapter in ADAPTERS)

    return (model, None) if serves(model) else model_inside(model, serves)


def adapter_for(model: Any) -> type[Adapter]:
    """The adapter class of the family that `model` belongs to; a ModelError if none, or if its library is too old."""
    require_supported(model)
    for adapter in ADAPTERS:
        if adapter.serves(model):
            return adapter
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"{getattr(model, '__name__', type(model).__name__)} is not a network that detcam knows, and holds none: "
            "give the model itself, the path of its weights, or adapter=CallableAdapter(...) for a black box"
        )
    raise ModelError(
        f"{type(model).__module__}.{type(model).__name__} is not a detector that detcam knows: give a model of one of "
        f"the families {', '.join(dict.fromkeys(a.family for a in ADAPTERS))}, the attribute that holds one, or "
        "adapter=CallableAdapter(...) for your own model"
    )


__all__ = [
    "ADAPTERS", "NAMED", "TARGETS", "Adapter", "AnyAdapter", "AttentionPlan", "CallableAdapter", "ImageSize",
    "LayerPlan", "LogitsAdapter", "PanopticAdapter", "Readout", "Selection", "Source", "Target", "YoloAdapter",
    "adapter_for", "channels_last", "opened", "sampling", "unwrapped",
]  # fmt: skip
