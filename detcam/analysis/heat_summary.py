"""Heat summary: where a model's heat lies over a set of images, in and around the boxes, per class and per mistake."""

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from detcam.analysis.box_frame import BOX, SIDE, Box, Spread, Values, align
from detcam.analysis.truth import Truth
from detcam.saved import Saved, find, pictures

BINS = 20  # of the histogram of shares
MOSTLY = 0.5  # share of heat outside the box above which an object is recognised mostly by its surroundings
SIGHT = 0.5  # share of the surroundings that a map must be able to show, to tell how much heat lies there
FINE = 2.0  # cells: the map of a shorter box cannot tell inside from outside
KINDS = ("found", "right", "wrong", "missed")
Facts = dict[str, Any]  # label, score, box and note of an object


@dataclass(frozen=True)
class ObjectHeat:
    """One object and where its heat lies relative to its box."""

    saved: Saved  # the explanation that holds its map; for a miss without a map, an explanation of its image
    number: int | None  # position of the object in `saved`; None: a miss without a map
    # "found"; with labels "right", "wrong" (matches no label) or "missed" (a label that no object matches).
    kind: str
    label: str  # class name
    score: float | None  # in [0, 1]; for a miss that of the best candidate, None if the model was not asked about it
    box: list[float]  # x1, y1, x2, y2 in source pixels; for a miss the label's box
    note: str | None  # the explanation's note on the object, or None
    spread: Spread | None  # where the heat lies; None if there is no heat or the box has no area

    @property
    def mostly_outside(self) -> bool:
        """Whether most of the heat lies outside the box, in a map fine enough to tell."""
        return self.spread is not None and self.spread.outside > MOSTLY and self.spread.cells >= FINE

    @property
    def sees_around(self) -> bool:
        """Whether the map can show heat around the box; one of the object's feature level holds a few cells only."""
        return self.spread is not None and (self.spread.sight >= SIGHT or self.spread.outside > MOSTLY)

    def to_dict(self, root: Path) -> dict[str, Any]:
        """The object as plain numbers and strings, with its folder relative to `root`."""
        facts = {name: getattr(self, name) for name in ("kind", "label", "score", "box", "note")}
        folder = Path(os.path.relpath(self.saved.folder, root)).as_posix()
        spread = None if self.spread is None else {name: _rounded(v) for name, v in asdict(self.spread).items()}
        return {"folder": folder, "object": self.number, **facts, "spread": spread}


@dataclass(frozen=True)
class Statistics:
    """Where the heat of a group of objects lies.

    If `blind` is more than half of `measured`, `mean` is over all measured objects, and everything below it is None:
    such maps lie in the box by construction. Otherwise everything below the counts is over the other objects.
    """

    objects: int  # number of objects
    measured: int  # number of objects with heat and a box of some area
    blind: int  # number of these whose map cannot show heat around the box, see `ObjectHeat.sees_around`
    unexplained: int  # number of misses without a map, because the model was not asked about them
    mostly: int  # number of objects with over half of their heat outside the box, in maps fine enough to tell
    small: int  # number of objects whose box is shorter than `FINE` cells of the map
    mean: Values | None = None  # [SIDE, SIDE] mean of the maps, each divided by its sum: the share of heat in each cell
    # [3][3] shares of the heat above, beside, in and below the box: sums of `mean` over squares of one box.
    zones: list[list[float]] | None = None
    farther: float | None = None  # mean share of the heat beyond these zones
    others: float | None = None  # mean share of the heat outside the object's box and in the box of another object
    quartiles: list[float] | None = None  # minimum, quartiles and maximum of the share outside the box
    histogram: list[int] | None = None  # number of objects whose share outside lies in each of `BINS` parts of [0, 1]
    even: float | None = None  # median share outside if heat were spread evenly over the images

    def to_dict(self) -> dict[str, Any]:
        """The statistics as plain numbers."""
        mean = None if self.mean is None else self.mean.tolist()
        return {name: _rounded(value) for name, value in {**asdict(self), "mean": mean}.items()}


