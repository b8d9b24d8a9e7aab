"""Which object of one explanation is which of another, and how alike their maps are."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from detcam.boxes import overlap
from detcam.errors import InputError
from detcam.evaluate.metrics.stability import rank_correlation
from detcam.explanation import Explanation

IOU = 0.5
CELLS = 80  # along each side of the source picture: as fine as stride 8 sees a picture of 640 pixels
SAMPLES = 2  # of a map along each side of a cell

MEASURES = {
    "similarity": "sum over cells of the smaller of both heats, each map scaled to sum 1: 1 the same, 0 nothing shared",
    "rank_correlation": "Spearman's, over all cells: 1 the same order, 0 unrelated, -1 reversed",
    "cells": f"{CELLS} x {CELLS} over the source picture, each the mean of {SAMPLES} x {SAMPLES} samples of the "
    "heatmap, which is normalised from minimum to maximum",
}


@dataclass(frozen=True)
class Pair:
    """An object that both explanations have, or one that only one of them has.

    Attributes:
        a: its position in the first explanation, or None.
        b: its position in the second, or None.
        iou: overlap of the two boxes, in [0, 1]; None if one is missing.
        similarity: sum of minima of the two maps, in [0, 1], see `similarities`; None if one is missing or both are
            blank.
        rank_correlation: Spearman's, in [-1, 1]; None if one is missing or blank.
        instead: if only one explanation has it, the other's object that overlaps it best, as its position there: one of
            another class, or one of the same class that a better box was paired with; or None.
    """

    a: int | None
    b: int | None
    iou: float | None = None
    similarity: float | None = None
    rank_correlation: float | None = None
    instead: int | None = None

    @property
    def found_by(self) -> str:
        """Who has it: "both", "a" or "b"."""
        return "both" if self.a is not None and self.b is not None else "b" if self.a is None else "a"


@dataclass(frozen=True)
class Comparison:
    """Two explanations of one picture, object by object.

    Attributes:
        a: the first explanation.
        b: the second.
        pairs: objects that both have, those whose maps are least alike first; then those that only one has, the best
            scores first.
        iou: least overlap of the boxes of a pair.
    """

    a: Explanation = field(repr=False)
    b: Explanation = field(repr=False)
    pairs: tuple[Pair, ...]
    iou: float

    @property
    def both(self) -> list[Pair]:
        """The pairs whose object both explanations have."""
        return [pair for pair in self.pairs if pair.found_by == "both"]

    @property
    def similarity(self) -> float | None:
        """Mean similarity of the pairs that have one, in [0, 1]; None if none has."""
        return mean(pair.similarity for pair in self.both)

    def to_dict(self) -> dict[str, Any]:
        """The settings of both sides, the measures, and a row for each pair, as plain numbers and strings."""
        return {
            "a": self.a.settings,
            "b": self.b.settings,
            "iou": self.iou,
            "measures": MEASURES,
            "rows": list(self.rows()),
        }

    def rows(self) -> Iterator[dict[str, Any]]:
        """Each pair as plain numbers and strings; of "a", "b" and "instead" what is missing is None."""
        sides = {"a": self.a, "b": self.b}
        for pair in self.pairs:
            places = {"a": pair.a, "b": pair.b}
            other = {"a": "b", "b": "a", "both": "a"}[pair.found_by]
            yield {
                "found_by": pair.found_by,
                **{name: _facts(side, places[name]) for name, side in sides.items()},
                "instead": _facts(sides[other], pair.instead),
                "iou": _rounded(pair.iou),
                "similarity": _rounded(pair.similarity),
                "rank_correlation": _rounded(pair.rank_correlation),
            }


def compare(a: Explanation, b: Explanation, iou: float = IOU) -> Comparison:
    """Match the objects of two explanations of one picture, and measure how alike the maps of each match are.

    The explanations may come from two models, methods, layers or targets. Maps are compared over the source picture,
    so the models may differ in how they place a picture in their input.

    Args:
        a: one explanation.
        b: another, of the same picture.
        iou: least overlap of the boxes of a match, above 0 and up to 1.

    Returns:
        A Comparison, with the largest disagreement first.

    Raises:
        InputError: if the pictures differ in size, or `iou` is out of range.
    """
    if a.geometry.source != b.geometry.source:
        sizes = " and ".join(f"{width} x {height}" for height, width in (a.geometry.source, b.geometry.source))
        raise InputError(f"compare: the explanations are of pictures of {sizes} pixels: give two of the same picture")
    check_iou(iou)
    fits = overlaps(a.boxes, b.boxes)
    alike = torch.tensor([[same_class(x, y) for y in b.labels] for x in a.labels], dtype=torch.bool).view(fits.shape)
    matches = match(fits.where(alike, 0.0), iou)
    own, other = [i for i, _ in matches], [j for _, j in matches]
    shared, ranks = similarities(coarse(a, own), coarse(b, other))
    both = [
        Pair(i, j, float(fits[i, j]), _number(similarity), _number(rank))
        for (i, j), similarity, rank in zip(matches, shared.tolist(), ranks.tolist(), strict=True)
    ]
    both.sort(key=lambda pair: (2.0 if pair.similarity is None else pair.similarity, -_score(a, pair.a)))
    alone = [Pair(i, None, instead=_best(fits[i], iou)) for i in range(len(a)) if i not in own]
    alone += [Pair(None, j, instead=_best(fits[:, j], iou)) for j in range(len(b)) if j not in other]
    alone.sort(key=lambda pair: -max(_score(a, pair.a), _score(b, pair.b)))
    return Comparison(a, b, (*both, *alone), float(iou))


def check_iou(iou: float, name: str = "iou") -> None:
    """Complain about a least overlap that is out of range.

    Raises:
        InputError: if it is no number above 0 and up to 1.
    """
    if not isinstance(iou, Real) or not 0 < iou <= 1:
        raise InputError(f"{name}: expected a number above 0 and up to 1, got {iou!r}")


def same_class(one: str, other: str) -> bool:
    """Whether two models mean the same class. Their numbers may differ, so names count, whatever their case."""
    return one.casefold() == other.casefold()


def overlaps(a: Tensor, b: Tensor) -> Tensor:
    """[N, M] IoU of boxes [N, 4] and [M, 4], xyxy, on the CPU; 1 for equal boxes, even empty ones."""
    a, b = a.float().cpu(), b.float().cpu()
    rows = [overlap(box, b).where((box != b).any(dim=1), 1.0) for box in a]
    return torch.stack(rows) if rows else torch.zeros(0, len(b))


def match(fits: Tensor, least: float) -> list[tuple[int, int]]:
    """Pair rows with columns one to one: the best fit first, then the best of what is left; ties by position.

    Args:
        fits: [N, M], in [0, 1].
        least: a pair fits at least so well; above 0.
    """
    places = (fits >= least).nonzero().tolist()
    places.sort(key=lambda place: -float(fits[place[0], place[1]]))
    pairs: list[tuple[int, int]] = []
    rows: set[int] = set()
    columns: set[int] = set()
    for i, j in places:
        if i not in rows and j not in columns:
            pairs.append((i, j))
            rows.add(i)
            columns.add(j)
    return pairs


def coarse(explanation: Explanation, objects: list[int]) -> Tensor:
    """[n, CELLS * CELLS] float64 heat of some objects on a grid over the source picture, row by row, on the CPU."""
    size = (CELLS * SAMPLES, CELLS * SAMPLES)
    heat = explanation.render(objects, size, torch.float32).cpu().double()
    return avg_pool2d(heat[:, None], SAMPLES).flatten(1)


def similarities(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """How alike maps are: the sum of minima, and the rank correlation.

    The sum of minima is "similarity" (SIM) or histogram intersection in Bylinskii et al. 2019, "What do different
    evaluation metrics tell us about saliency models?", section 4: each map is scaled to sum 1, and the smaller of both
    is summed over the cells. A blank map shares nothing with one that is not.

    Args:
        a: [n, P] float64 maps, 0 or more.
        b: [n, P] others.

    Returns:
        [n] sums of minima in [0, 1], NaN where both maps are blank; [n] Spearman rank correlations in [-1, 1], NaN
        where one is constant.
    """
    totals = a.sum(dim=1, keepdim=True), b.sum(dim=1, keepdim=True)
    shares = [heat / total.where(total > 0, 1.0) for heat, total in zip((a, b), totals, strict=True)]
    shared = torch.minimum(*shares).sum(dim=1).clamp(max=1)
    blank = (totals[0] + totals[1])[:, 0] == 0
    return shared.masked_fill(blank, torch.nan), rank_correlation(a, b).clamp(-1, 1)


def mean(values: Iterator[float | None]) -> float | None:
    """The mean of what is not None; None if all is."""
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
    """The position of the best fit in [M], if it is good enough."""
    return int(fits.argmax()) if bool((fits >= least).any()) else None


def _score(explanation: Explanation, i: int | None) -> float:
    return -1.0 if i is None else float(explanation.scores[i])


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
