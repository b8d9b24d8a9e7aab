"""The peers that `objects.py` measures, each as a call that gives one heatmap per object."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

Anchor = tuple[int, int, int]  # (class, anchor, level)
Run = Callable[[int], Tensor]  # how many of the objects -> [that many, H, W]


class ClassLogits(nn.Module):
    """The model as a classifier of its anchors, for libraries that expect one: [1, 3, H, W] -> [1, nc, A]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)[1]["scores"]


def scaled(maps: Tensor) -> Tensor:
    """Each map min-max to [0, 1]; over the last two dimensions."""
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    return (maps - low) / (high - low).clamp(min=torch.finfo(maps.dtype).tiny)


def grad_cam_run(
    kind: Any, model: ClassLogits, x: Tensor, objects: Sequence[Anchor], layer: str
) -> Callable[[int], Tensor]:
    cam = kind(model=model, target_layers=[model.model.get_submodule(layer)])

    def run(count: int) -> Tensor:
        def one(class_id: int, anchor: int) -> Tensor:
            return torch.from_numpy(cam(x, [lambda logits: logits[class_id, anchor]])[0])

        return torch.stack([one(class_id, anchor) for class_id, anchor, _ in objects[:count]])

    return run


def captum_run(model: ClassLogits, x: Tensor, objects: Sequence[Anchor], layer: str) -> Run:
    from captum.attr import LayerGradCam

    cam = LayerGradCam(model, model.model.get_submodule(layer))

    def run(count: int) -> Tensor:
        maps = [cam.attribute(x, (c, a), relu_attributions=True).detach() for c, a, _ in objects[:count]]
        size = x.shape[2:]
        return torch.cat([interpolate(scaled(m), size, mode="bilinear")[0] for m in maps])

    return run
