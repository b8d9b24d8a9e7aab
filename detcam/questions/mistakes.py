"""Mistakes: the regions that a semantic segmenter gives the wrong class."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from detcam.adapters import Adapter
from detcam.adapters.shared.segments import wrong_segments
from detcam.errors import InputError
from detcam.explanation import Explanation
from detcam.geometry import Geometry
from detcam.questions.base import Question
from detcam.types import Objects, Prompt


class Mistakes(Question):
    """The connected regions with a wrong class, two objects each: for the wrong class and for the true class.

    All of a region has the same wrong class and the same true class. The largest come first, `max_det` / 2 at most.
    """

    def __init__(self, truth: Any, size: tuple[int, int], adapter: Adapter, max_det: int) -> None:
        self._truth = checked_truth(truth, size, adapter.names)
        self._most = max(max_det // 2, 1)
        self._notes: list[str] = []
        self._share = 0.0

    def objects(self, adapter: Adapter, outputs: Any, geometry: Geometry) -> Objects:
        predicted = adapter.label_map(outputs, geometry)
        truth = self._truth.to(predicted.device)
        judged = (predicted >= 0) & (truth >= 0)
        self._share = float((predicted != truth)[judged].float().mean()) if bool(judged.any()) else 0.0
        regions = []
        for mask, given, true in zip(*wrong_segments(predicted, truth, self._most), strict=True):
            wrong, right = int(given), int(true)
            regions += [_masked(mask, wrong), _masked(mask, right)]
            self._notes += [
                f"wrong: {adapter.names[wrong]} where the truth is {adapter.names[right]}, {int(mask.sum())} pixels",
                f"the true class where the model says {adapter.names[wrong]}",
            ]
        return adapter.objects_for_prompts(outputs, regions, geometry)

    def answered(self, explanation: Explanation) -> Explanation:
        """The explanation with the share of wrong pixels in its settings; see `Question.answered`."""
        notes: list[str | None] = [
            sentence if note is None else f"{sentence}; {note}"
            for sentence, note in zip(self._notes, explanation.notes, strict=True)
        ]
        settings = {**explanation.settings, "truth": {"wrong_pixels": round(self._share, 6)}}
        return replace(explanation, notes=notes, settings=settings)


def _masked(mask: Tensor, class_id: int) -> Prompt:
    height, width = mask.shape
    return Prompt("mask", (0, 0, width, height), mask, class_id)


def checked_truth(truth: Any, size: tuple[int, int], names: Mapping[int, str]) -> Tensor:
    """The user's label map as [H, W] int64, -1 for numbers that are not in `names`; an InputError if it is unfit."""
    try:
        labels = torch.as_tensor(truth)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"truth: expected a label map [H, W] of integers, got {type(truth).__name__}") from None
    if tuple(labels.shape) != size or labels.is_floating_point() or labels.is_complex():
        raise InputError(
            f"truth: expected a label map of integers of the image's size {size}, got {labels.dtype} "
            f"{tuple(labels.shape)}"
        )
    labels = labels.long()
    known = torch.isin(labels, torch.tensor(sorted(names), device=labels.device))
    if not bool(known.any()):
        raise InputError(f"truth: no pixel has a class of the model, which has {min(names)} to {max(names)}")
    return labels.masked_fill(~known, -1)
