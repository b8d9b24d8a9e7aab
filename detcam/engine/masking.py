"""Masked network inputs: the order in which pixels are hidden, and their fill. Batched, on the device."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from detcam.engine.blur import blurred
from detcam.geometry import Geometry

PER_PIXEL = 64  # approximate bytes that a forward keeps for each pixel of the input
FILLS = ("blur", "black", "inpaint")
BLUR = 40  # longest side of the input over the standard deviation of the blur: 16 pixels at 640
BLOCKS = 40  # along the longest side of the input: tied pixels are hidden block by block
Fill = Callable[[Tensor], Tensor]  # from hidden [b, h, w] bool to images [b, 3, h, w]


def seen(geometry: Geometry, device: torch.device) -> Tensor:
    """[h, w] bool over the network's input: pixels of the source image, without the padding."""
    height, width = geometry.network
    (top, left), (rows, columns) = geometry.pad, geometry.resized
    inside = torch.zeros(height, width, dtype=torch.bool, device=device)
    inside[max(top, 0) : top + rows, max(left, 0) : left + columns] = True
    return inside


def batch_size(image: Tensor, memory: int) -> int:
    """The number of masked versions of an image [3, h, w] in a forward, for about `memory` bytes."""
    return max(memory // (image[0].numel() * PER_PIXEL), 1)


def network_heat(maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """[n, *size] float32: raw coarse maps [h, w] at the size of the network's input, after ReLU, bilinear."""
    positive = (m.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).clamp(min=0)[None, None].float() for m in maps)
    return torch.cat([interpolate(heat, size, mode="bilinear")[0] for heat in positive])


def random_blocks(count: int, inside: Tensor, seed: int = 0) -> Tensor:
    """[count, h, w] int32 ranks as of `places`, in random orders of blocks.

    Args:
        count: number of orders.
        inside: [h, w] bool, the pixels to rank.
        seed: of the orders.
    """
    side = -(-max(inside.shape) // BLOCKS)
    noise = torch.rand(count, BLOCKS, BLOCKS, generator=torch.Generator().manual_seed(seed)).to(inside.device)
    pixels = noise.repeat_interleave(side, dim=1).repeat_interleave(side, dim=2)
    return places(pixels[:, : inside.shape[0], : inside.shape[1]], inside)


def places(heat: Tensor, inside: Tensor) -> Tensor:
    """The rank of every pixel by decreasing heat: 0 for the hottest.

    Tied pixels are ranked in blocks, in a fixed random order of the blocks. Ties in row order would make the result of
    a map with few values depend on their position; ties in random order would hide the image under speckle.

    Args:
        heat: [n, h, w] heatmaps over the network's input.
        inside: [h, w] bool, the pixels to rank.

    Returns:
        [n, h, w] int32; -1 at the other pixels.
    """
    pixels = inside.flatten().nonzero().flatten()
    side = -(-max(inside.shape) // BLOCKS)
    rows, columns = (torch.arange(n, device=pixels.device) // side for n in inside.shape)
    shuffled = torch.randperm(BLOCKS * BLOCKS, generator=torch.Generator().manual_seed(0)).to(pixels.device)
    blocks = shuffled[rows[:, None] * BLOCKS + columns]  # [h, w], a number for each block
    pixels = pixels[blocks.flatten()[pixels].argsort(stable=True)]
    order = heat.flatten(1)[:, pixels].argsort(dim=1, descending=True, stable=True)  # [n, P]
    numbers = torch.arange(len(pixels), dtype=torch.int32, device=heat.device).expand_as(order)
    ranks = torch.full_like(heat, -1, dtype=torch.int32).flatten(1)
    return ranks.scatter_(1, pixels[order], numbers).view_as(heat)


def fill(name: str, picture: Tensor, black: Tensor, deviation: float | None = None) -> Fill:
    """The fill of hidden pixels: a function from [b, h, w] masks to [b, 3, h, w] images.

    Args:
        name: "blur" (the image itself under a Gaussian blur), "black", or "inpaint" (colours spread from the pixels
            that stay visible, see `spread`).
        picture: [3, h, w], the network's input.
        black: [3, h, w], the network's input for a black image.
        deviation: of the blur in pixels; None: a share of the input's size.
    """
    if name == "inpaint":
        return lambda hidden: spread(picture, ~hidden)
    deviation = max(picture.shape[1:]) / BLUR if deviation is None else deviation
    other = blurred(picture, deviation, "replicate") if name == "blur" else black
    return lambda hidden: torch.where(hidden[:, None], other, picture)


def spread(picture: Tensor, known: Tensor) -> Tensor:
    """Inpainting: unknown pixels take the mean of the known pixels at the finest scale that has any.

    The pull-push pyramid of Gortler et al. 1996, "The Lumigraph", section 3.4. Unlike a black fill it leaves no edges
    along the mask. Without any known pixel the fill is the mean colour of the image.

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
    """[b, 3, h, w] filled colours at one level of the pyramid, from colours times weights and [b, 1, h, w] weights."""
    mean = colours / weight.clamp(min=1e-6)
    if min(weight.shape[2:]) == 1:
        return torch.where(weight > 0, mean, empty)
    coarse, heavy = (avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False) for x in (colours, weight))
    beneath = interpolate(_pushed(coarse, heavy, empty), weight.shape[2:], mode="bilinear")
    return torch.where(weight > 0, mean, beneath)
