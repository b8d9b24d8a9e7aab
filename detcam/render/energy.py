"""Energy in the box: the share of a heatmap inside the object's box, computed from the coarse map."""

import math
from functools import lru_cache

import torch
from torch import Tensor

from detcam import ops
from detcam.geometry import Geometry


def energies(maps: list[Tensor], boxes: Tensor, geometry: Geometry) -> list[float]:
    """The share of each heatmap's sum that lies inside the object's box.

    The share equals that of the heatmap at source resolution, the bilinear resize of `relu(map)`: a pixel's heat is a
    weighted mean of the cells around it, so the sum over a box is a weighted sum of cells, and each weight is the
    product of a row weight and a column weight.

    Args:
        maps: N raw coarse maps [h, w] over the network's input.
        boxes: [N, 4] xyxy in source pixels; a pixel is inside if its centre is.
        geometry: placement of the image in the network's input.

    Returns:
        N numbers in [0, 1]; nan where the map is zero.
    """
    shapes = sorted({(m.shape[0], m.shape[1]) for m in maps})
    sums = {shape: _running_sums(shape, geometry, boxes.device) for shape in shapes}
    shares = []
    for raw, (x1, y1, x2, y2) in zip(maps, boxes.tolist(), strict=True):
        rows, columns = sums[(raw.shape[0], raw.shape[1])]
        heat = raw.float().nan_to_num(0.0, 0.0, 0.0).relu()
        inside = _between(rows, y1, y2) @ heat @ _between(columns, x1, x2)
        shares.append(inside / (rows[-1] @ heat @ columns[-1]))
    return torch.stack(shares).clamp(max=1).tolist() if shares else []


@lru_cache(maxsize=32)
def _running_sums(shape: tuple[int, int], geometry: Geometry, device: torch.device) -> tuple[Tensor, Tensor]:
    """[H + 1, h] and [W + 1, w] weight of each cell in the first 0, 1, 2, ... rows and columns of the image."""
    left, top, right, bottom = geometry.window(shape)
    sums = []
    seen = geometry.seen(geometry.source)
    for cells, pixels, start, stop, part in (
        (shape[0], geometry.source[0], top, bottom, seen[0]),
        (shape[1], geometry.source[1], left, right, seen[1]),
    ):
        basis = torch.eye(cells, device=device)[:, None, :, None]  # [cells, 1, cells, 1]: a single cell is 1
        index = torch.arange(cells, device=device)
        weights = ops.cam_maps(
            basis, basis.new_ones(cells, 1), (pixels, 1), index, normalize="none", window=(0.0, start, 1.0, stop)
        )[:, :, 0]
        weights[:, : part.start] = weights[:, part.stop :] = 0
        sums.append(torch.cat([weights.new_zeros(cells, 1), weights.cumsum(dim=1)], dim=1).T)
    return sums[0], sums[1]


def _between(sums: Tensor, start: float, stop: float) -> Tensor:
    """Weight of each cell in the pixels whose centres lie in [start, stop)."""
    first, last = (min(max(math.ceil(edge - 0.5), 0), len(sums) - 1) for edge in (start, stop))
    return sums[max(first, last)] - sums[first]
