"""Judge: every contender on identical objects, a row of values for each image."""

from __future__ import annotations

import time
import timeit
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detcam.engine import masking
from detcam.errors import DetcamError, InputError, MethodError
from detcam.evaluate.contenders import Contender
from detcam.evaluate.labels.base import Labels
from detcam.evaluate.labels.names import by_name
from detcam.evaluate.matching import match
from detcam.evaluate.metrics import faithfulness, stability
from detcam.evaluate.metrics.localisation import LOCALISATION, NEED_MASKS, Measure
from detcam.evaluate.published import PROTOCOLS, PublishedCurves, measures
from detcam.explainer import Explainer
from detcam.explanation import Explanation
from detcam.images import SUFFIXES, read_image
from detcam.runners.likeness import Likeness

# Reasons for undefined values.
BLANK = "the map is blank in the measured region"
NO_MASKS = "the labels give no mask for every object"
NO_SCORE = "s of the unmasked image is 0"
NOT_AGAIN = "the object is not detected again under noise, or its map is blank"
CONSTANT = "the map, or the map of the randomised model, is constant"
NO_WEIGHTS = "the contender is a function without weights to randomise"

Row = dict[str, Any]
Keep = Callable[[Path, str, Explanation], object]

COST = (
    Measure("seconds", "lower", "time of the image's explanation per object, with maps, without rendering", "cost"),
    Measure(
        "forwards", "lower", "time of the image's explanation, all objects, in plain forwards of the model", "cost"
    ),
)
MAPS = 48  # maps that are masked together: each keeps the rank of every pixel


@dataclass(frozen=True)
class Protocol:
    """Extent of an evaluation."""

    pictures: int | None = None  # number of images, in the order of their names; None: all
    # Of each image, the number of best-scored matched objects for deletion, insertion and stability; localisation takes
    # all.
    objects: int = 3
    fills: tuple[str, ...] = ("blur",)  # content of hidden pixels, see `masking.fill`
    steps: int = faithfulness.STEPS  # points of a deletion curve after the first
    stages: int = stability.STAGES  # steps of the cascade of randomised weights, see `stability.cascade`
    stability: int = 8  # number of images for noise and randomised weights
    # Contenders with more forwards and backwards per image are not judged for stability, which repeats every
    # explanation several times.
    expensive: int = 60
    memory: int = 256 * 2**20  # approximate bytes for a batch of masked forwards
    # Name of a published protocol for deletion and insertion, see `detcam.evaluate.published`; `fills` and `steps` have
    # no effect then.
    published: str | None = None

    @classmethod
    def quick(cls) -> Protocol:
        """A short protocol for a first impression: minutes on two cores."""
        return cls(pictures=2, objects=1, steps=4, stages=1, stability=1, expensive=10)

    def measures(self) -> list[Measure]:
        """All columns of the rows."""
        return [*(m for m, _ in LOCALISATION), *self.curves(), *stability.STABILITY, *COST]

    def curves(self) -> list[Measure]:
        """The columns of deletion and insertion."""
        if self.published:
            return measures()
        return [measure for fill in self.fills for measure in faithfulness.measures(fill)]


def pictures(folder: Path, protocol: Protocol) -> list[Path]:
    """The image files of a folder, by name; an InputError for a folder without images."""
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES) if folder.is_dir() else []
    if not paths:
        raise InputError(f"images {folder} is not a folder with images: give a folder of {' '.join(SUFFIXES)}")
    return paths[: protocol.pictures]


