"""A map seen from its box: the box becomes a unit square, and what lies around it stays in sight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detcam.geometry import Geometry

Values = NDArray[np.float64]
Box = Sequence[float]

BOX = 16  # cells along the box
MARGIN = 1  # boxes shown on each side of it
SIDE = BOX * (1 + 2 * MARGIN)
INSIDE = slice(BOX * MARGIN, BOX * (MARGIN + 1))
STEPS = np.arange(-MARGIN * BOX, (MARGIN + 1) * BOX + 1) / BOX


@dataclass(frozen=True)
class Spread:
    """How the heat of one object lies to its box.

    Attributes:
        outside: share of the heat outside the box, in [0, 1].
        others: that part of it that lies in boxes of other objects.
        even: what `outside` would be if the heat were spread evenly over the picture.
        cells: the shorter side of the box in cells of the raw map: under 1 the map cannot tell inside from outside.
    """

    outside: float
    others: float
    even: float
    cells: float


def align(raw: np.ndarray, geometry: Geometry, box: Box, others: Sequence[Box] = ()) -> tuple[Values, Spread] | None:
    """The heat in and around a box: [SIDE, SIDE] its share in each cell of a grid, and how it lies to the box.

    Heat is what `Explanation.heatmaps` shows (ReLU, then the least value becomes 0, then bilinear between cell
    centres), divided by its sum over the picture. The integrals are exact, so parts of pixels count; what the network
    saw beside the picture, its padding, does not.

    Args:
        raw: [h, w] float32, a raw coarse map over the network's input; what is not finite counts as 0.
        geometry: how the picture lay in the network's input.
        box: x1, y1, x2, y2 in source pixels, with x1 < x2 and y1 < y2.
        others: the boxes of other objects.

    Returns:
        None if no heat lies in the picture. What is missing from 1 in the sum of the shares lies beyond the grid.
    """
    heat = np.where(np.isfinite(raw), raw, 0).clip(min=0).astype(np.float64)
    heat /= heat.max() or 1  # so that no sum overflows
    heat -= heat.min()
    rows, columns = (_Axis(geometry, axis, cells) for axis, cells in enumerate(heat.shape))

    def integrals(x: Sequence[float] | Values, y: Sequence[float] | Values) -> Values:
        result: Values = rows.weights(y) @ heat @ columns.weights(x).T
        return result

    height, width = geometry.source
    total = float(integrals([0, width], [0, height])[0, 0])
    if total <= 0:
        return None
    x1, y1, x2, y2 = box
    x, y = (start + (stop - start) * STEPS for start, stop in ((x1, x2), (y1, y2)))
    shares = integrals(x, y) / total
    seen = rows.length(y1, y2) * columns.length(x1, x2) / (rows.length(0, height) * columns.length(0, width))
    # In the squares between all sides of all boxes, each box is a block.
    every = np.array([*others, box], dtype=np.float64)
    x, y = np.unique(every[:, 0::2]), np.unique(every[:, 1::2])
    taken = np.zeros((len(y) - 1, len(x) - 1), dtype=bool)
    places = np.hstack([np.searchsorted(x, every[:, 0::2]), np.searchsorted(y, every[:, 1::2])])
    for left, right, top, bottom in places.tolist():
        taken[top:bottom, left:right] = True
    taken[top:bottom, left:right] = False  # the own box, the last
    return shares, Spread(
        outside=max(1 - float(shares[INSIDE, INSIDE].sum()), 0.0),
        others=float(integrals(x, y)[taken].sum() / total),
        even=max(1 - seen, 0.0),
        cells=min(columns.cells_along(x2 - x1), rows.cells_along(y2 - y1)),
    )


class _Axis:
    """One axis of the picture (0: down, 1: across), and the cells of a map along it."""

    def __init__(self, geometry: Geometry, axis: int, cells: int) -> None:
        self._pixels, self._resized = geometry.source[axis], geometry.resized[axis]
        self._pad, self._scale, self._cells = geometry.pad[axis], cells / geometry.network[axis], cells

    def cells_along(self, pixels: float) -> float:
        """How many cells long some source pixels are."""
        return pixels * self._resized / self._pixels * self._scale

    def weights(self, edges: Sequence[float] | Values) -> Values:
        """How much each cell counts between edges in source pixels, as far as the network saw the picture there."""
        resized = np.clip(edges, 0, self._pixels) * (self._resized / self._pixels)
        return _integrals(((resized + self._pad) * self._scale).clip(0, self._cells), self._cells)

    def length(self, start: float, stop: float) -> float:
        """The length in cells of what the network saw of the picture between two edges."""
        return float(self.weights([start, stop]).sum())


def _integrals(edges: Values, cells: int) -> Values:
    """[len(edges) - 1, cells] how much each cell's value counts in the integral between one edge and the next.

    Between cell centres a map is linear: each value is the height of a hat one cell wide to both sides. Beyond the
    outermost centres it is constant, as if the border cells were repeated.

    Args:
        edges: ascending, in cells from 0 to `cells`.
        cells: along the axis.
    """
    centres = np.arange(-1, cells + 1) + 0.5
    apart = np.clip(edges[:, None] - centres, -1, 1)
    hats = np.where(apart < 0, (1 + apart) ** 2 / 2, 1 - (1 - apart) ** 2 / 2)  # each hat's integral up to an edge
    weights: Values = np.diff(hats, axis=0)
    weights[:, 1] += weights[:, 0]
    weights[:, -2] += weights[:, -1]
    return weights[:, 1:-1]
