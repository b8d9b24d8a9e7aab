"""Which layers of a model can carry a heatmap: what they put out, at which stride, and which the presets use."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from detcam.explainer import Explainer


@dataclass(frozen=True)
class Layer:
    """One candidate layer: a module that puts out a map [B, channels, height, width]."""

    name: str
    kind: str
    channels: int
    height: int
    width: int
    stride: float
    presets: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values."""
        return asdict(self)


def candidate_layers(explainer: Explainer) -> list[Layer]:
    """The main layers of the explainer's model, in the order they run, from one forward on a grey square.

    Returns:
        The modules down to one level below the model's main sequence that put out a map; the same names are taken by
        `Explainer(layers=[...])`, as are those of any module inside them.
    """
    adapter = explainer.adapter
    plans = {preset: adapter.layers(preset).names for preset in ("level", "evidence")}
    side = int(explainer.settings["imgsz"]) if isinstance(explainer.settings["imgsz"], int) else 640
    batch, _ = adapter.prepare(np.full((side, side, 3), 114, np.uint8))
    found: list[Layer] = []

    def record(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if not isinstance(output, Tensor) or output.ndim != 4:
                return
            _, channels, height, width = output.shape
            presets = tuple(preset for preset, names in plans.items() if name in names)
            stride = batch.shape[1] / height
            found.append(Layer(name, type(module).__name__, channels, height, width, stride, presets))

        return hook

    handles = [
        module.register_forward_hook(record(name))
        for name, module in adapter.module.named_modules()
        if name.count(".") == 1
    ]
    try:
        with torch.no_grad():
            adapter.forward(batch[None], explainer.max_det)
    finally:
        for handle in handles:
            handle.remove()
    return found
