"""torchvision: tensors for the drawing functions of `torchvision.utils`."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from detcam.explanation import Explanation
from detcam.integrations.coco import above_threshold


@dataclass(frozen=True)
class Drawable:
    """The objects of one image as inputs for `torchvision.utils`, on the model's device."""

    picture: Tensor = field(repr=False)  # [3, H, W] uint8 RGB
    boxes: Tensor  # [N, 4] float32 xyxy in pixels
    labels: list[str]  # N class names
    scores: Tensor  # [N] float32 in [0, 1]
    masks: Tensor | None = field(repr=False)  # [N, H, W] bool, the model's masks; None if the model has none
    above_threshold: Tensor = field(repr=False)  # [N, H, W] bool, True where a heatmap is at least the threshold
    overlays: Tensor = field(repr=False)  # [N, 3, H, W] uint8 RGB, the heatmap of each object over the image


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
        above_threshold=above_threshold(explanation, threshold),
        overlays=overlays,
    )
