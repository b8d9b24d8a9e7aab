"""The operators in plain PyTorch: used without a compiled kernel, and the reference that kernels are tested against.

Written for any device, for autograd (twice differentiable) and for tracing: no data-dependent control flow.
"""

import reprlib

import torch
from torch import Tensor

BAND = 2**23  # values of heat and colour that an overlay holds at once


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
            if normalize == "image":
                own = torch.zeros(len(cells), dtype=torch.int64, device=cells.device) if index is None else index
                low, high = _over_images(low, high, own, acts.shape[0])
            cells = _rescale(cells, low, high)
        elif normalize == "object-after":
            cells = cells - _extremes(cells)[0]  # a constant map is 0 then, and stays it in the resize
        rows, columns = _interpolations(cells, window, height, width)
        maps = rows @ cells @ columns.mT  # two products, one per axis: differentiable, each pixel written once
        if normalize == "object-after":
            maps = _rescale(maps, *_extremes(maps))
        elif normalize == "max":
            high = _extremes(maps)[1]
            maps = _rescale(maps, torch.zeros_like(high), high)
        return _convert(maps, normalize, relu, dtype)


def cam_maps_out(
    acts: Tensor,  # [B, C, h, w]
    weights: Tensor,  # [N, C]
    index: Tensor | None,  # [N] int64, or None: every object belongs to image 0
    window: Tensor | None,  # [N, 4] left, top, right, bottom in cells, or None: the whole feature map
    normalize: str,
    relu: bool,
    *,
    out: Tensor,  # [N, H, W]
) -> None:
    """`detcam::cam_maps.out` without a kernel: `out` says which size and type, and is written over."""
    if out.ndim != 3 or len(out) != len(weights) or not out.is_contiguous():
        raise RuntimeError("cam_maps: out must be a contiguous [N, H, W]")
    _, height, width = out.shape
    out.copy_(cam_maps(acts, weights, index, window, height, width, normalize, relu, out.dtype))


def _weighted_sums(acts: Tensor, weights: Tensor, index: Tensor | None) -> Tensor:  # [N, h, w]
    height, width = acts.shape[2:]
    acts, weights = acts.to(accumulator(acts.dtype)).flatten(2), weights.to(accumulator(acts.dtype))
    if index is None:
        return (weights @ acts[0]).unflatten(1, (height, width))
    every = weights @ acts  # [B, N, h*w]: all pairs, because gathering acts per object would cost C times the memory
    own = index.expand(height * width, -1).T[None]  # gather refuses an index outside [0, B)
    return every.gather(0, own)[0].unflatten(1, (height, width))


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The type that sums are taken in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


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


