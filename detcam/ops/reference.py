"""The operations in plain PyTorch: what runs without a compiled kernel, and what a kernel is tested against.

Written for any device, for autograd (twice differentiable) and for tracing: no data-dependent control flow.
"""

import torch
from torch import Tensor


def cam_maps(
    acts: Tensor,  # [B, C, h, w]
    weights: Tensor,  # [N, C]
    index: Tensor | None,  # [N] int64, or None: every object belongs to image 0
    window: Tensor | None,  # [N, 4] left, top, right, bottom in cells, or None: the whole feature map
    height: int,
    width: int,
    normalize: str,
    relu: bool,
    dtype: torch.dtype,
) -> Tensor:  # [N, height, width]
    """`detcam::cam_maps` without a kernel; see `detcam.ops.cam_maps` for the meaning of every argument."""
    with torch.autocast(acts.device.type, enabled=False):  # the sums stay in float32 inside a user's autocast
        cells = _weighted_sums(acts, weights, index)
        cells = torch.where(cells.isfinite(), cells, 0)
        if relu:
            cells = cells.relu()
        if normalize in ("object", "image"):
            low, high = _extremes(cells)
            if normalize == "image" and index is not None:
                low, high = _over_images(low, high, index, acts.shape[0])
            elif normalize == "image":
                low, high = _extremes(cells[None].flatten(1, 2))
            cells = _rescale(cells, low, high)
        elif normalize == "object-after":
            cells = cells - _extremes(cells)[0]  # a constant map is 0 then, and stays it in the resize
        maps = _resize(cells, window, height, width)
        if normalize == "object-after":
            maps = _rescale(maps, *_extremes(maps))
        elif normalize == "max":
            high = _extremes(maps)[1]
            maps = _rescale(maps, torch.zeros_like(high), high)
        return _convert(maps, normalize, relu, dtype)


def _weighted_sums(acts: Tensor, weights: Tensor, index: Tensor | None) -> Tensor:  # [N, h, w]
    height, width = acts.shape[2:]
    accumulate = torch.float64 if acts.dtype == torch.float64 else torch.float32
    acts, weights = acts.to(accumulate).flatten(2), weights.to(accumulate)
    if index is None:
        return (weights @ acts[0]).unflatten(1, (height, width))
    every = weights @ acts  # [B, N, h*w]: all pairs, because gathering acts per object would cost C times the memory
    own = index.expand(height * width, -1).T[None]  # gather refuses an index outside [0, B)
    return every.gather(0, own)[0].unflatten(1, (height, width))


def _extremes(maps: Tensor) -> tuple[Tensor, Tensor]:  # [N, ...] -> two of [N, 1, 1]
    flat = maps.flatten(1)
    return flat.amin(1)[:, None, None], flat.amax(1)[:, None, None]


def _over_images(low: Tensor, high: Tensor, index: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    """Widen the range of each object to that of all objects of its image."""
    lowest = low.new_full((batch,), float("inf")).scatter_reduce(0, index, low.flatten(), "amin")
    highest = high.new_full((batch,), -float("inf")).scatter_reduce(0, index, high.flatten(), "amax")
    return lowest[index][:, None, None], highest[index][:, None, None]


def _rescale(maps: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Map [low, high] to [0, 1]; an empty range, or one too wide for the type, gives zeros."""
    span = high - low
    usable = (span > 0) & span.isfinite()
    return torch.where(usable, (maps - low) / torch.where(usable, span, 1), 0)


def _resize(cells: Tensor, window: Tensor | None, height: int, width: int) -> Tensor:
    """Bilinear resize as two matrix products, one per axis: differentiable, each pixel written once."""
    h, w = cells.shape[1:]
    if window is None:
        left, top, right, bottom = cells.new_tensor([[0, 0, w, h]]).T
    else:
        left, top, right, bottom = window.to(cells.dtype).T
    rows = _interpolation(top, bottom, h, height)
    columns = _interpolation(left, right, w, width)
    return rows @ cells @ columns.mT


def _interpolation(start: Tensor, stop: Tensor, cells: int, pixels: int) -> Tensor:  # [N] -> [N, pixels, cells]
    """Weights of each cell in each pixel: half-pixel centres, a triangle, clamped at the border."""
    centres = (torch.arange(pixels, dtype=start.dtype, device=start.device) + 0.5) / pixels
    at = (start[:, None] + centres * (stop - start)[:, None] - 0.5).clamp(0, cells - 1)
    return (1 - (at[..., None] - torch.arange(cells, device=start.device)).abs()).clamp(min=0)


def _convert(maps: Tensor, normalize: str, relu: bool, dtype: torch.dtype) -> Tensor:
    """Confine the values to their range, which rounding may leave by a step, so that no type overflows."""
    if dtype == torch.uint8:
        return (maps.nan_to_num(0).clamp(0, 1) * 255).round().to(dtype)
    largest = min(torch.finfo(dtype).max, torch.finfo(maps.dtype).max)
    low = -largest if normalize == "none" or (normalize == "max" and not relu) else 0.0
    high = largest if normalize == "none" else 1.0
    return maps.nan_to_num(0).clamp(low, high).to(dtype)
