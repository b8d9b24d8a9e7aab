"""What a model looks at over a whole set of pictures: per class, in and around the box; and what it gets wrong."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from detcam.analysis.box_frame import BOX, SIDE, Spread, Values, align
from detcam.analysis.truth import Truth
from detcam.saved import Saved, find, pictures

BINS = 20  # of the histogram of shares
MOSTLY = 0.5  # share of heat outside from which an object is recognised mostly by its surroundings
FINE = 2.0  # cells: a map says little about what lies in or beside a shorter box
KINDS = ("found", "right", "wrong", "missed")


@dataclass(frozen=True)
class Looked:
    """One object, and how its heat lies to its box.

    Attributes:
        saved: the explanation that holds its map; of a miss without one, an explanation of its picture.
        number: its position there; None: a miss without a map.
        kind: "found"; with labels "right" (matches one), "wrong" (matches none) or "missed" (a label that no object
            matches).
        label: its class name.
        score: in [0, 1]; of a miss that of the best candidate, None where nobody asked for it.
        box: x1, y1, x2, y2 in source pixels; of a miss the label's.
        note: what its explanation says about it, or None.
        spread: how its heat lies to its box; None without heat, or without a box of any area.
    """

    saved: Saved
    number: int | None
    kind: str
    label: str
    score: float | None
    box: list[float]
    note: str | None
    spread: Spread | None

    @property
    def telling(self) -> bool:
        """Whether most of its heat lies outside the box, and its map is fine enough to say so."""
        return self.spread is not None and self.spread.outside > MOSTLY and self.spread.cells >= FINE

    def to_dict(self, root: Path) -> dict[str, Any]:
        """As plain numbers and strings; the folder as seen from `root`."""
        facts = {name: getattr(self, name) for name in ("kind", "label", "score", "box", "note")}
        folder = Path(os.path.relpath(self.saved.folder, root)).as_posix()
        spread = None if self.spread is None else {name: _rounded(v) for name, v in asdict(self.spread).items()}
        return {"folder": folder, "object": self.number, **facts, "spread": spread}


@dataclass(frozen=True)
class Summary:
    """Where the heat of some objects lies.

    Attributes:
        objects: how many there are.
        measured: how many of them have heat and a box of some area; all but the counts is over these, None without any.
        unexplained: misses that nobody asked the model about, so that there is no map.
        mostly: how many have over half of their heat outside, and maps fine enough to say so.
        small: how many have boxes shorter than `FINE` cells of their maps.
        mean: [SIDE, SIDE] the mean of the objects' maps, each divided by its sum: the share of heat in each cell.
        zones: [3][3] shares of the heat above, beside, in and below the box: the sums of `mean` over squares of a box.
        farther: mean share of the heat farther away than that.
        others: mean share of the heat outside the own box and in the box of another object.
        quartiles: least, lower quartile, median, upper quartile and largest share outside the box.
        histogram: how many objects have a share outside in each of `BINS` equal parts of [0, 1].
        even: median share outside if heat were spread evenly over the pictures.
    """

    objects: int
    measured: int
    unexplained: int
    mostly: int
    small: int
    mean: Values | None = None
    zones: list[list[float]] | None = None
    farther: float | None = None
    others: float | None = None
    quartiles: list[float] | None = None
    histogram: list[int] | None = None
    even: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain numbers."""
        mean = None if self.mean is None else self.mean.tolist()
        return {name: _rounded(value) for name, value in {**asdict(self), "mean": mean}.items()}


@dataclass
class Looks:
    """What a model looks at, as one method shows it.

    Attributes:
        choices: what the maps were made with: model, method, layers, target.
        labelled: whether there was ground truth.
        pictures: how many were explained so.
        objects: all of them, in the order of the pictures, with misses after the found ones.
    """

    choices: dict[str, str]
    labelled: bool
    pictures: int = 0
    objects: list[Looked] = field(default_factory=list)
    _sums: dict[tuple[str, str], Values] = field(
        default_factory=lambda: defaultdict(lambda: np.zeros((SIDE, SIDE))), init=False, repr=False
    )

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of objects that there can be: "found" are all that the model found, right or wrong."""
        return KINDS if self.labelled else KINDS[:1]

    def of(self, kind: str = "found", label: str | None = None) -> list[Looked]:
        """The objects of a kind, and of a class unless that is None."""
        wanted = _parts(kind)
        return [one for one in self.objects if one.kind in wanted and label in (None, one.label)]

    def labels(self, kind: str = "found") -> list[str]:
        """The classes of a kind's objects, the most frequent first."""
        counts: dict[str, int] = defaultdict(int)
        for one in self.of(kind):
            counts[one.label] += 1
        return sorted(counts, key=lambda label: (-counts[label], label))

    def by_surroundings(self, kind: str = "found") -> list[Looked]:
        """The objects recognised mostly by their surroundings, the largest share outside first."""
        return sorted((one for one in self.of(kind) if one.telling), key=outside, reverse=True)

    def summary(self, kind: str = "found", label: str | None = None) -> Summary:
        """The figures over the objects of a kind, and of a class unless that is None."""
        chosen = self.of(kind, label)
        spreads = [one.spread for one in chosen if one.spread is not None]
        counts = Summary(
            objects=len(chosen),
            measured=len(spreads),
            unexplained=sum(one.number is None for one in chosen),
            mostly=sum(one.telling for one in chosen),
            small=sum(spread.cells < FINE for spread in spreads),
        )
        if not spreads:
            return counts
        sums = [total for (own, name), total in self._sums.items() if own in _parts(kind) and label in (None, name)]
        mean = np.sum(sums, axis=0) / len(spreads)
        zones = mean.reshape(3, BOX, 3, BOX).sum(axis=(1, 3))
        shares = [spread.outside for spread in spreads]
        return replace(
            counts,
            mean=mean,
            zones=zones.tolist(),
            farther=max(1 - float(zones.sum()), 0.0),
            others=float(np.mean([spread.others for spread in spreads])),
            quartiles=np.quantile(shares, [0, 0.25, 0.5, 0.75, 1]).tolist(),
            histogram=np.histogram(shares, BINS, (0, 1))[0].tolist(),
            even=float(np.median([spread.even for spread in spreads])),
        )

    def to_dict(self, root: Path) -> dict[str, Any]:
        """All figures as plain numbers and strings, folders as seen from `root`: what `looks.json` holds."""
        groups = {
            kind: {
                "all": self.summary(kind).to_dict(),
                "classes": {label: self.summary(kind, label).to_dict() for label in self.labels(kind)},
            }
            for kind in self.kinds
        }
        objects = [one.to_dict(root) for one in self.objects]
        return {"choices": self.choices, "pictures": self.pictures, "groups": groups, "objects": objects}

    def add(self, one: Looked, shares: Values | None) -> None:
        """Count an object; of its aligned map only the sum is kept."""
        self.objects.append(one)
        if shares is not None:
            self._sums[one.kind, one.label] += shares