def _interpolations(cells: Tensor, window: Tensor | None, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The weights [N, height, h] and [N, width, w] of each cell in each row and column, for a bilinear resize."""
    h, w = cells.shape[1:]
    if window is None:
        left, top, right, bottom = cells.new_tensor([[0, 0, w, h]]).T
    else:
        left, top, right, bottom = window.to(cells.dtype).T
    return _interpolation(top, bottom, h, height), _interpolation(left, right, w, width)


def _interpolation(start: Tensor, stop: Tensor, cells: int, pixels: int) -> Tensor:  # [N] -> [N, pixels, cells]
    """Weights of each cell in each pixel: half-pixel centres, a triangle, clamped at the border."""
    centres = (torch.arange(pixels, dtype=start.dtype, device=start.device) + 0.5) / pixels
    at = (start[:, None] + centres * (stop - start)[:, None] - 0.5).nan_to_num(0).clamp(0, cells - 1)
    return (1 - (at[..., None] - torch.arange(cells, device=start.device)).abs()).clamp(min=0)


def _convert(maps: Tensor, normalize: str, relu: bool, dtype: torch.dtype) -> Tensor:
    """Confine the values to their range, which rounding may leave by a step, so that no type overflows."""
    if dtype == torch.uint8:
        return (maps.nan_to_num(0).clamp(0, 1) * 255).round().to(dtype)
    largest = min(torch.finfo(dtype).max, torch.finfo(maps.dtype).max)
    low = -largest if normalize == "none" or (normalize == "max" and not relu) else 0.0
    high = largest if normalize == "none" else 1.0
    return maps.nan_to_num(0).clamp(low, high).to(dtype)


def overlay(
    frames: Tensor,  # [B, H, W, 3] uint8
    maps: Tensor,  # [N, h, w] float32
    lut: Tensor,  # [256, 3] uint8
    index: Tensor | None,  # [N] int64, or None: every object belongs to frame 0
    window: Tensor | None,  # [N, 4] left, top, right, bottom in cells, or None: the whole map
    boxes: Tensor | None,  # [N, 4] left, top, right, bottom in pixels, or None: the whole frame
    opacity: float,
    blend: str,
) -> Tensor:  # [B, H, W, 3] uint8
    """`detcam::overlay` without a kernel; see `detcam.ops.overlay` for the meaning of every argument."""
    height, width = frames.shape[1:3]
    owners = torch.zeros(len(maps), dtype=torch.int64, device=maps.device) if index is None else index
    cells = maps.nan_to_num(0).clamp(0, 1)
    rows, columns = _interpolations(cells, window, height, width)
    if boxes is not None:
        left, top, right, bottom = boxes.T
        rows = rows * _inside(top, bottom, height)[:, :, None]
        columns = columns * _inside(left, right, width)[:, :, None]
    band = max(BAND // (width * (len(maps) + 16)), 1)  # rows at a time: the heat of all objects takes N times a frame
    painted = torch.empty(frames.shape, dtype=torch.uint8, device=frames.device)
    for start in range(0, height, band):
        part = slice(start, start + band)
        with torch.autocast(frames.device.type, enabled=False):
            heat = (rows[:, part] @ cells @ columns.mT).nan_to_num(0).clamp(0, 1)
        painted[:, part] = _paint(frames[:, part].float(), heat, lut, owners, opacity, blend).round()
    return painted


def _paint(
    canvas: Tensor, heat: Tensor, lut: Tensor, owners: Tensor, opacity: float, blend: str
) -> Tensor:  # [B, H, W, 3] float32
    if blend == "max":
        own = owners[:, None, None].expand_as(heat)
        hottest = heat.new_zeros(canvas.shape[:3]).scatter_reduce(0, own, heat, "amax")
        return _lay_colour(canvas, hottest, lut, opacity)
    for own, layer in zip(owners.split(1), heat.split(1), strict=True):
        canvas = canvas.index_copy(0, own, _lay_colour(canvas[own], layer, lut, opacity))
    return canvas


def _inside(start: Tensor, stop: Tensor, pixels: int) -> Tensor:  # [N] -> [N, pixels]
    """Which pixels have their centres in [start, stop)."""
    centres = torch.arange(pixels, dtype=start.dtype, device=start.device) + 0.5
    return (centres >= start[:, None]) & (centres < stop[:, None])


def _lay_colour(canvas: Tensor, heat: Tensor, lut: Tensor, opacity: float) -> Tensor:  # [B, H, W, 3] float32
    colour = lut[(heat * 255).round().long()].to(canvas.dtype)
    return torch.lerp(canvas, colour, (opacity * heat.sqrt())[..., None])


CELLWISE = ("gradient-times-activation", "layercam")  # modes that give maps; the others give weights


def elementwise_maps(
    acts: Tensor,  # [B, C, h, w]
    grads: Tensor,  # [N, C, h, w]
    index: Tensor | None,  # [N] int64, or None: B is 1 or N
    mode: str,
) -> Tensor:  # [N, h, w] or [N, C]
    """`detcam::elementwise_maps` without a kernel; see `detcam.ops.elementwise_maps`."""
    acts, grads = acts.to(accumulator(acts.dtype)), grads.to(accumulator(grads.dtype))
    if index is not None:
        acts = acts.index_select(0, index)
    if mode in CELLWISE:
        return (acts * (grads.clamp(min=0) if mode == "layercam" else grads)).sum(1)
    if mode == "gradcam":
        return grads.mean((2, 3))
    total = acts.sum((2, 3), keepdim=True)
    if mode == "xgradcam":
        return (acts * grads).sum((2, 3)) / (total[..., 0, 0] + 1e-7)
    if mode != "gradcam++":
        raise ValueError(f"elementwise_maps: unknown mode {reprlib.repr(mode)}")
    squared = grads**2
    alpha = squared / (2 * squared + total * squared * grads + 1e-6)
    return (alpha * grads.clamp(min=0)).sum((2, 3))
