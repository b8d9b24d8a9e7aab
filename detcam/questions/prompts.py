"""Prompts: the points, boxes and masks that a user gives."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from detcam.adapters import Adapter
from detcam.errors import InputError
from detcam.explanation import Explanation
from detcam.geometry import Geometry
from detcam.questions.base import Question
from detcam.questions.parsing import checked_box, checked_class, class_number
from detcam.types import Objects, Prompt


class Prompted(Question):
    """The objects for the points, boxes or masks that the user gave."""

    def __init__(self, prompts: Any, size: tuple[int, int], adapter: Adapter) -> None:
        self._prompts = checked_prompts(prompts, size, adapter.names, adapter.prompt_kinds)

    def objects(self, adapter: Adapter, outputs: Any, geometry: Geometry) -> Objects:
        """An object for each prompt; see `Question.objects`."""
        return adapter.objects_for_prompts(outputs, self._prompts, geometry)

    def answered(self, explanation: Explanation) -> Explanation:
        """The explanation with the prompts in its settings; see `Question.answered`."""
        settings = {**explanation.settings, "prompts": [prompt.to_dict() for prompt in self._prompts]}
        return replace(explanation, settings=settings)


EXAMPLE = "e.g. prompts=[(60, 40)] or [(10, 20, 80, 160)]"


def checked_prompts(
    prompts: Any, size: tuple[int, int], names: Mapping[int, str], kinds: Sequence[str]
) -> list[Prompt]:
    """The user's prompts in an image of (height, width) pixels, checked, with boxes clipped to it.

    Prompts are points (x, y), boxes (x1, y1, x2, y2) and masks [H, W], each alone or with a class of `names`; the model
    takes those of `kinds`. Raises an InputError for anything else, an empty mask, and for what lies outside the
    picture.
    """
    if not isinstance(prompts, (list, tuple)) or not prompts:
        raise InputError(f"prompts: expected a list of points, boxes or masks, got {prompts!r}: {EXAMPLE}")
    checked = [_checked_prompt(prompt, f"prompts[{i}]", size, names) for i, prompt in enumerate(prompts)]
    for i, prompt in enumerate(checked):
        if prompt.kind not in kinds:
            raise InputError(f"prompts[{i}]: this model takes no {prompt.kind}: give a {' or '.join(kinds)}")
    return checked


def _checked_prompt(given: Any, where: str, size: tuple[int, int], names: Mapping[int, str]) -> Prompt:
    class_id = None
    if isinstance(given, (list, tuple)) and len(given) == 2 and not isinstance(given[0], Real):
        given, kind = given
        if not names:
            raise InputError(f"{where}: this model has no classes to name: give the prompt alone")
        class_id = class_number(checked_class(kind, where), names, where)
    if getattr(given, "ndim", 1) == 2:
        return _mask_prompt(torch.as_tensor(given).bool(), where, size, class_id)
    try:
        numbers = tuple(float(number) for number in given)
    except (TypeError, ValueError):
        numbers = ()
    if len(numbers) not in (2, 4):
        raise InputError(
            f"{where}: expected a point (x, y), a box (x1, y1, x2, y2) or a mask [H, W], got {given!r}: {EXAMPLE}"
        )
    height, width = size
    mask = torch.zeros(size, dtype=torch.bool)
    if len(numbers) == 2:
        x, y = numbers
        if not (0 <= x < width and 0 <= y < height):
            raise InputError(
                f"{where}: the point {numbers} lies outside the picture of {width} x {height} pixels: give source "
                "pixels"
            )
        mask[int(y), int(x)] = True
        return Prompt("point", (x, y, x, y), mask, class_id)
    x1, y1, x2, y2 = box = checked_box(numbers, where, size)
    mask[int(y1) : math.ceil(y2), int(x1) : math.ceil(x2)] = True
    return Prompt("box", box, mask, class_id)


def _mask_prompt(mask: Tensor, where: str, size: tuple[int, int], class_id: int | None) -> Prompt:
    if tuple(mask.shape) != size:
        raise InputError(f"{where}: expected a mask of the picture's size {size}, got {tuple(mask.shape)}")
    if not bool(mask.any()):
        raise InputError(f"{where}: the mask is empty: give one with at least one pixel")
    rows, columns = (mask.any(dim=axis).nonzero().flatten() for axis in (1, 0))
    box = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
    return Prompt("mask", box, mask.cpu(), class_id)
