"""What a user asks about one picture, in place of "what is there?": what was missed, a region, what is wrong."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any

from torch import Tensor

from detcam.adapters import Adapter
from detcam.adapters.segments import wrong_regions
from detcam.ask import Answer, AskedExplanation, answers
from detcam.errors import InputError
from detcam.explanation import Explanation
from detcam.geometry import Geometry
from detcam.options import checked_pairs
from detcam.regions import checked_regions, checked_truth
from detcam.types import Objects, Region


class Question(ABC):
    """A question about one picture: it chooses the objects to explain, and has a word on each."""

    @abstractmethod
    def objects(self, adapter: Adapter, outputs: Any, geometry: Geometry) -> Objects:
        """The objects that answer it, from what the model put out."""

    @abstractmethod
    def answered(self, explanation: Explanation) -> Explanation:
        """The explanation of these objects with what the answer says beside their maps."""


class Missed(Question):
    """What became of objects that the model should have found; see `detcam.ask`."""

    def __init__(self, ask: Any, size: tuple[int, int], conf: float, iou: float, max_det: int) -> None:
        self._pairs = checked_pairs(ask, size)
        self._conf, self._iou, self._max_det = conf, iou, max_det
        self._answers: list[Answer] = []

    def objects(self, adapter: Adapter, outputs: Any, geometry: Geometry) -> Objects:
        """See `Question.objects`: the candidates that fit best."""
        found = adapter.detect(outputs, [geometry], self._conf, self._iou, self._max_det)[0]
        chosen, self._answers = answers(adapter, outputs, found, self._pairs, geometry, self._conf, self._iou)
        return chosen

    def answered(self, explanation: Explanation) -> AskedExplanation:
        """See `Question.answered`."""
        return AskedExplanation.of(explanation, self._answers)


class Given(Question):
    """What the model makes of points, boxes or masks."""

    def __init__(self, regions: Any, size: tuple[int, int], adapter: Adapter) -> None:
        self._regions = checked_regions(regions, size, adapter.names, adapter.takes)

    def objects(self, adapter: Adapter, outputs: Any, geometry: Geometry) -> Objects:
        """See `Question.objects`: one for each region."""
        return adapter.objects_in(outputs, self._regions, geometry)

    def answered(self, explanation: Explanation) -> Explanation:
        """See `Question.answered`: the regions are in the settings."""
        return replace(
            explanation, settings={**explanation.settings, "regions": [region.to_dict() for region in self._regions]}
        )


class Mistakes(Question):
    """The regions that a semantic segmenter gives the wrong class: two objects each, the wrong class and the true one.

    A region is connected, and all of it is given one class in place of one other. The largest come first, and half of
    `max_det` at most.
    """

    def __init__(self, truth: Any, size: tuple[int, int], adapter: Adapter, max_det: int) -> None:
        self._truth = checked_truth(truth, size, adapter.names)
        self._most = max(max_det // 2, 1)
        self._notes: list[str] = []
        self._share = 0.0

    def objects(self, adapter: Adapter, outputs: Any, geometry: Geometry) -> Objects:
        """See `Question.objects`."""
        predicted = adapter.label_map(outputs, geometry)
        truth = self._truth.to(predicted.device)
        judged = (predicted >= 0) & (truth >= 0)
        self._share = float((predicted != truth)[judged].float().mean()) if bool(judged.any()) else 0.0
        regions = []
        for mask, given, true in zip(*wrong_regions(predicted, truth, self._most), strict=True):
            wrong, right = int(given), int(true)
            regions += [_masked(mask, wrong), _masked(mask, right)]
            self._notes += [
                f"wrong: {adapter.names[wrong]} where the truth is {adapter.names[right]}, {int(mask.sum())} pixels",
                f"the true class where the model says {adapter.names[wrong]}",
            ]
        return adapter.objects_in(outputs, regions, geometry)

    def answered(self, explanation: Explanation) -> Explanation:
        """See `Question.answered`; the share of wrong pixels is in the settings."""
        notes: list[str | None] = [
            sentence if note is None else f"{sentence}; {note}"
            for sentence, note in zip(self._notes, explanation.notes, strict=True)
        ]
        settings = {**explanation.settings, "truth": {"wrong_pixels": round(self._share, 6)}}
        return replace(explanation, notes=notes, settings=settings)


def question(
    adapter: Adapter, ask: Any, regions: Any, truth: Any, size: tuple[int, int], conf: float, iou: float, max_det: int
) -> Question:
    """The question that a user asks about a picture of (height, width) pixels; all but one are None.

    Raises:
        InputError: if several are asked at once, if the model cannot be asked so, and for what `checked_pairs`,
            `checked_regions` and `checked_truth` complain about.
    """
    if sum(one is not None for one in (ask, regions, truth)) > 1:
        raise InputError("ask, regions, truth: expected one of them, got several: ask one question at a time")
    if ask is not None:
        return Missed(ask, size, conf, iou, max_det)
    model = f"this {adapter.family} {adapter.task} model"
    instead = "ask about a box with ask=[(box, class)]"
    if regions is not None:
        if not adapter.takes:
            raise InputError(f"regions: objects of {model} are no regions: {instead}")
        return Given(regions, size, adapter)
    if "mask" not in adapter.takes:
        raise InputError(f"truth: {model} gives no class to each pixel: {instead}")
    return Mistakes(truth, size, adapter, max_det)


def _masked(mask: Tensor, class_id: int) -> Region:
    height, width = mask.shape
    return Region("mask", (0, 0, width, height), mask, class_id)
