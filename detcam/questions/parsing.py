"""Boxes, classes and prompts as users write them, checked."""

import math
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

from detcam.errors import InputError, nearest

EXAMPLE = "e.g. ask=[((10, 20, 80, 160), 'person')]"

Pair = tuple[Sequence[float], str | int]  # a box (x1, y1, x2, y2) in source pixels, and a class by name or number


def parse_pair(text: str) -> Pair:
    """A pair from the command line's `x1,y1,x2,y2:class`; an InputError for any other text."""
    sides, kind = _numbers_and_class(text)
    if len(sides) != 4 or kind is None:
        raise InputError(f"ask {text!r}: expected x1,y1,x2,y2:class, e.g. 10,20,80,160:person")
    return sides, kind


def checked_pairs(ask: Any, size: tuple[int, int]) -> list[Pair]:
    """The user's pairs, with boxes clipped to (height, width) pixels; an InputError if they are malformed."""
    if not isinstance(ask, (list, tuple)) or not ask:
        raise InputError(f"ask: expected a list of (box, class) pairs, got {ask!r}: {EXAMPLE}")
    return [_checked_pair(pair, f"ask[{i}]", size) for i, pair in enumerate(ask)]


def _checked_pair(pair: Any, where: str, size: tuple[int, int]) -> Pair:
    try:
        box, kind = pair
        sides = tuple(float(side) for side in box)
    except (TypeError, ValueError):
        sides, kind = (), None
    if len(sides) != 4:
        raise InputError(f"{where}: expected a box of four numbers and a class, got {pair!r}: {EXAMPLE}")
    return checked_box(sides, where, size), checked_class(kind, where)


def checked_class(kind: Any, where: str) -> str | int:
    """The user's class, by name or number; an InputError for anything else."""
    if not isinstance(kind, (str, Integral)) or isinstance(kind, bool):
        raise InputError(f"{where}: expected a class name or number, got {kind!r}: {EXAMPLE}")
    return kind if isinstance(kind, str) else int(kind)


def checked_box(sides: Sequence[float], where: str, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """The box (x1, y1, x2, y2), clipped to (height, width) pixels; an InputError if it is empty or outside."""
    height, width = size
    x1, y1, x2, y2 = sides
    if not all(map(math.isfinite, sides)) or x2 <= x1 or y2 <= y1:
        raise InputError(f"{where}: expected (x1, y1, x2, y2) with x1 < x2 and y1 < y2, got {(x1, y1, x2, y2)}")
    if x2 <= 0 or y2 <= 0 or x1 >= width or y1 >= height:
        raise InputError(
            f"{where}: the box {(x1, y1, x2, y2)} lies outside the picture of {width} x {height} pixels: give source "
            "pixels"
        )
    return max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))


def parse_prompt(text: str) -> Any:
    """A prompt from the command line's `x,y` or `x1,y1,x2,y2`, with an optional `:class`; else an InputError."""
    sides, kind = _numbers_and_class(text)
    if len(sides) not in (2, 4):
        raise InputError(f"prompt {text!r}: expected x,y or x1,y1,x2,y2, e.g. 60,40 or 10,20,80,160:person")
    return sides if kind is None else (sides, kind)


def _numbers_and_class(text: str) -> tuple[tuple[float, ...], str | int | None]:
    """The numbers and the class of `1,2:class`: no numbers where they are malformed, None without a class."""
    numbers, _, name = text.partition(":")
    try:
        sides = tuple(float(number) for number in numbers.split(","))
    except ValueError:
        sides = ()
    return sides, int(name) if name.isdecimal() else name or None


def class_number(kind: str | int, names: Mapping[int, str], where: str) -> int:
    """The number of the user's class; an InputError if the model has no such class."""
    if not isinstance(kind, str):
        if kind not in names:
            raise InputError(f"{where}: class {kind} does not exist: the model has {min(names)} to {max(names)}")
        return int(kind)
    number = next((i for i, name in names.items() if name == kind), None)
    if number is None:
        raise InputError(f"{where}: class {kind!r} does not exist: {nearest(kind, names.values())}")
    return number
