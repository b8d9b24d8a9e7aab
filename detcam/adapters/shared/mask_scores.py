"""Scalars of a mask: the mean of its logits over the mask itself, or that minus the mean over a ring around it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

MASK_TARGETS = ("mask", "mask-margin")


def mask_weights(regions: Tensor, target: str, allowed: Tensor | None = None) -> Tensor:
    """What each mask logit counts for; the scalar is the sum of logits times this.

    Args:
        regions: [N, h, w] bool, each object's fixed mask; none is empty.
        target: "mask-margin" for the mean over the mask minus the mean over the ring around it, where there is one:
            what makes the mask end where it does. Any other: the mean over the mask.
        allowed: [N, h, w] bool, the cells that a ring may take; None: all.

    Returns:
        [N, h, w] float32.
    """
    weights = regions / regions.sum(dim=(1, 2), keepdim=True)
    if target != "mask-margin":
        return weights
    rings = ring(regions) if allowed is None else ring(regions) & allowed
    return weights - rings / rings.sum(dim=(1, 2), keepdim=True).clamp(min=1)


def ring(regions: Tensor) -> Tensor:
    """[N, h, w] bool: the cells around each region [N, h, w] bool, as far as a quarter of the root of its area."""
    widths = (regions.sum(dim=(1, 2)).sqrt() / 4).round().clamp(min=1).int()
    grown = torch.zeros_like(regions)
    for width in widths.unique().tolist():
        members = (widths == width).nonzero().flatten()
        rows = max_pool2d(regions[members].float(), (2 * width + 1, 1), 1, (width, 0))
        grown[members] = max_pool2d(rows, (1, 2 * width + 1), 1, (0, width)) > 0
    return grown & ~regions
