"""Exact oracle: compares the heat on each part of a planted scene with the fall of the score without that part."""

from __future__ import annotations

import torch
from torch import Tensor

from detcam.evaluate.metrics.stability import rank_correlation


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
    """[n] Spearman's rank correlation of the rows of a and b [n, P], in [-1, 1]; 0 for a constant row."""
    return rank_correlation(a, b).nan_to_num(0.0)
