"""Random right arguments of every operator: layouts, dtypes, shapes and windows of all kinds."""

import math
import random
from typing import Any

import torch
from torch import Tensor

from detcam import ops

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
OUTPUTS = (*FLOATS, torch.uint8)
Arguments = dict[str, Any]


def laid_out(values: Tensor, draw: random.Random) -> Tensor:
    """The same values in other strides, or an expanded, overlapping or lazily negated view of some of them."""
    choice = draw.randrange(9)
    if values.ndim == 0 or values.numel() == 0:
        return values
    if choice == 0:  # transposed
        order = list(range(values.ndim))
        draw.shuffle(order)
        back = [order.index(dim) for dim in range(values.ndim)]
        return values.permute(order).contiguous().permute(back)
    if choice == 1:  # every second, third, ...
        steps = [draw.randint(1, 3) for _ in values.shape]
        wide = values.new_full([side * step + 1 for side, step in zip(values.shape, steps, strict=True)], 77)
        places = tuple(slice(0, side * step, step) for side, step in zip(values.shape, steps, strict=True))
        wide[places] = values
        return wide[places]
    if choice == 2:  # no stride along some
        some = [slice(0, 1) if draw.random() < 0.5 else slice(None) for _ in values.shape]
        return values[tuple(some)].expand(values.shape)
    if choice == 3:  # windows that overlap in memory
        strides = [draw.randint(0, 3) for _ in values.shape]
        last = sum((side - 1) * stride for side, stride in zip(values.shape, strides, strict=True))
        if last < values.numel():
            offset = draw.randint(0, values.numel() - last - 1)
            return values.contiguous().flatten().as_strided(values.shape, strides, offset)
    if choice == 4 and values.is_floating_point() and values.dtype in (torch.float32, torch.float64):
        return torch.complex(values, values).conj().imag  # its sign is a flag
    return values


def whole_numbers(shape: tuple[int, ...], dtype: torch.dtype, draw: random.Random) -> Tensor:
    """In [-8, 8], now and then with some that are not finite."""
    values = torch.randint(-8, 9, shape).to(dtype)
    if draw.random() < 0.25 and values.numel():
        spoilt = torch.rand(shape) < draw.choice((0.01, 0.3, 1.0))
        values[spoilt] = draw.choice((math.nan, math.inf, -math.inf))
    return laid_out(values, draw)


def side(draw: random.Random) -> int:
    return draw.choice((1, 2, draw.randint(1, 9), draw.randint(1, 40)))


def some_window(count: int, cells: tuple[int, int], draw: random.Random) -> Any:
    """None, one for all, or one for each; those of each also empty, backwards, or not finite."""
    kind = draw.randrange(4)
    if kind == 0:
        return None
    if kind == 1:
        left, top = draw.uniform(-3, cells[1]), draw.uniform(-3, cells[0])
        return left, top, left + draw.uniform(0.1, cells[1] + 3), top + draw.uniform(0.1, cells[0] + 3)
    windows = torch.rand(count, 4) * (max(cells) + 6) - 3
    if draw.random() < 0.3 and count:
        windows[draw.randrange(count), draw.randrange(4)] = draw.choice((math.nan, math.inf, -math.inf, 0.0))
    return laid_out(windows if kind == 2 or not count else windows[0], draw)


def cam_maps_arguments(draw: random.Random) -> Arguments:
    images, channels, objects = draw.choice((1, 1, 2, 3)), side(draw), draw.choice((0, 1, 4, 5, draw.randint(0, 9)))
    rows, columns, dtype = side(draw), side(draw), draw.choice(FLOATS)
    normalize, out = draw.choice(list(ops.NORMALIZATIONS)), draw.choice(OUTPUTS)
    return {
        "acts": whole_numbers((images, channels, rows, columns), dtype, draw),
        "weights": whole_numbers((objects, channels), draw.choice((dtype, draw.choice(FLOATS))), draw),
        "size": (side(draw), side(draw)),
        "index": None if images == 1 and draw.random() < 0.5 else laid_out(torch.randint(images, (objects,)), draw),
        "normalize": normalize,
        "relu": draw.random() < 0.5,
        "dtype": torch.float32 if normalize == "none" and out == torch.uint8 else out,
        "window": some_window(objects, (rows, columns), draw),
    }


def elementwise_arguments(draw: random.Random) -> Arguments:
    images, channels, objects = draw.choice((1, 2, 3)), side(draw), draw.choice((0, 1, draw.randint(0, 7)))
    rows, columns, dtype = side(draw), side(draw), draw.choice(FLOATS)
    acts = whole_numbers((images, channels, rows, columns), dtype, draw).abs()  # gradcam++ has poles below 0
    return {
        "acts": acts,
        "grads": whole_numbers((objects, channels, rows, columns), dtype, draw),
        "mode": draw.choice([*ops.ELEMENTWISE_MODES, "hirescam"]),
        "index": None if images in (1, objects) else laid_out(torch.randint(images, (objects,)), draw),
    }


def overlay_arguments(draw: random.Random) -> Arguments:
    frames, objects = draw.choice((1, 1, 2)), draw.choice((0, 1, draw.randint(0, 6)))
    height, width, rows, columns = side(draw), draw.choice((side(draw), 65, 300)), side(draw), side(draw)
    maps = whole_numbers((objects, rows, columns), draw.choice(FLOATS), draw) / 8
    corners = torch.rand(objects, 4) * (width + 6) - 3
    if draw.random() < 0.3 and objects:
        corners[draw.randrange(objects), draw.randrange(4)] = draw.choice((math.nan, math.inf, -math.inf, 3e38))
    return {
        "frame": laid_out(torch.randint(256, (frames, height, width, 3), dtype=torch.uint8), draw),
        "maps": maps,
        "lut": laid_out(torch.arange(256, dtype=torch.uint8)[:, None].repeat(1, 3), draw),
        "index": None if frames == 1 and draw.random() < 0.5 else laid_out(torch.randint(frames, (objects,)), draw),
        "opacity": draw.random(),
        "window": some_window(objects, (rows, columns), draw),
        "boxes": None if draw.random() < 0.4 else laid_out(corners, draw),
        "blend": draw.choice(list(ops.BLENDS)),
    }


def region_arguments(draw: random.Random) -> Arguments:
    return {
        "boxes": laid_out(torch.rand(draw.randint(0, 5), 4, dtype=draw.choice(FLOATS)) * 50 - 5, draw),
        "size": (side(draw), side(draw)),
        "window": (0.0, 1.0, draw.uniform(0.5, 30), draw.uniform(1.5, 30)),
    }
