"""Boxes: intersection over union, and corners from centre and size."""

import torch
from torch import Tensor


def box_iou(
    a: Tensor,  # [N, 4] xyxy
    b: Tensor,  # [A, 4] xyxy
) -> Tensor:
    """[N, A] intersection over union of each box of `a` with each box of `b`; 0 for empty boxes."""
    low, high = torch.maximum(a[:, None, :2], b[:, :2]), torch.minimum(a[:, None, 2:], b[:, 2:])
    shared = (high - low).clamp(min=0).prod(dim=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=1) for boxes in (a, b)]
    return shared / (areas[0][:, None] + areas[1] - shared).clamp(min=torch.finfo(shared.dtype).tiny)


def corners(
    boxes: Tensor,  # [N, 4] (cx, cy, w, h)
) -> Tensor:
    """[N, 4] (x1, y1, x2, y2)."""
    centre, size = boxes[:, :2], boxes[:, 2:]
    return torch.cat([centre - size / 2, centre + size / 2], dim=1)
