"""Exact gradients of many regions at once: from what RoIAlign pooled back to the small window of a map that it read.

A two-stage detector scores each object from C x 7 x 7 features that RoIAlign pooled from its box, and the rows of that
batch do not influence one another. So one backward of the sum of all scores gives every object's gradient G at its own
pooled features. RoIAlign itself is linear and separable: a bin is the mean of bilinear samples on a regular grid, that
is pooled = Y A X^T for each channel, with Y [7, h] and X [7, w] made of the samples' hat functions

    Y[p, y] = mean over the samples y_i of bin p of max(0, 1 - |y_i - y|)

and its backward is dS/dA = Y^T G X, zero outside the box and one cell around it: two small matrix products for each
object, in a window of the map.

Source: RoIAlign of Mask R-CNN, He et al. 2017, https://arxiv.org/abs/1703.06870, as in torchvision (aligned=False).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def row_gradients(score: Callable[[Tensor], Tensor], pooled: Tensor) -> Tensor:
    """The gradients of each object's scalars at its own row of `pooled`, from one backward for each of M scalars.

    Args:
        score: from pooled features [n, C, ph, pw] to scalars [n, M]; rows must not influence one another.
        pooled: [n, C, ph, pw].

    Returns:
        [n, M, C, ph, pw].
    """
    leaf = pooled.detach().requires_grad_()
    with torch.enable_grad():
        sums = score(leaf).sum(dim=0).unbind()
    return torch.stack([torch.autograd.grad(s, leaf, retain_graph=True)[0] for s in sums], dim=1)


def region_gradients(
    pooled: Tensor,  # [n, M, C, ph, pw]
    boxes: Tensor,  # [n, 4]
    size: tuple[int, int],
    scale: float,
    sampling: int,
) -> tuple[Tensor, Tensor]:
    """Take gradients at pooled features back to the map that RoIAlign pooled from, for each region by itself.

    Args:
        pooled: the gradients of M scalars at each region's pooled features.
        boxes: xyxy in pixels of the network's input.
        size: (height, width) of the map, in cells.
        scale: cells per pixel.
        sampling: samples per bin and axis; 0 or less: as many as a bin has cells, rounded up.

    Returns:
        [n, M, C, kh, kw] gradients at the map in a window per region, zero everywhere else, and [n, 2] int64, the
        (row, column) on the map of each window's first cell.
    """
    rows, top = _bin_weights(boxes[:, [1, 3]] * scale, pooled.shape[3], size[0], sampling)
    columns, left = _bin_weights(boxes[:, [0, 2]] * scale, pooled.shape[4], size[1], sampling)
    rows, columns = rows.to(pooled.dtype)[:, None, None], columns.to(pooled.dtype)[:, None, None]
    # [n, 1, 1, kh, ph] [n, M, C, ph, pw] [n, 1, 1, pw, kw]
    return rows.transpose(3, 4) @ pooled @ columns, torch.stack([top, left], dim=1)


def _bin_weights(spans: Tensor, bins: int, cells: int, sampling: int) -> tuple[Tensor, Tensor]:
    """Along one axis, how much each cell counts in each bin.

    Args:
        spans: [n, 2] where each region starts and ends, in cells.
        bins: the number of bins.
        cells: the length of the map.
        sampling: as for `region_gradients`.

    Returns:
        [n, bins, k] weights of the k cells from the first one that counts, and [n] int64, the first cell.
    """
    start = spans[:, 0]
    length = (spans[:, 1] - start).clamp(min=1)
    step = length / bins
    samples = torch.full_like(step, sampling) if sampling > 0 else step.ceil()  # [n], for each bin
    turn = torch.arange(int(samples.max()), device=spans.device)
    bin_start = start[:, None] + torch.arange(bins, device=spans.device) * step[:, None]  # [n, bins]
    inside_bin = (turn + 0.5) * step[:, None] / samples[:, None]  # [n, s]
    places = bin_start[:, :, None] + inside_bin[:, None]  # [n, bins, s], in cells
    counts = (turn < samples[:, None])[:, None] & (places >= -1) & (places <= cells)
    places = places.clamp(0, cells - 1)  # the border's cells continue beyond it
    first = places.flatten(1).amin(dim=1).long()
    k = min(int((places.flatten(1).amax(dim=1).long() + 2 - first).max()), cells)
    first = first.clamp(max=cells - k)
    cell = first[:, None] + torch.arange(k, device=spans.device)  # [n, k]
    hats = (1 - (places[..., None] - cell[:, None, None]).abs()).clamp(min=0)  # [n, bins, s, k]
    return (hats * counts[..., None]).sum(dim=2) / samples[:, None, None], first
