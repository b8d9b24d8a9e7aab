"""The regions that a user gives: points, boxes and masks in a picture, and the label map that it should have."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from detcam.errors import InputError, nearest
from detcam.options import checked_box, checked_class
from detcam.types import Region

EXAMPLE = "e.g. regions=[(60, 40)] or [(10, 20, 80, 160)]"


def parse_region(text: str) -> Any:
    """A region from `x,y` or `x1,y1,x2,y2`, either with `:class` behind it, as the command line takes it.

    Raises:
        InputError: if it does not read so.
    """
    numbers, _, name = text.partition(":")
    try:
        sides = tuple(float(side) for side in numbers.split(","))
    except ValueError:
        sides = ()
    if len(sides) not in (2, 4):
        raise InputError(f"region {text!r}: expected x,y or x1,y1,x2,y2, e.g. 60,40 or 10,20,80,160:person")
    return (sides, int(name) if name.isdecimal() else name) if name else sides


def class_number(kind: str | int, names: Mapping[int, str], where: str) -> int:
    """The number of a class that the user named.

    Raises:
        InputError: if the model has no such class.
    """
    if not isinstance(kind, str):
        if kind not in names:
            raise InputError(f"{where}: class {kind} does not exist: the model has {min(names)} to {max(names)}")
        return int(kind)
    number = next((i for i, name in names.items() if name == kind), None)
    if number is None:
        raise InputError(f"{where}: class {kind!r} does not exist: {nearest(kind, names.values())}")
    return number


def checked_regions(
    regions: Any, size: tuple[int, int], names: Mapping[int, str], takes: Sequence[str]
) -> list[Region]:
    """The regions that the user gave in a picture of (height, width) pixels, with boxes cut to it.

    Args:
        regions: points (x, y), boxes (x1, y1, x2, y2) and masks [H, W], each alone or with a class of `names`.
        size: of the picture.
        names: the classes of the model.
        takes: the kinds of regions that the model takes.

    Raises:
        InputError: for anything else, an empty mask, and for what lies outside the picture.
    """
    if not isinstance(regions, (list, tuple)) or not regions:
        raise InputError(f"regions: expected a list of points, boxes or masks, got {regions!r}: {EXAMPLE}")
    checked = [_checked_region(region, f"regions[{i}]", size, names) for i, region in enumerate(regions)]
    for i, region in enumerate(checked):
        if region.kind not in takes:
            raise InputError(f"regions[{i}]: this model takes no {region.kind}: give a {' or '.join(takes)}")
    return checked


def _checked_region(given: Any, where: str, size: tuple[int, int], names: Mapping[int, str]) -> Region:
    class_id = None
    if isinstance(given, (list, tuple)) and len(given) == 2 and not isinstance(given[0], Real):
        given, kind = given
        if not names:
            raise InputError(f"{where}: this model has no classes to name: give the region alone")
        class_id = class_number(checked_class(kind, where), names, where)
    if getattr(given, "ndim", 1) == 2:
        return _mask_region(torch.as_tensor(given).bool(), where, size, class_id)
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
        return Region("point", (x, y, x, y), mask, class_id)
    x1, y1, x2, y2 = box = checked_box(numbers, where, size)
    mask[int(y1) : math.ceil(y2), int(x1) : math.ceil(x2)] = True
    return Region("box", box, mask, class_id)


def _mask_region(mask: Tensor, where: str, size: tuple[int, int], class_id: int | None) -> Region:
    if tuple(mask.shape) != size:
        raise InputError(f"{where}: expected a mask of the picture's size {size}, got {tuple(mask.shape)}")
    if not bool(mask.any()):
        raise InputError(f"{where}: the mask is empty: give one with a pixel")
    rows, columns = (mask.any(dim=axis).nonzero().flatten() for axis in (1, 0))
    box = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
    return Region("mask", box, mask.cpu(), class_id)


def checked_truth(truth: Any, size: tuple[int, int], names: Mapping[int, str]) -> Tensor:
    """The label map that the user gave as [H, W] int64; what is no class of `names` (as 255 often) becomes -1.

    Raises:
        InputError: unless it holds whole numbers, has the picture's size (height, width), and any class.
    """
    try:
        labels = torch.as_tensor(truth)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"truth: expected a label map [H, W] of whole numbers, got {type(truth).__name__}") from None
    if tuple(labels.shape) != size or labels.is_floating_point() or labels.is_complex():
        raise InputError(
            f"truth: expected a label map of whole numbers and the picture's size {size}, got {labels.dtype} "
            f"{tuple(labels.shape)}"
        )
    labels = labels.long()
    known = torch.isin(labels, torch.tensor(sorted(names), device=labels.device))
    if not bool(known.any()):
        raise InputError(f"truth: no pixel holds a class of the model, which has {min(names)} to {max(names)}")
    return labels.masked_fill(~known, -1)
