"""Judges pictures one by one: every contender on identical objects, one row of values for each picture."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from detcam.errors import DetcamError, InputError, MethodError
from detcam.evaluate.contenders import Contender
from detcam.evaluate.labels.base import Labels
from detcam.evaluate.labels.names import by_name
from detcam.evaluate.matching import match
from detcam.evaluate.metrics import faithfulness, masking, stability
from detcam.evaluate.metrics import localisation as metrics
from detcam.evaluate.metrics.localisation import Measure
from detcam.explainer import Explainer
from detcam.explanation import Explanation
from detcam.images import SUFFIXES, read_image

# Why a value is not defined.
BLANK = "the map is blank where it is measured"
NO_MASKS = "the labels give no mask for every object"
NO_SCORE = "the unchanged picture's s is 0"
NOT_AGAIN = "the object is not found again under noise, or its map is blank"
CONSTANT = "the map, or that of the randomised model, is the same at every cell"
NO_WEIGHTS = "it is explained by a function, which has no weights to randomise"

Row = dict[str, Any]
Keep = Callable[[Path, str, Explanation], object]

COST = (
    Measure(
        "seconds", "lower", "time of the picture's explanation over its objects, maps included, rendering not", "cost"
    ),
    Measure(
        "forwards", "lower", "time of the picture's explanation, all objects, in bare forwards of the model", "cost"
    ),
)
TOGETHER = 48  # maps whose masked pictures are made together: each keeps an order of all pixels
PER_PIXEL = 64  # bytes that a forward keeps alive for each pixel of the input, roughly


@dataclass(frozen=True)
class Protocol:
    """How much is judged.

    Attributes:
        pictures: how many, in the order of their names; None: all.
        objects: of each picture, the best-scored matched ones whose deletion, insertion and stability is judged; all
            are judged for localisation.
        fills: what hidden pixels show, see `masking.fill`.
        steps: points of a deletion curve after the first.
        stages: parts of the model that are randomised one after the other, see `stability.cascade`.
        stability: pictures whose maps are judged for noise and randomised weights.
        dear: contenders that sweep more forwards and backwards a picture are not judged for stability, which explains
            every picture several times more.
        memory: bytes that a batch of masked forwards may take, roughly.
    """

    pictures: int | None = None
    objects: int = 3
    fills: tuple[str, ...] = ("blur",)
    steps: int = faithfulness.STEPS
    stages: int = stability.STAGES
    stability: int = 8
    dear: int = 60
    memory: int = 256 * 2**20

    @classmethod
    def quick(cls) -> Protocol:
        """Enough to see that all runs, and which way it points: minutes on two cores."""
        return cls(pictures=2, objects=1, steps=4, stages=1, stability=1, dear=10)

    def measures(self) -> list[Measure]:
        """All columns that rows have."""
        fills = [measure for fill in self.fills for measure in faithfulness.measures(fill)]
        return [*(m for m, _ in metrics.LOCALISATION), *fills, *stability.STABILITY, *COST]


def pictures(folder: Path, protocol: Protocol) -> list[Path]:
    """The image files in a folder, by name.

    Raises:
        InputError: if there are none.
    """
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES) if folder.is_dir() else []
    if not found:
        raise InputError(f"images {folder} is no folder with pictures: give a folder of {' '.join(SUFFIXES)}")
    return found[: protocol.pictures]


class Judge:
    """Judges the maps of all contenders for the same objects.

    Args:
        model: see `Explainer`.
        contenders: who takes part; all must explain the same objects in the same order.
        labels: the ground truth.
        protocol: how much is judged.
        keep: called with each picture's path, a contender's name and its explanation.
        options: those of `Explainer` that decide what is an object: conf, iou, max_det, imgsz, device, target.
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
        self._warm: set[str] = set()  # contenders whose first explanation, which sets things up, is behind them

    def rows(self, paths: Sequence[Path], done: Collection[str] = ()) -> Iterator[Row]:
        """One row for each picture that is not `done`: see `Judge.row`."""
        for place, path in enumerate(paths):
            if path.name not in done:
                yield self.row(path, place < self._protocol.stability)

    def row(self, path: Path, stable: bool) -> Row:
        """Judge one picture.

        Returns:
            {"picture", "objects": [{"label", "class_id", "score", "iou", "maps": {contender: {measure: value}}}],
            "agreement": {"names", "matrix"}, "cascade": {contender: [...]}, "failed": {contender: why},
            "undefined": {measure: {contender: why}}}. Values that are missing are not defined.
        """
        image = read_image(path)
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
                "iou": round(fit, 4),
                "maps": {},
            }
            for i, fit in zip(matched.objects, matched.iou, strict=True)
        ]
        here = [c for c in self._contenders if c.only is None or path.name in c.only]
        explained = self._explained(image, here, plain, row)
        for name, explanation in explained.items():
            if self._keep is not None:
                self._keep(path, name, explanation)
            case = matched.case(explanation.render(matched.objects, dtype=torch.float32))
            for metric in metrics.localisation():
                why = NO_MASKS if case.masks is None and metric.measure.name in metrics.NEED_MASKS else BLANK
                _note(row, name, metric.measure.name, metric.update(case), why)
        few = matched.objects[: self._protocol.objects]
        try:
            self._faithfulness(image, plain, explained, few, row)
        except MethodError as error:  # of the family, whatever the map
            for measure in (m for fill in self._protocol.fills for m in faithfulness.measures(fill)):
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
        """The explanations of all contenders that manage this picture; their cost goes into the row."""
        bare = self._bare_forward(image)
        explained = {}
        for contender in contenders:
            try:
                explanation, seconds = _timed(contender, image)
                if contender.name not in self._warm and contender.sweep.passes(len(plain)) <= self._protocol.dear:
                    explanation, seconds = _timed(contender, image)
                self._warm.add(contender.name)
            except DetcamError as error:
                row["failed"][contender.name] = str(error)
                continue
            if not torch.equal(explanation.objects.index, plain.objects.index):
                row["failed"][contender.name] = "found other objects in this picture than the reference did"
                continue
            explained[contender.name] = explanation
            share = torch.full((len(row["objects"]),), seconds / len(plain))
            _note(row, contender.name, "seconds", share)
            _note(row, contender.name, "forwards", torch.full_like(share, seconds / bare))
        return explained

    @torch.no_grad()
    def _bare_forward(self, image: np.ndarray) -> float:
        """Seconds of one forward, the better of two."""
        adapter = self._reference.adapter
        batch = adapter.prepare(image)[0][None].contiguous(memory_format=torch.channels_last)
        times = []
        for _ in range(2):
            start = time.perf_counter()
            adapter.forward(batch, self._reference.max_det)
            _wait(batch.device)
            times.append(time.perf_counter() - start)
        return min(times)

    def _faithfulness(
        self, image: np.ndarray, plain: Explanation, explained: dict[str, Explanation], few: list[int], row: Row
    ) -> None:
        adapter = self._reference.adapter
        picture, geometry = adapter.prepare(image)
        black = adapter.prepare(np.zeros_like(image))[0]
        inside = masking.seen(geometry, picture.device)
        score = faithfulness.Likeness(adapter, plain.objects, self._reference.max_det)
        objects = torch.tensor(few, device=picture.device)
        batch = max(self._protocol.memory // (picture[0].numel() * PER_PIXEL), 1)
        names = list(explained)
        step = max(TOGETHER // len(few), 1)
        for fill_name in self._protocol.fills:
            fill = masking.fill(fill_name, picture, black)
            ends = faithfulness.ends(score, fill, inside, objects, batch)
            for some in (names[i : i + step] for i in range(0, len(names), step)):
                heat = torch.cat([network_heat(explained[name], few) for name in some])
                owner, whole, hidden = (t.repeat(len(some)) for t in (objects, *ends))
                places = masking.places(heat, inside)
                made = faithfulness.curves(score, fill, places, owner, whole, hidden, batch, self._protocol.steps)
                for metric in faithfulness.metrics(fill_name):
                    for name, own in zip(some, metric.update(made).view(len(some), -1), strict=True):
                        _note(row, name, metric.measure.name, own, NO_SCORE)

    def _stability(self, image: np.ndarray, explained: dict[str, Explanation], few: list[int], row: Row) -> None:
        row["cascade"] = {}
        for contender in self._contenders:
            plain = explained.get(contender.name)
            if plain is None:
                continue
            if (passes := contender.sweep.passes(len(plain))) > self._protocol.dear:
                why = f"takes {passes} passes a picture, and is not repeated for more than {self._protocol.dear}"
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


def network_heat(explanation: Explanation, objects: list[int]) -> Tensor:
    """[n, h, w] float32 heat of some objects over the network's input: ReLU and a bilinear resize."""
    size = explanation.geometry.network
    heat = [
        interpolate(
            explanation.maps[i].nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).clamp(min=0)[None, None].float(),
            size,
            mode="bilinear",
        )[0, 0]
        for i in objects
    ]
    return torch.stack(heat)


def _timed(contender: Contender, image: np.ndarray) -> tuple[Explanation, float]:
    start = time.perf_counter()
    explanation = contender.explain(image)
    _wait(explanation.boxes.device)
    return explanation, time.perf_counter() - start


def _wait(device: torch.device) -> None:
    """Let the work that was handed to a GPU finish."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _listed(values: Tensor) -> list[float | None]:
    """Numbers for JSON, which has no NaN."""
    return [round(v, 4) if v == v else None for v in values.tolist()]


def _note(row: Row, name: str, measure: str, values: Tensor, why: str = "") -> None:
    """Write values of the first objects of a row; NaN is left out, as JSON has none, and `why` says what it means."""
    for entry, value in zip(row["objects"], values.tolist(), strict=False):
        maps = entry["maps"].setdefault(name, {})
        if value == value:
            maps[measure] = round(value, 6)
        else:
            row["undefined"].setdefault(measure, {})[name] = why
