"""Exact oracle: compares the heat on each part of a planted scene with the fall of the score without that part."""

from __future__ import annotations

import torch
from torch import Tensor


def heat_of_parts(heatmaps: Tensor, parts: Tensor) -> Tensor:
    """[n, P] share of each heatmap's sum that lies in each part; zeros for a blank map.

    Args:
        heatmaps: [n, H, W], at least 0.
        parts: [n, P, H, W] bool, disjoint.
    """
    total = heatmaps.sum(dim=(1, 2)).clamp(min=torch.finfo(heatmaps.dtype).tiny)
    return torch.einsum("nhw,nphw->np", heatmaps, parts.to(heatmaps.dtype)) / total[:, None]


def top_agreement(heat: Tensor, drops: Tensor) -> Tensor:
    """[n] whether the hottest part is the part whose loss costs the score most: 1, 0, or 1/k for k ties.

    Args:
        heat: [n, P], see `heat_of_parts`.
        drops: [n, P] fall of the score without each part.
    """
    hottest = heat == heat.amax(dim=1, keepdim=True)
    costliest = drops.argmax(dim=1, keepdim=True)
    return hottest.gather(1, costliest)[:, 0].float() / hottest.sum(dim=1)


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """[n] Spearman's rank correlation of the rows of a and b [n, P], in [-1, 1]: Pearson's of the mean ranks.

    0 where a row is constant, which has no ranking.
    """
    x, y = (_ranks(values) for values in (a, b))
    x, y = (ranks - ranks.mean(dim=1, keepdim=True) for ranks in (x, y))
    spread = x.norm(dim=1) * y.norm(dim=1)
    return torch.where(spread > 0, (x * y).sum(dim=1) / spread.clamp(min=1e-12), 0.0)


def _ranks(values: Tensor) -> Tensor:
    """[n, P] float32: from 0 for the lowest of a row; equal values share the mean of their ranks."""
    below = (values[:, :, None] > values[:, None, :]).sum(dim=2)
    equal = (values[:, :, None] == values[:, None, :]).sum(dim=2)
    return below + (equal - 1) / 2
