"""Which explained object is which labelled one, and both as a `Case`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from detcam.adapters.shared.segments import mask_iou
from detcam.boxes import box_iou
from detcam.evaluate.labels.base import Label
from detcam.evaluate.metrics.localisation import Case
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


def match(explanation: Explanation, labels: Sequence[Label], segments: str | None = None) -> Matched:
    """Pair objects with labels: see `pair`.

    Args:
        explanation: of a picture.
        labels: its labels.
        segments: of a semantic segmenter the option of that name, else None. Its regions are paired by the IoU of masks
            where all labels have one; all labels of a class count as one if segments are classes, see `by_class`.
    """
    if segments == "class":
        labels = by_class(labels)
    device = explanation.boxes.device
    boxes = _boxes(labels, device)
    painted = [label.mask for label in labels if label.mask is not None]
    every = torch.from_numpy(np.stack(painted)).to(device) if painted and len(painted) == len(labels) else None
    objects = explanation.objects
    if segments is not None and every is not None and objects.masks is not None and len(objects):
        fits = torch.stack([mask_iou(mask.float(), every) for mask in objects.masks])
    else:
        fits = box_iou(explanation.boxes, boxes)
    found = _paired(fits, explanation.scores, explanation.class_ids.tolist(), explanation.labels, labels)
    own = [j for _, j, _ in found]
    masks = others = None
    if own and every is not None:
        masks = every[own]
        others = every.any(dim=0) & ~masks
    return Matched([i for i, _, _ in found], [fit for _, _, fit in found], boxes[own], masks, others)


def by_class(labels: Sequence[Label]) -> list[Label]:
    """One label for each class: what a segmenter that tells no objects apart can find of several.

    Its box is around all of them, its mask where any has one; None if any has none.
    """
    together: dict[int | str, list[Label]] = {}
    for label in labels:
        together.setdefault(label.kind, []).append(label)
    merged = []
    for kind, some in together.items():
        corners = np.stack([label.box for label in some])
        box = np.concatenate([corners[:, :2].min(axis=0), corners[:, 2:].max(axis=0)])
        masks = [label.mask for label in some if label.mask is not None]
        merged.append(Label(kind, box, np.any(masks, axis=0) if len(masks) == len(some) else None))
    return merged


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
    return _paired(box_iou(boxes, _boxes(labels, boxes.device)), scores, class_ids, names, labels)


def _paired(
    fits: Tensor, scores: Tensor, class_ids: Sequence[int], names: Sequence[str], labels: Sequence[Label]
) -> list[tuple[int, int, float]]:
    """See `pair`; `fits` [N, L] are the IoU of objects and labels."""
    free = set(range(len(labels)))
    pairs: list[tuple[int, int, float]] = []
    for i in scores.argsort(descending=True, stable=True).tolist():
        own = fits[i].tolist()
        best = max((j for j in free if labels[j].is_of(class_ids[i], names[i])), key=own.__getitem__, default=None)
        if best is not None and own[best] > IOU:
            free.remove(best)
            pairs.append((i, best, own[best]))
    return pairs


def _boxes(labels: Sequence[Label], device: torch.device) -> Tensor:
    """[len(labels), 4] float32."""
    return torch.as_tensor(np.array([label.box for label in labels]).reshape(-1, 4), dtype=torch.float32).to(device)
