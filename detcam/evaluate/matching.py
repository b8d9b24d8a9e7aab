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
    """Pair objects with labels: same class, box IoU over 0.5, best score first, each label once."""
    device = explanation.boxes.device
    boxes = torch.as_tensor(np.array([label.box for label in labels]).reshape(-1, 4), dtype=torch.float32).to(device)
    free = set(range(len(labels)))
    pairs: list[tuple[int, int, float]] = []
    for i in explanation.scores.argsort(descending=True, stable=True).tolist():
        fits = overlap(explanation.boxes[i], boxes).tolist()
        kind = int(explanation.class_ids[i]), explanation.labels[i]
        best = max((j for j in free if labels[j].is_of(*kind)), key=fits.__getitem__, default=None)
        if best is not None and fits[best] > IOU:
            free.remove(best)
            pairs.append((i, best, fits[best]))
    own = [j for _, j, _ in pairs]
    masks = others = None
    painted = [label.mask for label in labels if label.mask is not None]
    if own and len(painted) == len(labels):
        every = torch.from_numpy(np.stack(painted)).to(device)
        masks = every[own]
        others = every.any(dim=0) & ~masks
    return Matched([i for i, _, _ in pairs], [fit for _, _, fit in pairs], boxes[own], masks, others)
