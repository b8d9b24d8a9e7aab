"""Box frame: a map resampled so that the object's box becomes the unit square in the middle of a grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detcam.geometry import Geometry

Values = NDArray[np.float64]
Box = Sequence[float]

BOX = 16  # cells along the box
MARGIN = 1  # box lengths shown on each side of the box
SIDE = BOX * (1 + 2 * MARGIN)
INSIDE = slice(BOX * MARGIN, BOX * (MARGIN + 1))
STEPS = np.arange(-MARGIN * BOX, (MARGIN + 1) * BOX + 1) / BOX


@dataclass(frozen=True)
class Spread:
    """Where the heat of one object lies relative to its box."""

    outside: float  # share of the heat outside the box, in [0, 1]
    others: float  # share of the heat outside the box and in the box of another object
    even: float  # value of `outside` if the heat were spread evenly over the image
    cells: float  # shorter side of the box in cells of the raw map; below 1 the map cannot tell inside from outside
    # Share of the surroundings, up to one box length around the box, where the map can show heat: inside the smallest
    # rectangle with all its cells that are not zero. In [0, 1]; 1 if the image ends with the box.
    sight: float


def align(raw: np.ndarray, geometry: Geometry, box: Box, others: Sequence[Box] = ()) -> tuple[Values, Spread] | None:
    """Resample a map into the frame of its box, and measure how much of the heat lies outside the box.

    Heat is that of `Explanation.heatmaps` (ReLU, minimum subtracted, bilinear between cell centres), divided by its sum
    over the image. Integrals are exact: fractions of pixels count, and the padding around the image does not.

    The raw coarse map [h, w] float32 covers the network's input; values that are not finite count as 0. Boxes, and
    `others` of other objects, are x1, y1, x2, y2 in source pixels, with x1 < x2 and y1 < y2.

    Returns [SIDE, SIDE] shares of the heat in the cells of the grid, whose sum falls short of 1 by the heat beyond the
    grid; and the `Spread`. None if no heat lies in the image.
    """
    heat = np.where(np.isfinite(raw), raw, 0).clip(min=0).astype(np.float64)
    heat /= heat.max() or 1  # avoids overflow in the sums
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
    # On the grid of all sides of all boxes, every box is a block of whole cells.
    boxes = np.array([*others, box], dtype=np.float64)
    x, y = np.unique(boxes[:, 0::2]), np.unique(boxes[:, 1::2])
    covered = np.zeros((len(y) - 1, len(x) - 1), dtype=bool)
    blocks = np.hstack([np.searchsorted(x, boxes[:, 0::2]), np.searchsorted(y, boxes[:, 1::2])])
    for left, right, top, bottom in blocks.tolist():
        covered[top:bottom, left:right] = True
    covered[top:bottom, left:right] = False  # the object's box, which comes last
    return shares, Spread(
        outside=max(1 - float(shares[INSIDE, INSIDE].sum()), 0.0),
        others=float(integrals(x, y)[covered].sum() / total),
        even=max(1 - seen, 0.0),
        cells=min(columns.cells_along(x2 - x1), rows.cells_along(y2 - y1)),
        sight=_sight(np.isfinite(raw) & (raw != 0), (rows, columns), box),
    )


def _sight(nonzero: NDArray[np.bool_], axes: tuple[_Axis, _Axis], box: Box) -> float:
    """See `Spread.sight`, for the cells [h, w] of a map that are not zero."""
    inside, around, told_inside, told_around = 1.0, 1.0, 1.0, 1.0  # areas in cells
    for axis, start, stop, used in zip(
        axes, box[1::-1], box[:1:-1], (nonzero.any(axis=1), nonzero.any(axis=0)), strict=True
    ):
        first, last = used.nonzero()[0][[0, -1]]
        length = MARGIN * (stop - start)
        within, wide = axis.cells_at([start, stop]), axis.cells_at([start - length, stop + length])
        inside *= within[1] - within[0]
        around *= wide[1] - wide[0]
        told_inside *= max(min(within[1], last + 1) - max(within[0], first), 0)
        told_around *= max(min(wide[1], last + 1) - max(wide[0], first), 0)
    return float((told_around - told_inside) / (around - inside)) if around > inside else 1.0


class _Axis:
    """One axis of the image (0: down, 1: across), and the cells of a map along it."""

    def __init__(self, geometry: Geometry, axis: int, cells: int) -> None:
        self._start, self._stop, self._gain, self._offset = geometry.axes[axis]
        self._scale, self._cells = cells / geometry.network[axis], cells

    def cells_along(self, pixels: float) -> float:
        """A length in source pixels as a length in cells."""
        return pixels * self._gain * self._scale

    def weights(self, edges: Sequence[float] | Values) -> Values:
        """[len(edges) - 1, cells] weights of the cells' values in the integrals from each edge to the next.

        Edges ascend, in source pixels. Between cell centres a map is linear: each value is the height of a hat function
        that reaches one cell to both sides. Beyond the outermost centres the map is constant, as if the border cells
        were repeated.
        """
        centres = np.arange(-1, self._cells + 1) + 0.5
        offset = np.clip(self.cells_at(edges)[:, None] - centres, -1, 1)
        # The integral of each hat up to an edge.
        hats = np.where(offset < 0, (1 + offset) ** 2 / 2, 1 - (1 - offset) ** 2 / 2)
        weights: Values = np.diff(hats, axis=0)
        weights[:, 1] += weights[:, 0]
        weights[:, -2] += weights[:, -1]
        return weights[:, 1:-1]

    def cells_at(self, edges: Sequence[float] | Values) -> Values:
        """Edges in source pixels, moved into the image and the network's view, in cells."""
        network = np.clip(edges, self._start, self._stop) * self._gain + self._offset
        places: Values = (network * self._scale).clip(0, self._cells)
        return places

    def length(self, start: float, stop: float) -> float:
        """The length in cells of the part of the image between two edges that the network saw."""
        return float(self.weights([start, stop]).sum())
