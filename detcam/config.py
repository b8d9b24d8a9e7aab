"""The only reader of configs/: a preset is a YAML file whose keys are the explainer's options."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from detcam.errors import InputError, nearest
from detcam.files import read_regular

LIMIT = 16 * 1024  # bytes of a preset; what is longer is no preset
NESTED = 64  # brackets: the time that YAML takes grows with their square


class Preset(BaseModel):
    """The options of one run; see `detcam.Explainer` for what each means."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str = "scenes"
    method: str = "auto"
    layers: str | list[str] = "auto"
    target: str = "class"
    segments: Literal["class", "component"] = "class"
    text: list[str] | None = None
    adapter: Literal["auto", "panoptic"] = "auto"
    conf: float = Field(default=0.25, ge=0, le=1)
    iou: float = Field(default=0.7, ge=0, le=1)
    max_det: int = Field(default=300, ge=1)
    imgsz: int | None = Field(default=None, ge=32)
    device: str | None = None

    def updated(self, **flags: Any) -> Preset:
        """The same preset with every flag that is not None laid over it.

        Raises:
            InputError: if a value is out of range or of the wrong type.
        """
        given = {name: value for name, value in flags.items() if value is not None}
        return _checked({**self.model_dump(exclude_unset=True), **given}, "option")

    def options(self) -> dict[str, Any]:
        """The arguments of `detcam.Explainer`."""
        from detcam.adapters import NAMED

        return {**self.model_dump(), "adapter": NAMED.get(self.adapter)}

    def to_yaml(self, without: Collection[str] = ()) -> str:
        """The preset, but for some keys, as text that `read_preset` reads back as an equal one."""
        return yaml.safe_dump(self.model_dump(exclude=set(without)), sort_keys=False, allow_unicode=True)


class _Loader(yaml.SafeLoader):
    """Plain YAML: no aliases, which could stand for more than memory holds, and no key twice."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not read here")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        mapping = super().construct_mapping(node, deep)
        if len(mapping) < len(node.value):
            names = [key.value for key, _ in node.value]
            twice = next(name for name in names if names.count(name) > 1)
            raise yaml.YAMLError(f"key {twice!r} is there twice")
        return mapping


def _nearest(key: str) -> str:
    return nearest(key, Preset.model_fields)


def read_preset(path: str | os.PathLike[str], hint: Callable[[str], str] = _nearest) -> Preset:
    """Read and check a preset.

    Args:
        path: of the file.
        hint: from a key that does not exist to what to do about it, the end of the message.

    Raises:
        InputError: if the file is missing, is no YAML mapping, has an unknown key, or a value out of range.
    """
    path = Path(path)
    try:
        raw = read_regular(path, LIMIT)
    except OSError as error:
        raise InputError(
            f"config {path} cannot be read ({error.strerror or error}): give a preset of a few lines, see "
            "configs/default.yaml"
        ) from None
    if raw.count(b"[") + raw.count(b"{") > NESTED:
        raise InputError(
            f"config {path} is no valid YAML (more than {NESTED} brackets): compare it with configs/default.yaml"
        )
    try:
        data = yaml.load(raw.decode("utf-8"), _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"config {path} is no valid YAML ({reason}): compare it with configs/default.yaml") from None
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise InputError(f"config {path}: expected keys and values, got a {type(data).__name__}")
    return _checked(data, f"config {path}: key", hint)


def _checked(data: dict[Any, Any], where: str, hint: Callable[[str], str] = _nearest) -> Preset:
    """A preset from raw values, with pydantic's first complaint as one line."""
    for key in data:
        if key not in Preset.model_fields:
            raise InputError(f"{where} {reprlib.repr(key)} does not exist: {hint(str(key))}")
    try:
        return Preset(**data)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(
            f"{where} {first['loc'][0]!r} is {reprlib.repr(first['input'])}: {first['msg'].lower()}"
        ) from None