@dataclass
class HeatSummary:
    """Summary of all explanations of a set that share model, method, layers and target."""

    choices: dict[str, str]  # the settings that they share: model, method, layers, target
    labelled: bool  # whether there was ground truth
    pictures: int = 0  # number of images
    # All objects in the order of the images; the misses of an image follow its detections.
    objects: list[ObjectHeat] = field(default_factory=list)
    _sums: dict[tuple[str, str, bool], Values] = field(
        default_factory=lambda: defaultdict(lambda: np.zeros((SIDE, SIDE))), init=False, repr=False
    )

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of objects in this summary. "found" are all detections, right or wrong."""
        return KINDS if self.labelled else KINDS[:1]

    def of(self, kind: str = "found", label: str | None = None) -> list[ObjectHeat]:
        """The objects of a kind; of one class unless `label` is None."""
        kinds = _parts(kind)
        return [item for item in self.objects if item.kind in kinds and label in (None, item.label)]

    def labels(self, kind: str = "found") -> list[str]:
        """The class names of a kind's objects, the most frequent first."""
        counts = Counter(item.label for item in self.of(kind))
        return sorted(counts, key=lambda label: (-counts[label], label))

    def by_surroundings(self, kind: str = "found") -> list[ObjectHeat]:
        """The objects recognised mostly by their surroundings, the largest share outside the box first."""
        return sorted((item for item in self.of(kind) if item.mostly_outside), key=outside, reverse=True)

    def statistics(self, kind: str = "found", label: str | None = None) -> Statistics:
        """Statistics over the objects of a kind; of one class unless `label` is None."""
        objects = self.of(kind, label)
        measured = [item for item in objects if item.spread is not None]
        telling = [item for item in measured if item.sees_around]
        refused = 2 * len(telling) < len(measured)
        spreads = [item.spread for item in (measured if refused else telling) if item.spread is not None]
        counts = Statistics(
            objects=len(objects),
            measured=len(measured),
            blind=len(measured) - len(telling),
            unexplained=sum(item.number is None for item in objects),
            mostly=sum(item.mostly_outside for item in objects),
            small=sum(item.spread is not None and item.spread.cells < FINE for item in measured),
        )
        if not spreads:
            return counts
        sums = [
            total
            for (part, name, sees_around), total in self._sums.items()
            if part in _parts(kind) and label in (None, name) and (refused or sees_around)
        ]
        mean = np.sum(sums, axis=0) / len(spreads)
        if refused:
            return replace(counts, mean=mean)
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
        """Everything in `looks.json`, as plain numbers and strings, with folders relative to `root`."""
        groups = {
            kind: {
                "all": self.statistics(kind).to_dict(),
                "classes": {label: self.statistics(kind, label).to_dict() for label in self.labels(kind)},
            }
            for kind in self.kinds
        }
        objects = [item.to_dict(root) for item in self.objects]
        return {"choices": self.choices, "pictures": self.pictures, "groups": groups, "objects": objects}

    def add(
        self, saved: Saved, number: int | None, kind: str, facts: Facts, raw: np.ndarray | None, others: list[Box]
    ) -> None:
        """Add an object and its map in the frame of its box; only the sum of the maps is kept."""
        label, score, box, note = (facts[name] for name in ("label", "score", "box", "note"))
        has_area = box[2] > box[0] and box[3] > box[1]
        aligned = None
        if raw is not None and number is not None and has_area:
            aligned = align(raw, saved.placement(number), box, others)
        item = ObjectHeat(saved, number, kind, label, score, box, note, aligned and aligned[1])
        self.objects.append(item)
        if aligned is not None:
            self._sums[item.kind, item.label, item.sees_around] += aligned[0]


def summarise(
    root: str | os.PathLike[str], labels: str | os.PathLike[str] | None = None, folders: Sequence[Path] | None = None
) -> list[HeatSummary]:
    """Summarise the explanations that `Explanation.save` or `detcam explain` wrote into a folder.

    Explanations by different models, methods, layers or targets are kept apart. If an image was explained several times
    with the same of these settings, the first explanation counts. Explanations of given prompts are left out, and those
    made by `ask` count as misses only.

    Args:
        root: the folder.
        labels: ground truth, see `detcam.evaluate.labels.read.read_labels`. None: no object is judged.
        folders: folders of the explanations, `root` or below it. None: all that are there.

    Returns:
        A summary for each combination of model, method, layers and target, in the order in which they first occur.

    Raises:
        InputError: if there is no explanation, one is damaged, or the labels cannot be read or name none of the images.
    """
    groups = pictures(find(Path(root)) if folders is None else folders)
    return summarise_groups(groups, None if labels is None else Truth.read(Path(labels), groups))


def summarise_groups(groups: Iterable[Sequence[Saved]], truth: Truth | None) -> list[HeatSummary]:
    """`summarise` for explanations grouped by `detcam.saved.pictures`. Each map is read once and none is kept."""
    summaries: dict[tuple[str, ...], HeatSummary] = {}
    for group in groups:
        seen = set()
        for saved in group:
            settings = tuple(saved.facets.values())
            is_answer = "asked" in saved.document or {"prompts", "truth"} & saved.document["settings"].keys()
            if settings in seen or is_answer:
                continue
            seen.add(settings)
            _add_image(summaries.setdefault(settings, HeatSummary(saved.facets, truth is not None)), saved, truth)
    if truth is not None:
        truth.check(bool(summaries))
    return list(summaries.values())


def _add_image(summary: HeatSummary, saved: Saved, truth: Truth | None) -> None:
    """Add the objects of one image, and its misses."""
    summary.pictures += 1
    right, misses = (set(), []) if truth is None else truth.of(saved)
    boxes = [facts["box"] for facts in saved.objects]
    for i, (facts, raw) in enumerate(zip(saved.objects, saved.maps(), strict=True)):
        kind = "found" if truth is None else "right" if i in right else "wrong"
        summary.add(saved, i, kind, facts, raw, boxes[:i] + boxes[i + 1 :])
    for miss in misses:
        facts = {"label": miss.label, "box": miss.box, "score": None, "note": None}
        if miss.saved is None or miss.number is None:
            summary.add(saved, None, "missed", facts, None, boxes)
        else:
            candidate, raw = miss.saved.objects[miss.number], miss.saved.maps()[miss.number]
            facts |= {"score": candidate["score"], "note": candidate["note"]}
            summary.add(miss.saved, miss.number, "missed", facts, raw, boxes)


def outside(item: ObjectHeat) -> float:
    """The share of an object's heat outside its box; -1 if it has no heat."""
    return -1.0 if item.spread is None else item.spread.outside


def _parts(kind: str) -> tuple[str, ...]:
    """The kinds of objects that a kind of `HeatSummary.kinds` comprises."""
    return KINDS[:3] if kind == "found" else (kind,)


def _rounded(values: Any) -> Any:
    """A number, or nested lists of numbers, to six digits; None stays None."""
    if isinstance(values, list):
        return [_rounded(value) for value in values]
    return None if values is None else round(values, 6)
