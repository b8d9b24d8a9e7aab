"""Comparison of two explanations of one image: objects are matched, and the maps of each match are compared."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from detcam.boxes import box_iou
from detcam.errors import InputError
from detcam.evaluate.metrics.stability import rank_correlation
from detcam.explanation import Explanation

IOU = 0.5
CELLS = 80  # along each side of the source image: the resolution of stride 8 at 640 pixels
SAMPLES = 2  # of a map along each side of a cell

MEASURES = {
    "similarity": "sum over cells of the smaller of the two heats, each map scaled to sum 1: 1 equal, 0 disjoint",
    "rank_correlation": "Spearman's, over all cells: 1 same order, 0 unrelated, -1 reversed",
    "cells": f"{CELLS} x {CELLS} over the source image, each the mean of {SAMPLES} x {SAMPLES} samples of the "
    "heatmap, which is normalised from minimum to maximum",
}


@dataclass(frozen=True)
class Pair:
    """An object in both explanations, or in only one of them; then all figures are None."""

    a: int | None  # position of the object in the first explanation
    b: int | None  # position of the object in the second explanation
    iou: float | None = None  # IoU of the two boxes, in [0, 1]
    similarity: float | None = None  # sum of minima of the maps, in [0, 1], see `similarities`; None if both are blank
    rank_correlation: float | None = None  # Spearman's, in [-1, 1]; None if a map is blank
    # For an object in only one explanation, the position in the other explanation of the object that overlaps it best:
    # an object of another class, or of the same class but paired with a better box; or None.
    instead: int | None = None

    @property
    def found_by(self) -> str:
        """The sides that have the object: "both", "a" or "b"."""
        return "both" if self.a is not None and self.b is not None else "b" if self.a is None else "a"


@dataclass(frozen=True)
class Comparison:
    """Two explanations of one image, object by object."""

    a: Explanation = field(repr=False)
    b: Explanation = field(repr=False)
    pairs: tuple[Pair, ...]  # those in both explanations by increasing similarity, then the others by decreasing score
    iou: float  # smallest IoU of the boxes of a match

    @property
    def both(self) -> list[Pair]:
        """The pairs of objects that are in both explanations."""
        return [pair for pair in self.pairs if pair.found_by == "both"]

    @property
    def similarity(self) -> float | None:
        """Mean similarity over the pairs that have a similarity, in [0, 1]; None if no pair has."""
        return mean(pair.similarity for pair in self.both)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings: the settings of both sides, the measures, and a row for each pair."""
        sides = {"a": self.a.settings, "b": self.b.settings}
        return {**sides, "iou": self.iou, "measures": MEASURES, "rows": list(self.rows())}

    def rows(self) -> Iterator[dict[str, Any]]:
        """Each pair as plain numbers and strings; "a", "b" and "instead" are None where there is no object."""
        for pair in self.pairs:
            yield {
                "found_by": pair.found_by,
                "a": _facts(self.a, pair.a),
                "b": _facts(self.b, pair.b),
                "instead": _facts(self.b if pair.b is None else self.a, pair.instead),
                "iou": _rounded(pair.iou),
                "similarity": _rounded(pair.similarity),
                "rank_correlation": _rounded(pair.rank_correlation),
            }


def compare(a: Explanation, b: Explanation, iou: float = IOU) -> Comparison:
    """Match the objects of two explanations of one image, and compare the maps of each match.

    The explanations may come from two models, methods, layers or targets. Maps are compared over the source image, so
    the models may place the image differently in their inputs.

    Args:
        a: the first explanation.
        b: the second explanation, of the same image.
        iou: smallest IoU of the boxes of a match, above 0 and up to 1.

    Returns:
        The Comparison, with the largest disagreement first.

    Raises:
        InputError: if the images differ in size, or `iou` is out of range.
    """
    if a.geometry.source != b.geometry.source:
        sizes = " and ".join(f"{width} x {height}" for height, width in (a.geometry.source, b.geometry.source))
        raise InputError(f"compare: the explanations are of images of {sizes} pixels: give two of one image")
    check_iou(iou)
    fits = overlaps(a.boxes, b.boxes)
    names, others = ([label.casefold() for label in side.labels] for side in (a, b))  # class numbers may differ
    alike = torch.tensor([[x == y for y in others] for x in names], dtype=torch.bool).view(fits.shape)
    matches = match(fits.where(alike, 0.0), iou)
    in_a, in_b = [i for i, _ in matches], [j for _, j in matches]
    shared, ranks = similarities(coarse(a, in_a), coarse(b, in_b))
    both = [
        Pair(i, j, float(fits[i, j]), _number(similarity), _number(rank))
        for (i, j), similarity, rank in zip(matches, shared.tolist(), ranks.tolist(), strict=True)
    ]
    both.sort(key=lambda pair: (2.0 if pair.similarity is None else pair.similarity, -_score(a, pair.a)))
    alone = [Pair(i, None, instead=_best(fits[i], iou)) for i in range(len(a)) if i not in in_a]
    alone += [Pair(None, j, instead=_best(fits[:, j], iou)) for j in range(len(b)) if j not in in_b]
    alone.sort(key=lambda pair: -max(_score(a, pair.a), _score(b, pair.b)))
    return Comparison(a, b, (*both, *alone), float(iou))


