"""What the explainer is asked for, checked before anything is computed."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import nn

from detcam.adapters import TARGETS, Adapter, Target
from detcam.errors import InputError, LayerError, TargetError, nearest

REGIONS = ("class", "component")
EXAMPLE = "e.g. ask=[((10, 20, 80, 160), 'person')]"

Pair = tuple[Sequence[float], str | int]  # a box (x1, y1, x2, y2) in source pixels, and a class by name or number


def check_options(conf: float, iou: float, max_det: int, imgsz: int | None, target: Target) -> None:
    """Complain about a number out of range or a target that no family has.

    Raises:
        InputError: for the first option that cannot be used.
    """
    for name, share in (("conf", conf), ("iou", iou)):
        if not isinstance(share, Real) or not 0 <= share <= 1:
            raise InputError(f"{name}: expected a number in [0, 1], got {share!r}")
    for name, count, least in (("max_det", max_det, 1), ("imgsz", 640 if imgsz is None else imgsz, 32)):
        if not isinstance(count, Integral) or count < least:
            raise InputError(f"{name}: expected a whole number of at least {least}, got {count!r}")
    if isinstance(target, str) and target not in TARGETS:
        raise TargetError(f"target {target!r} does not exist: {nearest(target, TARGETS)}")


def check_layers(layers: Any) -> None:
    """Complain about layers that are no names or modules.

    Raises:
        LayerError: if they are not.
    """
    chosen = [layers] if isinstance(layers, (str, nn.Module)) else layers
    if not isinstance(chosen, (list, tuple)) or any(not isinstance(one, (str, nn.Module)) for one in chosen):
        raise LayerError(f"layers: expected names or modules, got {reprlib.repr(layers)}: see `detcam layers`")


def check_target(target: Target, adapter: Adapter) -> None:
    """Complain about a target that this model does not have.

    Raises:
        TargetError: if it has not.
    """
    if isinstance(target, str) and target not in adapter.available:
        raise TargetError(
            f"target {target!r} does not exist for this {adapter.family} {adapter.task} model: "
            f"{nearest(target, adapter.available)}"
        )


def set_regions(adapter: Adapter, regions: str) -> None:
    """Have an adapter of a semantic segmenter take each class, or each connected component of it, for an object.

    Raises:
        InputError: for an unknown value, or where objects are no regions and the value is not the default.
    """
    if not isinstance(regions, str) or regions not in REGIONS:
        raise InputError(f"regions: {regions!r} does not exist: {nearest(str(regions), REGIONS)}")
    if hasattr(adapter, "regions"):
        adapter.regions = regions
    elif regions != REGIONS[0]:
        raise InputError(
            f"regions: {regions!r} is for semantic segmenters, and objects of this {adapter.family} {adapter.task} "
            "model are no regions: leave regions out"
        )


def set_text(adapter: Adapter, text: Any) -> None:
    """Have an adapter of a text-prompted detector take phrases for its classes.

    Raises:
        InputError: for anything but phrases, where they are missing, and for models that take none.
    """
    prompt = getattr(adapter, "prompt", None)
    if text is None and prompt is None:
        return
    if prompt is None:
        hint = " (of YOLO-World and YOLOE call model.set_classes first)" if "ultralytics" in adapter.family else ""
        raise InputError(f"text: this {adapter.family} {adapter.task} model takes no text: leave text out{hint}")
    known = isinstance(text, (list, tuple)) and text and all(isinstance(p, str) and p.strip() for p in text)
    if not known:
        raise InputError(f"text: expected the phrases to look for, e.g. text=['a cat', 'remote control'], got {text!r}")
    prompt(text)


def checked_device(device: str | torch.device) -> torch.device:
    """The device, if tensors can be made there.

    Raises:
        InputError: if not.
    """
    try:
        checked = torch.device(device)
        torch.empty(0, device=checked)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device {str(device)!r} cannot be used ({reason}): use device 'cpu'") from None
    return checked


def parse_pair(text: str) -> Pair:
    """A pair from `x1,y1,x2,y2:class`, as the command line takes it.

    Raises:
        InputError: if it does not read so.
    """
    box, _, name = text.partition(":")
    try:
        sides = tuple(float(side) for side in box.split(","))
    except ValueError:
        sides = ()
    if len(sides) != 4 or not name:
        raise InputError(f"ask {text!r}: expected x1,y1,x2,y2:class, e.g. 10,20,80,160:person")
    return sides, int(name) if name.isdecimal() else name


def checked_pairs(ask: Any, size: tuple[int, int]) -> list[Pair]:
    """The pairs that the user gave, with boxes cut to a picture of (height, width) pixels.

    Raises:
        InputError: for anything but a list of pairs, and for a box that is empty or lies outside the picture.
    """
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
    """A class by name or number, as the user gave it.

    Raises:
        InputError: for anything else.
    """
    if not isinstance(kind, (str, Integral)) or isinstance(kind, bool):
        raise InputError(f"{where}: expected a class name or number, got {kind!r}: {EXAMPLE}")
    return kind if isinstance(kind, str) else int(kind)


def checked_box(sides: Sequence[float], where: str, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """The box (x1, y1, x2, y2) cut to a picture of (height, width) pixels.

    Raises:
        InputError: for a box that is empty or lies outside the picture.
    """
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
