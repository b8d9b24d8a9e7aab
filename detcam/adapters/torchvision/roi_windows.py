"""RoIAlign windows: exact gradients of many proposals at once, each in the small window of the map that was pooled.

A two-stage detector scores each object from C x 7 x 7 features that RoIAlign pooled from its box, and the rows of that
batch are independent. So one backward of the sum of all scores gives every object's gradient G at its pooled features.
RoIAlign is linear and separable: a bin is the mean of bilinear samples on a regular grid, so pooled = Y A X^T for each
channel, with Y [7, h] and X [7, w] made of the samples' hat functions

    Y[p, y] = mean over the samples y_i of bin p of max(0, 1 - |y_i - y|)

and the backward is dS/dA = Y^T G X, zero outside the box and the cells next to it: two small matrix products per
object, in a window of the map.

Source: RoIAlign of Mask R-CNN, He et al. 2017, https://arxiv.org/abs/1703.06870, as in torchvision (aligned=False).
"""

from collections.abc import Callable

import torch
from torch import Tensor


def row_gradients(score: Callable[[Tensor], Tensor], pooled: Tensor) -> Tensor:
    """[n, M, C, ph, pw] gradients of each object's scalars at its row of `pooled`, by one backward per scalar.

    Args:
        score: from pooled features [n, C, ph, pw] to scalars [n, M]; rows must be independent.
        pooled: [n, C, ph, pw].
    """
    leaf = pooled.detach().requires_grad_()
    with torch.enable_grad():
        sums = score(leaf).sum(dim=0).unbind()
    return torch.stack([torch.autograd.grad(s, leaf, retain_graph=True)[0] for s in sums], dim=1)


def roi_gradients(
    pooled: Tensor,  # [n, M, C, ph, pw]
    boxes: Tensor,  # [n, 4]
    size: tuple[int, int],
    scale: float,
    sampling: int,
) -> tuple[Tensor, Tensor]:
    """Gradients at pooled features as gradients at the map that RoIAlign pooled from, for each box separately.

    Args:
        pooled: gradients of M scalars at the pooled features of each box.
        boxes: xyxy in pixels of the network's input.
        size: (height, width) of the map, in cells.
        scale: cells per pixel.
        sampling: samples per bin and axis; 0 or less: the number of cells of a bin, rounded up.

    Returns:
        [n, M, C, kh, kw] gradients in a window of the map for each box, zero outside the window, and [n, 2] int64, the
        (row, column) of each window's first cell.
    """
    rows, top = _bin_weights(boxes[:, [1, 3]] * scale, pooled.shape[3], size[0], sampling)
    columns, left = _bin_weights(boxes[:, [0, 2]] * scale, pooled.shape[4], size[1], sampling)
    rows, columns = rows.to(pooled.dtype)[:, None, None], columns.to(pooled.dtype)[:, None, None]
    # [n, 1, 1, kh, ph] [n, M, C, ph, pw] [n, 1, 1, pw, kw]
    return rows.transpose(3, 4) @ pooled @ columns, torch.stack([top, left], dim=1)


def _bin_weights(spans: Tensor, bins: int, cells: int, sampling: int) -> tuple[Tensor, Tensor]:
    """Weights of the cells in each bin, along one axis.

    Args:
        spans: [n, 2] start and end of each box, in cells.
        bins: the number of bins.
        cells: the length of the map.
        sampling: as for `roi_gradients`.

    Returns:
        [n, bins, k] weights of k cells from the first cell with a weight, and [n] int64, the first cell.
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
    places = places.clamp(0, cells - 1)  # cells at the border extend beyond it
    first = places.flatten(1).amin(dim=1).long()
    k = min(int((places.flatten(1).amax(dim=1).long() + 2 - first).max()), cells)
    first = first.clamp(max=cells - k)
    cell = first[:, None] + torch.arange(k, device=spans.device)  # [n, k]
    hats = (1 - (places[..., None] - cell[:, None, None]).abs()).clamp(min=0)  # [n, bins, s, k]
    return (hats * counts[..., None]).sum(dim=2) / samples[:, None, None], first
