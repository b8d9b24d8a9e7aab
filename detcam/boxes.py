"""Overlap of boxes."""

from __future__ import annotations

import torch
from torch import Tensor


def overlap(box: Tensor, boxes: Tensor) -> Tensor:
    """[A] IoU of one box [4] with boxes [A, 4], xyxy; 0 for empty ones."""
    sides = (torch.minimum(box[2:], boxes[:, 2:]) - torch.maximum(box[:2], boxes[:, :2])).clamp(min=0)
    both = sides.prod(dim=1)
    areas = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=1) + (box[2:] - box[:2]).clamp(min=0).prod()
    return both / (areas - both).clamp(min=torch.finfo(both.dtype).tiny)


def box_iou(a: Tensor, b: Tensor) -> Tensor:
    """[N, A] intersection over union of boxes a [N, 4] and b [A, 4], xyxy; 0 for empty boxes."""
    low, high = torch.maximum(a[:, None, :2], b[:, :2]), torch.minimum(a[:, None, 2:], b[:, 2:])
    both = (high - low).clamp(min=0).prod(dim=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=1) for boxes in (a, b)]
    return both / (areas[0][:, None] + areas[1] - both).clamp(min=torch.finfo(both.dtype).tiny)
