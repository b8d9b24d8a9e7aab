"""Window: for each of n objects a small piece of a map, and its place on the map."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Window:
    """Pieces of a map, one per object, all of the same size and inside the map."""

    values: Tensor  # [n, C, kh, kw]
    start: np.ndarray  # [n, 2] int64: the (row, column) on the map of each piece's first cell

    @property
    def extent(self) -> tuple[int, int]:
        """(kh, kw), in cells."""
        return self.values.shape[2], self.values.shape[3]

    def rows(self, some: slice) -> Window:
        """The pieces of some of the objects."""
        return Window(self.values[some], self.start[some])

    def moved(self, start: np.ndarray, extent: tuple[int, int]) -> Window:
        """The same values in windows at other places [n, 2]; zero where these reach beyond the old windows."""
        offset = start - self.start
        if extent == self.extent and not offset.any():
            return self
        return Window(gather(self.values, np.arange(len(start)), offset, extent), start)

    def spread(self, shape: tuple[int, ...], images: np.ndarray) -> list[Tensor]:
        """One whole tensor of `shape` [B, C, h, w] for each object, zero outside its piece of its image."""
        if shape == (1, *self.values.shape[1:]):
            return list(self.values.split(1))
        height, width = self.extent
        whole = []
        for values, (y, x), image in zip(self.values, self.start.tolist(), images.tolist(), strict=True):
            tensor = values.new_zeros(shape)
            tensor[image, :, y : y + height, x : x + width] = values
            whole.append(tensor)
        return whole


def gather(maps: Tensor, rows: np.ndarray, start: np.ndarray, extent: tuple[int, int]) -> Tensor:
    """[n, C, *extent] pieces of maps [m, C, h, w], piece i from row `rows[i]` at `start[i]`; zero beyond the map.

    May be a view: do not write into it.
    """
    size = maps.shape[2], maps.shape[3]
    n = len(rows)
    stop = start + extent
    within = bool((start >= 0).all() and (stop <= size).all())
    by_cell = maps.permute(0, 2, 3, 1)  # [m, h, w, C]: a row of a channels-last map is contiguous
    if within and n == 1:  # no copy
        row, (y, x) = int(rows[0]), start[0].tolist()
        return maps[row : row + 1, :, y : y + extent[0], x : x + extent[1]]
    if within:
        places = zip(rows.tolist(), start.tolist(), stop.tolist(), strict=True)
        return torch.stack([by_cell[row, y:v, x:u] for row, (y, x), (v, u) in places]).permute(0, 3, 1, 2)
    pieces = by_cell.new_zeros((n, *extent, maps.shape[1]))
    first, last = np.maximum(start, 0), np.minimum(stop, size)
    for i, (row, (y, x), (v, u), (top, left)) in enumerate(
        zip(rows.tolist(), first.tolist(), last.tolist(), start.tolist(), strict=True)
    ):
        if v > y and u > x:
            pieces[i, y - top : v - top, x - left : u - left] = by_cell[row, y:v, x:u]
    return pieces.permute(0, 3, 1, 2)


def cut(maps: Tensor, images: np.ndarray, start: np.ndarray, extent: tuple[int, int]) -> Tensor:
    """[n, C, *extent] pieces of `maps` [B, C, h, w], each from its image [n] and its place [n, 2]."""
    if tuple(maps.shape[2:]) == extent:
        return maps.expand(len(images), -1, -1, -1) if len(maps) == 1 else maps[torch.from_numpy(images)]
    return gather(maps, images, start, extent)


def fitted(values: Tensor, start: np.ndarray, size: tuple[int, int]) -> Window:
    """Windows that may reach over the border of a map of `size`, moved inside; values beyond the border are dropped."""
    extent = min(values.shape[2], size[0]), min(values.shape[3], size[1])
    inside = np.clip(start, 0, np.subtract(size, extent))
    return Window(values, start).moved(inside, extent)


def union(windows: list[Window], size: tuple[int, int]) -> Window:
    """The sum of windows of the same objects on the same map of `size`, in the smallest windows around all of them."""
    first = np.min([window.start for window in windows], axis=0)
    last = np.max([window.start + window.extent for window in windows], axis=0)
    height, width = (last - first).max(axis=0).tolist()
    start = np.minimum(first, np.subtract(size, (height, width)))
    total, *others = (window.moved(start, (height, width)).values for window in windows)
    for other in others:
        total = total + other
    return Window(total, start)
