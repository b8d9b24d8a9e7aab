"""Photographs with another background, and how well a number predicts what happens to the objects in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from detcam.engine.masking import spread
from detcam.evaluate.metrics.bootstrap import DRAWS, LEAST, LEVEL
from detcam.evaluate.metrics.stability import ranks

FEATHER = 1.5  # standard deviation in pixels of the border between object and background
MARGIN = 4  # pixels around an object that do not count as background, when the background is taken elsewhere
GRAIN = 40  # longest side over the standard deviation of the blurred noise
Values = NDArray[np.float64]
Picture = NDArray[np.uint8]  # [H, W, 3] RGB


@dataclass(frozen=True)
class Estimate:
    """A statistic with its 95 % bootstrap interval over images.

    Attributes:
        value: on the whole sample.
        draws: [D] on resampled images: two statistics of the same sample can be subtracted draw by draw.
    """

    value: float
    draws: Values

    def listed(self, images: int) -> list[float | None]:
        """[value, low, high] with four digits; no interval for fewer than `LEAST` images."""
        ends = np.nanquantile(self.draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) if images >= LEAST else [None, None]
        return [None if v is None or np.isnan(v) else round(float(v), 4) for v in (self.value, *ends)]

    def __sub__(self, other: Estimate) -> Estimate:
        return Estimate(self.value - other.value, self.draws - other.draws)


def emptied(image: Picture, objects: NDArray[np.bool_]) -> Picture:
    """The image with colours from around the objects [H, W] in their place."""
    wide = cv2.dilate(objects.astype(np.uint8), np.ones((2 * MARGIN + 1,) * 2, np.uint8)) > 0
    picture = torch.from_numpy(image).permute(2, 0, 1).float()
    filled = spread(picture, torch.from_numpy(~wide)[None])[0]
    return filled.permute(1, 2, 0).round().clamp(0, 255).byte().numpy()


def noise(shape: Sequence[int], rng: np.random.Generator) -> Picture:
    """Blurred noise in colour, with the mean and deviation of an average photograph."""
    white = rng.normal(size=shape).astype(np.float32)
    smooth = cv2.GaussianBlur(white, (0, 0), max(shape) / GRAIN)
    return np.clip(120 + 60 * smooth / smooth.std(), 0, 255).astype(np.uint8)


def shifted(image: Picture, objects: NDArray[np.bool_], background: Picture) -> Picture:
    """The objects [H, W] of an image before another background, which is resized, with a feathered border."""
    height, width = objects.shape
    behind = cv2.resize(background, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32)
    alpha = cv2.GaussianBlur(objects.astype(np.float32), (0, 0), FEATHER)[:, :, None]
    return np.round(alpha * image + (1 - alpha) * behind).astype(np.uint8)


def multiplicities(images: NDArray[np.int64], seed: int = 0) -> Values:
    """[1 + DRAWS, n]: how often each of n values counts, in the sample and in samples of resampled images."""
    _, place = np.unique(images, return_inverse=True)
    count = place.max() + 1
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=DRAWS)
    return np.concatenate([np.ones((1, len(images))), drawn[:, place]])


def auroc(values: Values, positive: NDArray[np.bool_], times: Values) -> Estimate:
    """Area under the ROC curve: how often a positive has the larger value than a negative; ties count half.

    Args:
        values, positive: [n].
        times: [1 + D, n], see `multiplicities`.
    """
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.concatenate([[True], np.diff(values[order]) > 0]))
    pros, cons = (np.add.reduceat(times[:, order] * part[order], starts, axis=1) for part in (positive, ~positive))
    below = cons.cumsum(axis=1) - cons / 2
    total = pros.sum(axis=1) * cons.sum(axis=1)
    areas = np.divide((pros * below).sum(axis=1), total, out=np.full(len(times), np.nan), where=total > 0)
    return Estimate(float(areas[0]), areas[1:])


def rank_correlation(values: Values, outcome: Values, times: Values, given: Sequence[Values] = ()) -> Estimate:
    """Spearman's correlation; with `given`, of what these do not explain: ranks are regressed on theirs first.

    Ranks are those of the whole sample in every draw.
    """
    a, b, *others = (ranks(torch.from_numpy(np.stack([v]))).numpy()[0] for v in (values, outcome, *given))
    design = np.stack([np.ones(len(a)), *others], axis=1)
    a, b = (v - design @ np.linalg.lstsq(design, v, rcond=None)[0] for v in (a, b))
    size = times.sum(axis=1)
    means = [times @ v / size for v in (a, b)]
    variances = [times @ v**2 / size - m**2 for v, m in zip((a, b), means, strict=True)]
    covariance = times @ (a * b) / size - means[0] * means[1]
    scale = np.sqrt(np.clip(variances[0] * variances[1], 0, None))
    rho = np.divide(covariance, scale, out=np.full(len(times), np.nan), where=scale > 1e-9)
    return Estimate(float(rho[0]), rho[1:])