def looks_at(
    root: str | os.PathLike[str], labels: str | os.PathLike[str] | None = None, folders: Sequence[Path] | None = None
) -> list[Looks]:
    """What a model looks at, over all explanations that `Explanation.save` or `detcam explain` wrote into a folder.

    Explanations by different models, methods, layers or targets are kept apart; of several of one picture by the same,
    the first counts. Those of regions that a user gave are left out, and those made by `ask` count as misses only.

    Args:
        root: the folder.
        labels: ground truth, see `detcam.evaluate.labels.read.read_labels`. None: nobody knows what is right.
        folders: of the explanations, `root` or below it. None: all that are there.

    Returns:
        One for each way of explaining, in the order in which they are first met.

    Raises:
        InputError: if there is no explanation, one is damaged, or the labels cannot be read or name none of the
            pictures.
    """
    groups = pictures(find(Path(root)) if folders is None else folders)
    return looks_of(groups, None if labels is None else Truth.read(Path(labels), groups))


def looks_of(groups: Iterable[Sequence[Saved]], truth: Truth | None) -> list[Looks]:
    """As `looks_at`, of explanations in the groups of `pictures`. Each map is read once and none is kept."""
    ways: dict[tuple[str, ...], Looks] = {}
    for group in groups:
        seen = set()
        for saved in group:
            way = tuple(saved.facets.values())
            if way in seen or not _is_of_detections(saved):
                continue
            seen.add(way)
            _count(ways.setdefault(way, Looks(saved.facets, truth is not None)), saved, truth)
    if truth is not None:
        truth.check(bool(ways))
    return list(ways.values())


def _is_of_detections(saved: Saved) -> bool:
    """Whether its objects are what the model found, not what a user asked about."""
    return "asked" not in saved.document and not {"prompts", "truth"} & saved.document["settings"].keys()


def _count(looks: Looks, saved: Saved, truth: Truth | None) -> None:
    """Add the objects of one picture, and its misses."""
    looks.pictures += 1
    right, misses = (set(), []) if truth is None else truth.of(saved)
    boxes = [found["box"] for found in saved.objects]
    for i, (found, raw) in enumerate(zip(saved.objects, saved.maps(), strict=True)):
        kind = "found" if truth is None else "right" if i in right else "wrong"
        looks.add(*_looked(saved, i, kind, found, raw, boxes[:i] + boxes[i + 1 :]))
    for miss in misses:
        facts: dict[str, Any] = {"label": miss.label, "box": miss.box, "score": None, "note": None}
        if miss.saved is None or miss.number is None:
            looks.add(*_looked(saved, None, "missed", facts, None, boxes))
        else:
            candidate, raw = miss.saved.objects[miss.number], miss.saved.maps()[miss.number]
            facts |= {"score": candidate["score"], "note": candidate["note"]}
            looks.add(*_looked(miss.saved, miss.number, "missed", facts, raw, boxes))


def _looked(
    saved: Saved,
    number: int | None,
    kind: str,
    facts: dict[str, Any],
    raw: np.ndarray | None,
    others: list[list[float]],
) -> tuple[Looked, Values | None]:
    """An object with its label, score, box and note in `facts`, and its map as its box sees it."""
    label, score, box, note = (facts[name] for name in ("label", "score", "box", "note"))
    has_area = box[2] > box[0] and box[3] > box[1]
    aligned = align(raw, saved.geometry, box, others) if raw is not None and has_area else None
    shares, spread = (None, None) if aligned is None else aligned
    return Looked(saved, number, kind, label, score, box, note, spread), shares


def outside(one: Looked) -> float:
    """The share of an object's heat outside its box; -1 if there is none to share."""
    return -1.0 if one.spread is None else one.spread.outside


def _parts(kind: str) -> tuple[str, ...]:
    """What a kind of `Looks.kinds` is made of."""
    return KINDS[:3] if kind == "found" else (kind,)


def _rounded(values: Any) -> Any:
    """A number, or numbers in lists, with as many digits as can tell anything; None stays None."""
    if isinstance(values, list):
        return [_rounded(value) for value in values]
    return None if values is None else round(values, 6)
