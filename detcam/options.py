"""Checks of the explainer's options, made before anything is computed."""

import reprlib
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any

import torch
from torch import nn

from detcam.adapters import TARGETS, Adapter, Target
from detcam.adapters.shared.keypoints import PREFIX
from detcam.adapters.shared.segments import SEGMENTS
from detcam.errors import InputError, LayerError, TargetError, nearest

LAYER_PRESETS = ("level", "evidence", "stem")


def check_options(conf: float, iou: float, max_det: int, imgsz: Any, target: Target) -> None:
    """Raise an InputError for the first option whose number is out of range or whose target no family has."""
    for name, share in (("conf", conf), ("iou", iou)):
        if not isinstance(share, Real) or not 0 <= share <= 1:
            raise InputError(f"{name}: expected a number in [0, 1], got {share!r}")
    if not isinstance(max_det, Integral) or max_det < 1:
        raise InputError(f"max_det: expected a whole number of at least 1, got {max_det!r}")
    sides = imgsz if isinstance(imgsz, (tuple, list)) and len(imgsz) == 2 else [640 if imgsz is None else imgsz]
    if any(not isinstance(side, Integral) or side < 32 for side in sides):
        raise InputError(f"imgsz: expected pixels, at least 32, or (height, width), got {imgsz!r}")
    if isinstance(target, str) and target not in TARGETS and not target.startswith(PREFIX):
        raise TargetError(f"target {target!r} does not exist: {nearest(target, TARGETS)}")


def sides_given(imgsz: Any) -> Any:
    """An input size without the integers of NumPy, and a list as a tuple."""
    return imgsz if imgsz is None else int(imgsz) if isinstance(imgsz, Integral) else tuple(map(int, imgsz))


def check_layers(layers: Any) -> None:
    """Check that layers are names or modules; a LayerError if they are not."""
    chosen = [layers] if isinstance(layers, (str, nn.Module)) else layers
    if not isinstance(chosen, (list, tuple)) or any(not isinstance(layer, (str, nn.Module)) for layer in chosen):
        raise LayerError(f"layers: expected names or modules, got {reprlib.repr(layers)}: see `detcam layers`")


def check_target(target: Target, adapter: Adapter) -> None:
    """Check that the target exists for this model; a TargetError if it does not."""
    if isinstance(target, str) and target not in adapter.available:
        keypoints = [name for name in adapter.available if name.startswith(PREFIX) and target.startswith(PREFIX)]
        hint = f"choose one of {', '.join(keypoints)}" if keypoints else nearest(target, adapter.available)
        raise TargetError(f"target {target!r} does not exist for this {adapter.family} {adapter.task} model: {hint}")


def set_segments(adapter: Adapter, segments: str) -> None:
    """Set whether a segmenter's objects are classes or connected components; an InputError if that does not suit it."""
    if not isinstance(segments, str) or segments not in SEGMENTS:
        raise InputError(f"segments: {segments!r} does not exist: {nearest(str(segments), SEGMENTS)}")
    if hasattr(adapter, "segments"):
        adapter.segments = segments
    elif segments != SEGMENTS[0]:
        raise InputError(
            f"segments: {segments!r} is for semantic segmenters, and objects of this {adapter.family} {adapter.task} "
            "model are not segments: leave segments out"
        )


def set_names(adapter: Adapter, names: Any) -> None:
    """Name the classes of the model by number, in place of the names that it has; an InputError for anything else."""
    if names is None:
        return
    listed = dict(enumerate(names)) if isinstance(names, (list, tuple)) else names
    whole = isinstance(listed, Mapping) and all(isinstance(kind, Integral) for kind in listed)
    if not whole or any(not isinstance(name, str) for name in listed.values()):
        raise InputError(
            f"names: expected class names by number, e.g. ['cat', 'dog'] or {{1: 'cat'}}, got {reprlib.repr(names)}"
        )
    adapter.names = {**getattr(adapter, "names", {}), **listed}


def set_classes(adapter: Adapter, classes: Any) -> None:
    """Set the only classes whose objects count, by number or name; an InputError for any that the model lacks."""
    if classes is None:
        return
    names: dict[int, str] = getattr(adapter, "names", {})
    numbers = []
    for kind in classes if isinstance(classes, Iterable) and not isinstance(classes, str) else [classes]:
        known = kind in (names or [kind]) if isinstance(kind, Integral) else kind in names.values()
        if not known:
            hint = nearest(str(kind), names.values()) if names else "give numbers, or names="
            raise InputError(f"classes: {kind!r} is not a class of the model: {hint}")
        numbers += [int(kind)] if isinstance(kind, Integral) else [n for n, name in names.items() if name == kind]
    adapter.chosen_classes = tuple(numbers)


def set_text(adapter: Adapter, text: Any) -> None:
    """Set the phrases that a text-prompted detector looks for; an InputError if it takes none, or for no list."""
    prompt = getattr(adapter, "set_text", None)
    if text is None and prompt is None:
        return
    if prompt is None:
        hint = " (for YOLO-World and YOLOE call model.set_classes first)" if "ultralytics" in adapter.family else ""
        raise InputError(f"text: this {adapter.family} {adapter.task} model takes no text: leave text out{hint}")
    valid = isinstance(text, (list, tuple)) and text and all(isinstance(p, str) and p.strip() for p in text)
    if not valid:
        raise InputError(f"text: expected the phrases to look for, e.g. text=['a cat', 'remote control'], got {text!r}")
    prompt(text)


def checked_device(device: str | torch.device) -> torch.device:
    """The device, if tensors can be made on it; an InputError if not."""
    try:
        checked = torch.device(device)
        torch.empty(0, device=checked)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device {str(device)!r} cannot be used ({reason}): use device 'cpu'") from None
    return checked
