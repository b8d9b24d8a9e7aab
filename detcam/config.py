"""The only reader of configs/: a preset is a YAML file whose keys are the explainer's options."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from detcam.errors import InputError, nearest


class Preset(BaseModel):
    """The options of one run; see `detcam.Explainer` for what each means."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str = "scenes"
    method: str = "auto"
    layers: str | list[str] = "auto"
    target: str = "class"
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
        return _checked({**self.model_dump(), **given}, "option")


def read_preset(path: str | os.PathLike[str]) -> Preset:
    """Read and check a preset.

    Raises:
        InputError: if the file is missing, is no YAML mapping, has an unknown key, or a value out of range.
    """
    path = Path(path)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"config {path} cannot be read ({error.strerror or error}): check the path") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"config {path} is no valid YAML ({reason}): compare it with configs/default.yaml") from None
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise InputError(f"config {path}: expected keys and values, got a {type(data).__name__}")
    return _checked(data, f"config {path}: key")


def _checked(data: dict[Any, Any], where: str) -> Preset:
    """A preset from raw values, with pydantic's first complaint as one line."""
    for key in data:
        if key not in Preset.model_fields:
            raise InputError(f"{where} {key!r} does not exist: {nearest(str(key), Preset.model_fields)}")
    try:
        return Preset(**data)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{where} {first['loc'][0]!r} is {first['input']!r}: {first['msg'].lower()}") from None
