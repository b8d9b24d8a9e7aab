"""Which explained object is which labelled one, and both as a `Case`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from detcam.evaluate.faithfulness import overlap
from detcam.evaluate.labels import Label
from detcam.evaluate.metrics import Case
from detcam.explanation import Explanation

IOU = 0.5


@dataclass(frozen=True)
class Matched:
    """The explained objects of a picture that match a label, best score first.

    Attributes:
        objects: their positions in the explanation.
        iou: each one's box IoU with its label, over 0.5.
        boxes, masks, others: see `Case`.
    """

    objects: list[int]
    iou: list[float]
    boxes: Tensor
    masks: Tensor | None
    others: Tensor | None

    def case(self, heatmaps: Tensor) -> Case:
        """The same objects with their heatmaps [N, H, W]."""
        return Case(heatmaps, self.boxes, self.masks, self.others)


def match(explanation: Explanation, labels: Sequence[Label]) -> Matched:
    """Pair objects with labels: see `pair`."""
    found = pair(explanation.boxes, explanation.scores, explanation.class_ids.tolist(), explanation.labels, labels)
    device = explanation.boxes.device
    boxes = _boxes(labels, device)
    own = [j for _, j, _ in found]
    masks = others = None
    painted = [label.mask for label in labels if label.mask is not None]
    if own and len(painted) == len(labels):
        every = torch.from_numpy(np.stack(painted)).to(device)
        masks = every[own]
        others = every.any(dim=0) & ~masks
    return Matched([i for i, _, _ in found], [fit for _, _, fit in found], boxes[own], masks, others)


def pair(
    boxes: Tensor, scores: Tensor, class_ids: Sequence[int], names: Sequence[str], labels: Sequence[Label]
) -> list[tuple[int, int, float]]:
    """Pair the N objects of a picture with its labels: same class, box IoU over 0.5, best score first, each label once.

    Args:
        boxes: [N, 4] xyxy in source pixels.
        scores: [N].
        class_ids: N class numbers.
        names: N class names.
        labels: of the picture.

    Returns:
        (object, label, IoU) by falling score.
    """
    labelled = _boxes(labels, boxes.device)
    free = set(range(len(labels)))
    pairs: list[tuple[int, int, float]] = []
    for i in scores.argsort(descending=True, stable=True).tolist():
        fits = overlap(boxes[i], labelled).tolist()
        best = max((j for j in free if labels[j].is_of(class_ids[i], names[i])), key=fits.__getitem__, default=None)
        if best is not None and fits[best] > IOU:
            free.remove(best)
            pairs.append((i, best, fits[best]))
    return pairs


def _boxes(labels: Sequence[Label], device: torch.device) -> Tensor:
    """[len(labels), 4] float32."""
    return torch.as_tensor(np.array([label.box for label in labels]).reshape(-1, 4), dtype=torch.float32).to(device)
