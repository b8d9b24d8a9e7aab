"""Rotated boxes: centre, size, and angle in radians (clockwise in the image)."""

import torch
from torch import Tensor

from detcam.geometry import Geometry


def decode_rotated(sides: Tensor, angles: Tensor, centre: Tensor) -> Tensor:
    """[B, 5, A] centre, size and angle of rotated boxes.

    Args:
        sides: [B, 4, A] distances from the anchors to the sides, along the axes of the box.
        angles: [B, 1, A] in radians.
        centre: [2, A] positions of the anchors.
    """
    first, last = sides.split(2, dim=1)
    x, y = ((last - first) / 2).split(1, dim=1)
    cos, sin = angles.cos(), angles.sin()
    offset = torch.cat([x * cos - y * sin, x * sin + y * cos], dim=1)
    return torch.cat([centre + offset, first + last, angles], dim=1)


def hulls(boxes: Tensor) -> Tensor:
    """[N, 4] (x1, y1, x2, y2) of the axis-aligned hulls of rotated boxes [N, 5] (centre, width, height, radians)."""
    cos, sin = boxes[:, 4].cos().abs(), boxes[:, 4].sin().abs()
    width, height = boxes[:, 2].abs(), boxes[:, 3].abs()
    reach = torch.stack([width * cos + height * sin, width * sin + height * cos], dim=1) / 2
    return torch.cat([boxes[:, :2] - reach, boxes[:, :2] + reach], dim=1)


def rotated_to_source(boxes: Tensor, geometry: Geometry) -> Tensor:
    """[N, 5] rotated boxes (centre, size, angle) of the network's input, scaled to source pixels as by Ultralytics.

    Each side is divided by the gain of one axis at any angle: the gains differ by less than the rounding of a pixel.
    """
    gain_y, gain_x = (new / old for new, old in zip(geometry.resized, geometry.source, strict=True))
    top, left = geometry.pad
    shift, gain = boxes.new_tensor([left, top, 0, 0, 0]), boxes.new_tensor([gain_x, gain_y, gain_x, gain_y, 1])
    return (boxes - shift) / gain
