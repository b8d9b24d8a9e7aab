"""Hiding pixels of the network's input: in which order, and what is put in their place. All batched, on the device."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, interpolate, pad

from detcam.geometry import Geometry

FILLS = ("blur", "black", "inpaint")
BLUR = 40  # the blur's deviation is the input's longest side over this: 16 pixels at 640
BLOCKS = 40  # along the input's longest side, in which equally hot pixels are hidden together
Fill = Callable[[Tensor], Tensor]  # from hidden [b, h, w] bool to pictures [b, 3, h, w]


def seen(geometry: Geometry, device: torch.device) -> Tensor:
    """[h, w] bool over the network's input: pixels that show the source picture, not the padding beside it."""
    height, width = geometry.network
    (top, left), (rows, columns) = geometry.pad, geometry.resized
    inside = torch.zeros(height, width, dtype=torch.bool, device=device)
    inside[max(top, 0) : top + rows, max(left, 0) : left + columns] = True
    return inside


def places(heat: Tensor, inside: Tensor) -> Tensor:
    """The place of every pixel in decreasing order of heat: 0 for the hottest.

    Equally hot pixels come in blocks, in an order drawn once, the same in every call. By row and column, a map of few
    values would be judged by where in the picture its ties happen to lie; one by one, by how the model likes speckle.

    Args:
        heat: [n, h, w] heatmaps over the network's input.
        inside: [h, w] bool, the pixels that take part.

    Returns:
        [n, h, w] int32; -1 at pixels that take no part.
    """
    chosen = inside.flatten().nonzero().flatten()
    side = -(-max(inside.shape) // BLOCKS)
    rows, columns = (torch.arange(n, device=chosen.device) // side for n in inside.shape)
    drawn = torch.randperm(BLOCKS * BLOCKS, generator=torch.Generator().manual_seed(0)).to(chosen.device)
    blocks = drawn[rows[:, None] * BLOCKS + columns]  # [h, w], a number for each block
    chosen = chosen[blocks.flatten()[chosen].argsort(stable=True)]
    order = heat.flatten(1)[:, chosen].argsort(dim=1, descending=True, stable=True)  # [n, P]
    numbers = torch.arange(len(chosen), dtype=torch.int32, device=heat.device).expand_as(order)
    ranks = torch.full_like(heat, -1, dtype=torch.int32).flatten(1)
    return ranks.scatter_(1, chosen[order], numbers).view_as(heat)


def fill(name: str, picture: Tensor, black: Tensor) -> Fill:
    """What hidden pixels show instead.

    Args:
        name: "blur" (the picture itself, blurred by a Gaussian), "black", or "inpaint" (colours spread from the pixels
            that stay visible, see `spread`).
        picture: [3, h, w], the network's input.
        black: [3, h, w], what the network's input is for a black picture.
    """
    if name == "inpaint":
        return lambda hidden: spread(picture, ~hidden)
    other = blurred(picture) if name == "blur" else black
    return lambda hidden: torch.where(hidden[:, None], other, picture)


def blurred(picture: Tensor) -> Tensor:
    """[3, h, w] blurred by a Gaussian whose deviation is the longest side over `BLUR`."""
    deviation = max(picture.shape[1:]) / BLUR
    radius = int(3 * deviation)
    offsets = torch.arange(-radius, radius + 1, device=picture.device, dtype=torch.float32)
    kernel = torch.exp(-((offsets / deviation) ** 2) / 2)
    kernel = (kernel / kernel.sum()).to(picture.dtype)
    padded = pad(picture[:, None], (radius,) * 4, mode="replicate")
    along = conv2d(padded, kernel.view(1, 1, -1, 1))
    return conv2d(along, kernel.view(1, 1, 1, -1))[:, 0]


def spread(picture: Tensor, known: Tensor) -> Tensor:
    """Fill unknown pixels from known ones: ever coarser means of what is known, taken where nothing finer is.

    The pull-push pyramid of Gortler et al. 1996, "The Lumigraph", section 3.4. Unlike black it leaves no edge of the
    mask for the model to see. With nothing known at all it is the picture's mean colour.

    Args:
        picture: [3, h, w].
        known: [b, h, w] bool.

    Returns:
        [b, 3, h, w].
    """
    weight = known[:, None].to(picture.dtype)
    finest = picture[None] * weight
    empty = picture.mean(dim=(1, 2)).view(1, -1, 1, 1)
    return torch.where(known[:, None], picture[None], _pushed(finest, weight, empty))


def _pushed(colours: Tensor, weight: Tensor, empty: Tensor) -> Tensor:
    """[b, 3, h, w] colours at one step of the pyramid: `colours` come weighted, in [b, 1, h, w] weights."""
    mean = colours / weight.clamp(min=1e-6)
    if min(weight.shape[2:]) == 1:
        return torch.where(weight > 0, mean, empty)
    coarse, heavy = (avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False) for x in (colours, weight))
    beneath = interpolate(_pushed(coarse, heavy, empty), weight.shape[2:], mode="bilinear")
    return torch.where(weight > 0, mean, beneath)