class Judge:
    """Compares the maps of all contenders, which explain the same objects in the same order.

    `keep` is called with the path of each image, a contender's name and its explanation. The options of `Explainer`
    select the objects: conf, iou, max_det, imgsz, device, target.
    """

    def __init__(
        self,
        model: Any,
        contenders: Sequence[Contender],
        labels: Labels,
        protocol: Protocol,
        keep: Keep | None = None,
        **options: Any,
    ) -> None:
        self._contenders, self._labels, self._protocol, self._keep = contenders, labels, protocol, keep
        self._reference = Explainer(model, "box", **options)
        adapter = self._reference.adapter
        self._names: dict[int, str] = getattr(adapter, "names", {})
        self._segments: str | None = getattr(adapter, "segments", None)
        self._warm: set[str] = set()  # contenders past their first explanation, which is slower

    def rows(self, paths: Sequence[Path], done: Collection[str] = ()) -> Iterator[Row]:
        """One row for each image that is not `done`: see `Judge.row`."""
        for place, path in enumerate(paths):
            if path.name not in done:
                yield self.row(path, place < self._protocol.stability)

    def row(self, path: Path, stable: bool) -> Row:
        """Judge an image.

        Returns:
            {"picture", "objects": [{"label", "class_id", "score", "iou", "maps": {contender: {measure: value}}}],
            "agreement": {"names", "matrix"}, "cascade": {contender: [...]}, "failed": {contender: why},
            "undefined": {measure: {contender: why}}}. Missing values are undefined.
        """
        image = read_image(path, *self._reference.adapter.reading)
        plain = self._reference(image)
        labels = by_name(self._labels.of(path, *image.shape[:2]), self._labels.names, self._names)
        matched = match(plain, labels, self._segments)
        row: Row = {"picture": path.name, "objects": [], "failed": {}, "undefined": {}}
        if not matched.objects:
            return row
        row["objects"] = [
            {
                "label": plain.labels[i],
                "class_id": int(plain.class_ids[i]),
                "score": round(float(plain.scores[i]), 5),
                "iou": round(iou, 4),
                "maps": {},
            }
            for i, iou in zip(matched.objects, matched.iou, strict=True)
        ]
        here = [c for c in self._contenders if c.only is None or path.name in c.only]
        explained = self._explained(image, here, plain, row)
        for name, explanation in explained.items():
            if self._keep is not None:
                self._keep(path, name, explanation)
            case = matched.case(explanation.render(matched.objects, dtype=torch.float32))
            for measure, function in LOCALISATION:
                why = NO_MASKS if case.masks is None and measure.name in NEED_MASKS else BLANK
                _note(row, name, measure.name, function(case), why)
        few = matched.objects[: self._protocol.objects]
        try:
            if self._protocol.published:
                objects = plain.objects.select(torch.tensor(few, device=plain.boxes.device))
                settings, labelled = PROTOCOLS[self._protocol.published], matched.boxes[: len(few)]
                curves = PublishedCurves(settings, self._reference, image, objects, labelled, self._protocol.memory)
                for name, explanation in explained.items():
                    maps = [explanation.maps[i] for i in few]
                    heat = masking.network_heat(maps, explanation.geometry.network)
                    for column, line in curves.values(heat).items():
                        _note(row, name, column, line)
            else:
                self._faithfulness(image, plain, explained, few, row)
        except MethodError as error:  # the family has no score for masked images
            for measure in self._protocol.curves():
                row["undefined"][measure.name] = dict.fromkeys(explained, str(error))
        row["agreement"] = {
            "names": list(explained),
            "matrix": [_listed(line) for line in stability.agreement(list(explained.values()), few)],
        }
        if stable:
            self._stability(image, explained, few, row)
        return row

    def _explained(
        self, image: np.ndarray, contenders: Sequence[Contender], plain: Explanation, row: Row
    ) -> dict[str, Explanation]:
        """The explanations of all contenders that succeed on this image; their cost goes into the row."""
        plain_forward = self._plain_forward(image)
        explained = {}
        for contender in contenders:
            try:
                explanation, seconds = _timed(contender, image)
                if contender.name not in self._warm and contender.sweep.passes(len(plain)) <= self._protocol.expensive:
                    explanation, seconds = _timed(contender, image)
                self._warm.add(contender.name)
            except DetcamError as error:
                row["failed"][contender.name] = str(error)
                continue
            if not torch.equal(explanation.objects.index, plain.objects.index):
                row["failed"][contender.name] = "explains other objects in this image than the reference"
                continue
            explained[contender.name] = explanation
            share = torch.full((len(row["objects"]),), seconds / len(plain))
            _note(row, contender.name, "seconds", share)
            _note(row, contender.name, "forwards", torch.full_like(share, seconds / plain_forward))
        return explained

    @torch.no_grad()
    def _plain_forward(self, image: np.ndarray) -> float:
        """Seconds of a forward, the minimum of two."""
        adapter = self._reference.adapter
        batch = adapter.prepare(image)[0][None].contiguous(memory_format=torch.channels_last)

        def forward() -> None:
            adapter.forward(batch, self._reference.max_det)
            _wait(batch.device)

        return min(timeit.repeat(forward, number=1, repeat=2))

    def _faithfulness(
        self, image: np.ndarray, plain: Explanation, explained: dict[str, Explanation], few: list[int], row: Row
    ) -> None:
        adapter = self._reference.adapter
        picture, geometry = adapter.prepare(image)
        black = adapter.prepare(np.zeros_like(image))[0]
        inside = masking.seen(geometry, picture.device)
        score = Likeness(adapter, plain.objects, self._reference.max_det)
        objects = torch.tensor(few, device=picture.device)
        batch = masking.batch_size(picture, self._protocol.memory)
        names = list(explained)
        step = max(MAPS // len(few), 1)
        for fill_name in self._protocol.fills:
            fill = masking.fill(fill_name, picture, black)
            ends = faithfulness.ends(score, fill, inside, objects, batch)
            for chunk in (names[i : i + step] for i in range(0, len(names), step)):
                maps = [explained[name].maps[i] for name in chunk for i in few]
                places = masking.places(masking.network_heat(maps, geometry.network), inside)
                owner, whole, hidden = (t.repeat(len(chunk)) for t in (objects, *ends))
                curves = faithfulness.curves(score, fill, places, owner, whole, hidden, batch, self._protocol.steps)
                for measure, values in zip(faithfulness.measures(fill_name), curves.values(), strict=True):
                    for name, line in zip(chunk, values.view(len(chunk), -1), strict=True):
                        _note(row, name, measure.name, line, NO_SCORE)

    def _stability(self, image: np.ndarray, explained: dict[str, Explanation], few: list[int], row: Row) -> None:
        row["cascade"] = {}
        for contender in self._contenders:
            plain = explained.get(contender.name)
            if plain is None:
                continue
            if (passes := contender.sweep.passes(len(plain))) > self._protocol.expensive:
                why = f"takes {passes} passes per image; stability is measured up to {self._protocol.expensive}"
                for measure in stability.STABILITY:
                    row["undefined"].setdefault(measure.name, {})[contender.name] = why
                continue
            draws = [stability.sensitivity(plain, contender.explain(stability.noisy(image, i)))[few] for i in (0, 1)]
            _note(row, contender.name, "sensitivity", torch.stack(draws).nanmean(dim=0), NOT_AGAIN)
            if isinstance(contender.explain, Explainer):
                changes = stability.cascade(contender.explain, image, plain, few, self._protocol.stages)
                _note(row, contender.name, "randomised", changes[-1], CONSTANT)
                row["cascade"][contender.name] = _listed(changes.nanmean(dim=1))
            else:
                row["undefined"].setdefault("randomised", {})[contender.name] = NO_WEIGHTS


def _timed(contender: Contender, image: np.ndarray) -> tuple[Explanation, float]:
    start = time.perf_counter()
    explanation = contender.explain(image)
    _wait(explanation.boxes.device)
    return explanation, time.perf_counter() - start


def _wait(device: torch.device) -> None:
    """Wait for the GPU to finish its queue."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _listed(values: Tensor) -> list[float | None]:
    """Rounded numbers for JSON, with None for NaN."""
    return [round(v, 4) if v == v else None for v in values.tolist()]


def _note(row: Row, name: str, measure: str, values: Tensor, why: str = "") -> None:
    """Add values of the first objects to a row; NaN is left out, with `why` as the reason."""
    for entry, value in zip(row["objects"], values.tolist(), strict=False):
        maps = entry["maps"].setdefault(name, {})
        if value == value:
            maps[measure] = round(value, 6)
        else:
            row["undefined"].setdefault(measure, {})[name] = why