def check_iou(iou: float, name: str = "iou") -> None:
    """Check the smallest IoU of a match; an InputError if `iou` is not a number above 0 and up to 1."""
    if not isinstance(iou, Real) or not 0 < iou <= 1:
        raise InputError(f"{name}: expected a number above 0 and up to 1, got {iou!r}")


def overlaps(a: Tensor, b: Tensor) -> Tensor:
    """[N, M] IoU of boxes [N, 4] and [M, 4], xyxy, on the CPU; 1 for equal boxes, even empty ones."""
    a, b = a.float().cpu(), b.float().cpu()
    return box_iou(a, b).where((a[:, None] != b).any(dim=2), 1.0)


def match(fits: Tensor, least: float) -> list[tuple[int, int]]:
    """Match rows and columns of `fits` [N, M] one to one, by decreasing fit from `least` > 0 on; ties by position."""
    places = (fits >= least).nonzero().tolist()
    places.sort(key=lambda place: -float(fits[place[0], place[1]]))
    pairs: dict[int, int] = {}
    for i, j in places:
        if i not in pairs and j not in pairs.values():
            pairs[i] = j
    return list(pairs.items())


def coarse(explanation: Explanation, objects: list[int]) -> Tensor:
    """[n, CELLS * CELLS] float64 heat of some objects on a grid over the source image, row by row, on the CPU."""
    size = (CELLS * SAMPLES, CELLS * SAMPLES)
    heat = explanation.render(objects, size, torch.float32).cpu().double()
    return avg_pool2d(heat[:, None], SAMPLES).flatten(1)


def similarities(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Similarity of maps [n, P], float64 and not negative: the sum of minima, and the rank correlation.

    The sum of minima is "similarity" (SIM) or histogram intersection in Bylinskii et al. 2019, "What do different
    evaluation metrics tell us about saliency models?", section 4: each map is scaled to sum 1, and the smaller of the
    two values is summed over the cells. The similarity of a blank map and another map is 0.

    Returns [n] sums of minima in [0, 1], NaN where both maps are blank; [n] Spearman rank correlations in [-1, 1], NaN
    where a map is constant.
    """
    totals = a.sum(dim=1, keepdim=True), b.sum(dim=1, keepdim=True)
    shares = [heat / total.where(total > 0, 1.0) for heat, total in zip((a, b), totals, strict=True)]
    shared = torch.minimum(*shares).sum(dim=1).clamp(max=1)
    blank = (totals[0] + totals[1])[:, 0] == 0
    return shared.masked_fill(blank, torch.nan), rank_correlation(a, b).clamp(-1, 1)


def mean(values: Iterator[float | None]) -> float | None:
    """Mean of the values that are not None; None if there is none."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _facts(explanation: Explanation, i: int | None) -> dict[str, Any] | None:
    if i is None:
        return None
    return {
        "object": i,
        "label": explanation.labels[i],
        "score": round(float(explanation.scores[i]), 6),
        "box": [round(side, 3) for side in explanation.boxes[i].tolist()],
        "note": explanation.notes[i],
    }


def _best(fits: Tensor, least: float) -> int | None:
    """Position of the best of the fits [M]; None if it is below `least`."""
    return int(fits.argmax()) if bool((fits >= least).any()) else None


def _score(explanation: Explanation, i: int | None) -> float:
    return -1.0 if i is None else float(explanation.scores[i])


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
