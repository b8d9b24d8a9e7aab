"""Canvas: coarse maps of several sizes as one tensor, their common scale, and their resize."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from detcam import ops


def common_canvas(maps: list[Tensor], device: torch.device) -> tuple[Tensor, list[tuple[int, int]]]:
    """Pad maps of several sizes to one tensor [N, h, w] for a single operator call; also their original sizes.

    Smaller maps are padded with their border cells: a resize assumes the same beyond the border, and neither the
    minimum nor the maximum changes.
    """
    shapes = [(m.shape[0], m.shape[1]) for m in maps]
    height = max((h for h, _ in shapes), default=1)
    width = max((w for _, w in shapes), default=1)
    canvas = torch.empty((len(maps), height, width), dtype=torch.float32, device=device)
    for shape in set(shapes):
        places = [i for i, s in enumerate(shapes) if s == shape]
        stack = torch.stack([maps[i] for i in places]).float()
        beyond = (0, width - shape[1], 0, height - shape[0])
        canvas[places] = pad(stack[:, None], beyond, mode="replicate")[:, 0]
    return canvas, shapes


def scale_together(maps: list[Tensor]) -> list[Tensor]:
    """ReLU, then one affine scaling of all maps to [0, 1]; it commutes with the bilinear resize."""
    positive = [torch.nan_to_num(m, nan=0.0, posinf=0.0, neginf=0.0).clamp(min=0) for m in maps]
    if not positive:
        return positive
    low = torch.stack([m.amin() for m in positive]).amin()
    span = torch.stack([m.amax() for m in positive]).amax() - low
    return [(m - low) / span if span > 0 else torch.zeros_like(m) for m in positive]


def resized(
    maps: Tensor,
    windows: Tensor,
    size: tuple[int, int],
    normalize: str = "none",
    relu: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Maps [N, h, w] as [N, *size], bilinear: of each the window (left, top, right, bottom) in cells."""
    n = len(maps)
    if not n or 0 in size:
        return torch.empty((n, *size), dtype=dtype, device=maps.device)
    integer = not dtype.is_floating_point and normalize == "none"
    own, ones = torch.arange(n, device=maps.device), maps.new_ones(n, 1)
    kind = torch.float32 if integer else dtype
    full = ops.cam_maps(maps[:, None], ones, size, own, normalize=normalize, relu=relu, dtype=kind, window=windows)
    return full.mul_(255).round_().to(dtype) if integer else full
