"""Matching of explained objects with labels."""

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
    """The explained objects of an image that match a label, best score first."""

    objects: list[int]  # their positions in the explanation
    iou: list[float]  # IoU of each object with its label, over 0.5
    boxes: Tensor  # see `Case`
    masks: Tensor | None  # see `Case`
    others: Tensor | None  # see `Case`

    def case(self, heatmaps: Tensor) -> Case:
        """The same objects with their heatmaps [N, H, W]."""
        return Case(heatmaps, self.boxes, self.masks, self.others)


def match(explanation: Explanation, labels: Sequence[Label], segments: str | None = None) -> Matched:
    """Pair the objects of an image with its labels: see `pair`.

    `segments` is the option of that name of a semantic segmenter, else None. Regions are paired by mask IoU if all
    labels have masks; with "class", the labels of a class are merged, see `by_class`.
    """
    if segments == "class":
        labels = by_class(labels)
    device = explanation.boxes.device
    boxes = label_boxes(labels, device)
    painted = [label.mask for label in labels if label.mask is not None]
    every = torch.from_numpy(np.stack(painted)).to(device) if painted and len(painted) == len(labels) else None
    objects = explanation.objects
    if segments is not None and every is not None and objects.masks is not None and len(objects):
        iou = torch.stack([mask_iou(mask.float(), every) for mask in objects.masks])
    else:
        iou = box_iou(explanation.boxes, boxes)
    pairs = pair(iou, explanation.scores, explanation.class_ids.tolist(), explanation.labels, labels)
    paired = [j for _, j, _ in pairs]
    masks = others = None
    if paired and every is not None:
        masks = every[paired]
        others = every.any(dim=0) & ~masks
    return Matched([i for i, _, _ in pairs], [value for _, _, value in pairs], boxes[paired], masks, others)


def by_class(labels: Sequence[Label]) -> list[Label]:
    """A merged label for each class, for segmenters without instances.

    Its box encloses the boxes of the class, its mask is their union; None if a label of the class has no mask.
    """
    together: dict[int | str, list[Label]] = {}
    for label in labels:
        together.setdefault(label.kind, []).append(label)
    merged = []
    for kind, members in together.items():
        corners = np.stack([label.box for label in members])
        box = np.concatenate([corners[:, :2].min(axis=0), corners[:, 2:].max(axis=0)])
        masks = [label.mask for label in members if label.mask is not None]
        merged.append(Label(kind, box, np.any(masks, axis=0) if len(masks) == len(members) else None))
    return merged


def pair(
    iou: Tensor, scores: Tensor, class_ids: Sequence[int], names: Sequence[str], labels: Sequence[Label]
) -> list[tuple[int, int, float]]:
    """Pair N objects of an image with its L labels: same class, IoU [N, L] over 0.5, best score first, labels once.

    Returns (object, label, IoU) by falling score.
    """
    free = set(range(len(labels)))
    pairs: list[tuple[int, int, float]] = []
    for i in scores.argsort(descending=True, stable=True).tolist():
        row = iou[i].tolist()
        best = max((j for j in free if labels[j].is_of(class_ids[i], names[i])), key=row.__getitem__, default=None)
        if best is not None and row[best] > IOU:
            free.remove(best)
            pairs.append((i, best, row[best]))
    return pairs


def label_boxes(labels: Sequence[Label], device: torch.device) -> Tensor:
    """[L, 4] float32 xyxy in source pixels."""
    return torch.as_tensor(np.array([label.box for label in labels]).reshape(-1, 4), dtype=torch.float32).to(device)
