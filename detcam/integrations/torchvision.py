"""torchvision: tensors for the drawing functions of `torchvision.utils`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from detcam.integrations.coco import hot

if TYPE_CHECKING:
    from detcam.explanation import Explanation


@dataclass(frozen=True)
class Drawable:
    """One picture's objects as `torchvision.utils` takes them, all on the model's device.

    Attributes:
        picture: [3, H, W] uint8 RGB.
        boxes: [N, 4] float32 xyxy in pixels.
        labels: N strings.
        scores: [N] float32 in [0, 1].
        masks: [N, H, W] bool, the objects' own masks; None if the model gives none.
        hot: [N, H, W] bool, where each heatmap reaches the threshold.
        overlays: [N, 3, H, W] uint8 RGB, each object's heatmap over the picture.
    """

    picture: Tensor = field(repr=False)
    boxes: Tensor
    labels: list[str]
    scores: Tensor
    masks: Tensor | None = field(repr=False)
    hot: Tensor = field(repr=False)
    overlays: Tensor = field(repr=False)


def drawable(explanation: Explanation, threshold: float) -> Drawable:
    """See `Explanation.to_torchvision`."""
    device = explanation.boxes.device
    picture = torch.tensor(explanation.image, device=device).permute(2, 0, 1)
    overlays = torch.empty((len(explanation), *picture.shape), dtype=torch.uint8, device=device)
    for i in range(len(explanation)):
        overlays[i] = torch.from_numpy(explanation.overlay(i)).permute(2, 0, 1)
    return Drawable(
        picture=picture.contiguous(),
        boxes=explanation.boxes,
        labels=explanation.labels,
        scores=explanation.scores,
        masks=explanation.masks,
        hot=hot(explanation, threshold),
        overlays=overlays,
    )
