"""Channels: how many a network reads, and statistics that fit them."""

from collections.abc import Sequence

from torch import nn


def input_channels(module: nn.Module) -> int:
    """The number of channels that a network reads: 3 if any convolution reads 3, else those of the first one."""
    convolutions = [part.in_channels for part in module.modules() if isinstance(part, nn.Conv2d)]
    if 3 in convolutions or not convolutions:
        return 3
    for part in module.modules():
        if "Dct2d" in type(part).__name__:  # reads frequencies of red, green and blue
            return 3
        if type(part).__name__ in ("SpaceToDepth", "PixelUnshuffle"):
            return convolutions[0] // int(getattr(part, "downscale_factor", getattr(part, "bs", 1))) ** 2
    return convolutions[0]


def cycled(values: Sequence[float], channels: int) -> list[float]:
    """Means or deviations of red, green and blue for a network of any number of channels, repeated as in RF-DETR."""
    return [float(values[i % len(values)]) for i in range(channels)]
