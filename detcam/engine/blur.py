"""Gaussian blur of maps and images, in torch."""

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad


def blurred(maps: Tensor, deviation: float, beyond: Literal["constant", "replicate"] = "constant") -> Tensor:
    """Maps [..., h, w] under a Gaussian of `deviation` cells, cut off at three deviations; 0 leaves them as they are.

    Args:
        maps: floating point.
        deviation: at least 0.
        beyond: the cells beyond the border are zero ("constant"), or repeat the border ("replicate").
    """
    if deviation <= 0:
        return maps
    reach = math.ceil(3 * deviation)
    offsets = torch.arange(-reach, reach + 1, device=maps.device, dtype=torch.float32)
    weights = torch.exp(-(offsets**2) / (2 * deviation**2))
    weights = (weights / weights.sum()).to(maps.dtype)
    padded = pad(maps.reshape(-1, 1, *maps.shape[-2:]), (reach,) * 4, mode=beyond)
    along = conv2d(padded, weights.view(1, 1, -1, 1))
    return conv2d(along, weights.view(1, 1, 1, -1)).view(maps.shape)
