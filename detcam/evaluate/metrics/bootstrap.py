"""Means with intervals, and differences on identical objects, by resampling whole pictures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DRAWS = 2000
LEVEL = 0.95

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A mean over objects with its bootstrap interval.

    Attributes:
        mean: over the `count` objects whose value is defined; NaN without any.
        low, high: of 95 % of the resampled means; NaN if all values lie in one picture.
        count: objects.
    """

    mean: float
    low: float
    high: float
    count: int

    @property
    def sign(self) -> int:
        """1 or -1 if the whole interval lies on one side of 0, else 0."""
        return int(self.low > 0) - int(self.high < 0)


def bootstrap(values: Values, pictures: NDArray[np.int64], seed: int = 0) -> Interval:
    """The mean of `values` [n] and its 95 % percentile interval over resampled pictures.

    Objects of one picture are no independent draws, so pictures are drawn, with all their objects (Efron & Tibshirani
    1993, "An Introduction to the Bootstrap", section 8; clusters). NaN values are left out.

    Args:
        values: [n] float64, one per object.
        pictures: [n] int64, the picture of each.
        seed: of the draws.
    """
    defined = ~np.isnan(values)
    values, pictures = values[defined], pictures[defined]
    if not len(values):
        return Interval(np.nan, np.nan, np.nan, 0)
    _, place = np.unique(pictures, return_inverse=True)
    sums, counts = np.bincount(place, values), np.bincount(place)
    mean = float(values.mean())
    if len(sums) < 2:
        return Interval(mean, np.nan, np.nan, len(values))
    drawn = np.random.default_rng(seed).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=DRAWS)
    means = (drawn @ sums) / (drawn @ counts)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(mean, float(low), float(high), len(values))


def paired(a: Values, b: Values, pictures: NDArray[np.int64], seed: int = 0) -> Interval:
    """The mean of a - b over the objects where both [n] are defined, with its interval: see `bootstrap`."""
    return bootstrap(a - b, pictures, seed)
