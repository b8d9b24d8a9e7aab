"""Bootstrap intervals of means and of paired differences, by resampling whole images."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DRAWS = 2000
LEVEL = 0.95
LEAST = 5  # images, for an interval: fewer say nothing of others

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A mean over objects with its bootstrap interval."""

    mean: float  # over the `count` objects with a defined value; NaN without any
    low: float  # ends of 95 % of the resampled means; NaN if the values are of fewer than `LEAST` images
    high: float  # ends of 95 % of the resampled means; NaN if the values are of fewer than `LEAST` images
    count: int  # number of objects
    pictures: int  # number of their images

    @property
    def sign(self) -> int:
        """1 or -1 if the whole interval lies on one side of 0, else 0."""
        return int(self.low > 0) - int(self.high < 0)


def bootstrap(values: Values, pictures: NDArray[np.int64], seed: int = 0) -> Interval:
    """The mean of `values` [n] and its 95 % percentile interval over resampled images.

    Objects of the same image, whose number is in `pictures` [n], are not independent, so whole images are resampled
    (Efron & Tibshirani 1993, "An Introduction to the Bootstrap", section 8; clusters). NaN values are left out. The
    values of a paired difference are `a - b`.
    """
    defined = ~np.isnan(values)
    values, pictures = values[defined], pictures[defined]
    if not len(values):
        return Interval(np.nan, np.nan, np.nan, 0, 0)
    _, place = np.unique(pictures, return_inverse=True)
    sums, counts = np.bincount(place, values), np.bincount(place)
    mean = float(values.mean())
    if len(sums) < LEAST:
        return Interval(mean, np.nan, np.nan, len(values), len(sums))
    resampled = np.random.default_rng(seed).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=DRAWS)
    means = (resampled @ sums) / (resampled @ counts)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(mean, float(low), float(high), len(values), len(sums))
