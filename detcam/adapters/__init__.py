"""The families of models that detcam explains, and the choice of one for a given model."""

from __future__ import annotations

from typing import Any

from detcam.adapters.base import TARGETS, Adapter, LayerPlan, LocalScore, Target
from detcam.adapters.yolo import YoloAdapter
from detcam.errors import ModelError

ADAPTERS: tuple[type[YoloAdapter], ...] = (YoloAdapter,)


def adapter_for(model: Any) -> type[YoloAdapter]:
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


__all__ = ["ADAPTERS", "TARGETS", "Adapter", "LayerPlan", "LocalScore", "Target", "YoloAdapter", "adapter_for"]
