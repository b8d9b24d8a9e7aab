"""Presets: YAML files of the explainer's options, and the fields that flags, docs and defaults are generated from."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from detcam.adapters import NAMED, TARGETS
from detcam.adapters.shared.segments import Segments
from detcam.errors import InputError, nearest
from detcam.files import read_regular
from detcam.methods import VIEWS
from detcam.options import LAYER_PRESETS

LIMIT = 16 * 1024  # bytes of a preset
NESTED = 64  # brackets: the time that YAML takes grows with their square
OF_THE_MODEL: dict[str, Any] = {"unset": "the model's"}  # the default, in words, of a field whose default is None


class Preset(BaseModel):
    """The options of a run.

    This is the single source of their names, types, defaults and descriptions: the commands' flags, the table in
    docs/options.md and configs/default.yaml are generated from it.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str = Field(
        default="scenes",
        description="A .pt file, a name that ultralytics downloads (yolov8n.pt), a transformers folder, or the name of "
        "a demo model (see `detcam doctor`).",
    )
    view: Literal["why", "where"] | None = Field(
        default=None,
        description="Sets method and layers. why: the evidence for an object, wherever in the image it lies (layerig "
        "at stem). where: the place that the object was read from, for a single forward pass (odam at level).",
    )
    method: str = Field(
        default="auto",
        description="The method that makes the heatmaps, see `detcam methods`; auto is "
        f"{VIEWS['why'][0]}, or {VIEWS['where'][0]} at other layers than the stem.",
    )
    layers: str | list[str] = Field(
        default="auto", description=f"auto, {', '.join(LAYER_PRESETS)}, or names of modules, see `detcam layers MODEL`."
    )
    target: str = Field(default="class", description=f"The scalar to explain: {', '.join(TARGETS)}.")
    segments: Segments = Field(
        default="class",
        description="What an object of a semantic segmenter is: class (all pixels of a class) or component (a "
        "connected component of them).",
    )
    text: list[str] | None = Field(default=None, description="Phrases to detect, for text-prompted detectors.")
    adapter: Literal["auto", "panoptic"] = Field(
        default="auto", description="panoptic: use panoptic post-processing (Mask2Former, OneFormer, ...)."
    )
    conf: float = Field(default=0.25, ge=0, le=1, description="Minimum score of an object.")
    iou: float = Field(
        default=0.7, ge=0, le=1, description="IoU above which the lower-scoring of two boxes is dropped."
    )
    max_det: int = Field(default=300, ge=1, description="Maximum number of objects per image.")
    classes: list[int | str] | None = Field(
        default=None, description="The only classes to explain, by number or name. Separate them with commas."
    )
    names: list[str] | None = Field(default=None, description="Names of the classes, in place of the model's.")
    imgsz: Annotated[int, Field(ge=32)] | Annotated[list[int], Field(min_length=2, max_length=2)] | None = Field(
        default=None,
        description="Longest side of the network's input in pixels, or height,width.",
        json_schema_extra=OF_THE_MODEL,
    )
    device: str | None = Field(
        default=None, description="Device, such as cpu, cuda or cuda:1.", json_schema_extra=OF_THE_MODEL
    )

    def updated(self, **flags: Any) -> Preset:
        """A copy with every flag that is not None laid over it.

        Raises:
            InputError: if a value is out of range or of the wrong type.
        """
        given = {name: value for name, value in flags.items() if value is not None}
        return _checked({**self.model_dump(exclude_unset=True), **given}, "option")

    def options(self) -> dict[str, Any]:
        """The arguments of `detcam.Explainer`."""
        return {**self.model_dump(exclude={"view"}), "adapter": NAMED.get(self.adapter)}

    def to_yaml(self, without: Collection[str] = ()) -> str:
        """The preset, without some of its keys, as text that `read_preset` reads back."""
        return yaml.safe_dump(self.model_dump(exclude=set(without)), sort_keys=False, allow_unicode=True)


def default_of(name: str) -> str | None:
    """The default of a field of `Preset` in words; None for a field that is empty by default."""
    field = Preset.model_fields[name]
    if field.default is not None:
        return str(field.default)
    extra = field.json_schema_extra
    return str(extra["unset"]) if isinstance(extra, dict) else None


class _Loader(yaml.SafeLoader):
    """Plain YAML: no aliases, which could stand for more than memory holds, and no repeated keys."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not supported")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        mapping = super().construct_mapping(node, deep)
        if len(mapping) < len(node.value):
            names = [key.value for key, _ in node.value]
            repeated = next(name for name in names if names.count(name) > 1)
            raise yaml.YAMLError(f"key {repeated!r} is given twice")
        return mapping


def _nearest(key: str) -> str:
    return nearest(key, Preset.model_fields)


def read_preset(path: str | os.PathLike[str], hint: Callable[[str], str] = _nearest) -> Preset:
    """Read and check a preset.

    Args:
        path: the YAML file.
        hint: takes a key that does not exist and returns the end of the error message: what to do about it.

    Raises:
        InputError: if the file is missing, is not a YAML mapping, has an unknown key, or a value out of range.
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
            f"config {path} is not valid YAML (more than {NESTED} brackets): compare it with configs/default.yaml"
        )
    try:
        data = yaml.load(raw.decode("utf-8"), _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"config {path} is not valid YAML ({reason}): compare it with configs/default.yaml") from None
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise InputError(f"config {path}: expected keys and values, got a {type(data).__name__}")
    return _checked(data, f"config {path}: key", hint)


def _checked(data: dict[Any, Any], where: str, hint: Callable[[str], str] = _nearest) -> Preset:
    """A preset of raw values; the first complaint of pydantic becomes one line."""
    for key in data:
        if key not in Preset.model_fields:
            raise InputError(f"{where} {reprlib.repr(key)} does not exist: {hint(str(key))}")
    try:
        return Preset(**_with_view(data, where))
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(
            f"{where} {first['loc'][0]!r} is {reprlib.repr(first['input'])}: {first['msg'].lower()}"
        ) from None


def _with_view(data: dict[Any, Any], where: str) -> dict[Any, Any]:
    """The values with the method and layers of the view, if they name one."""
    view = data.get("view")
    if view not in VIEWS:
        return data
    given = (data.get("method", "auto"), data.get("layers", "auto"))
    if given not in (("auto", "auto"), VIEWS[view]):
        raise InputError(f"{where} 'view' is {view!r}, which sets method and layers: leave those or view out")
    return data | dict(zip(("method", "layers"), VIEWS[view], strict=True))
