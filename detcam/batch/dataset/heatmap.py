"""Coarse maps as bytes of 256 levels, row by row, for a Parquet column."""

from dataclasses import dataclass

import numpy as np

LEVELS = 255


@dataclass(frozen=True)
class Packed:
    """A coarse map after ReLU; a cell's value is `low + level / 255 * (high - low)`.

    The error is at most (high - low) / 510, so 1/510 of the peak, and the error of a heatmap (minimum to maximum, see
    `Explanation.render`) is at most 1/510. Cells below zero, which no heatmap shows, and cells that are not finite
    become zero.
    """

    levels: bytes  # rows * columns bytes, row by row from the top left
    rows: int  # cells from top to bottom of the network's input
    columns: int  # cells from left to right
    low: float  # the value of level 0, at least 0
    high: float  # the value of level 255, the map's peak


def pack(raw: np.ndarray) -> Packed:
    """Pack a raw coarse map [h, w] float32."""
    positive = np.where(np.isfinite(raw), raw, 0).clip(min=0).astype(np.float32)
    low, high = positive.min(), positive.max()
    share = (positive - low) / (high - low) if high > low else np.zeros_like(positive)
    levels = np.rint(share * LEVELS).astype(np.uint8)
    return Packed(levels.tobytes(), raw.shape[0], raw.shape[1], float(low), float(high))


def unpack(packed: Packed) -> np.ndarray:
    """The map [h, w] float32; a ValueError if the number of bytes does not match the shape."""
    levels = np.frombuffer(packed.levels, np.uint8).reshape(packed.rows, packed.columns)
    low, high = np.float32(packed.low), np.float32(packed.high)
    values: np.ndarray = low + levels.astype(np.float32) / LEVELS * (high - low)
    return values
