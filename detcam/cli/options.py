"""Options that several commands share, and the preset that they are laid over."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from detcam.errors import InputError, OutputError, nearest

if TYPE_CHECKING:
    from detcam.config import Preset

ModelFlag = Annotated[
    str | None,
    typer.Option(help="A .pt path, a folder of transformers, or a demo model's name. [default: scenes]"),
]
MethodFlag = Annotated[str | None, typer.Option(help="See `detcam methods`. [default: auto]")]
LayersFlag = Annotated[
    str | None, typer.Option(help="auto, level, evidence, or module names with commas between. [default: auto]")
]
TargetFlag = Annotated[
    str | None,
    typer.Option(help="class, prob, margin, box, left, top, right, bottom, mask, mask-margin. [default: class]"),
]
SegmentsFlag = Annotated[
    str | None,
    typer.Option(help="class or component: what an object of a semantic segmenter is. [default: class]"),
]
TextFlag = Annotated[
    list[str] | None, typer.Option(help="A phrase to look for, of detectors that take text. Repeatable.")
]
AdapterFlag = Annotated[str | None, typer.Option(help="panoptic: read Mask2Former and its like so. [default: auto]")]
ConfFlag = Annotated[float | None, typer.Option(help="Lowest score of an object. [default: 0.25]")]
IouFlag = Annotated[float | None, typer.Option(help="Overlap at which a weaker box is dropped. [default: 0.7]")]
MaxDetFlag = Annotated[int | None, typer.Option(help="Objects per picture. [default: 300]")]
ImgszFlag = Annotated[int | None, typer.Option(help="Network input size. [default: the model's]")]
DeviceFlag = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1. [default: the model's]")]
ConfigFlag = Annotated[Path | None, typer.Option(help="A YAML preset, see configs/; flags win over it.")]
PrintConfigFlag = Annotated[
    bool, typer.Option("--print-config", help="Print the options in force as such a preset, and do nothing else.")
]
TrustFlag = Annotated[
    bool,
    typer.Option("--trust-checkpoint", help="Load pickled weights whatever they name: runs any code in the file."),
]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]


def preset_of(config: str | Path | None = None, **flags: Any) -> Preset:
    """The preset in force: that of the file or the defaults, with the flags that were given laid over it.

    Raises:
        InputError: if the file is no preset, or a value is out of range.
    """
    from detcam.config import Preset, read_preset

    preset = read_preset(config, _elsewhere) if config else Preset()
    if flags.get("layers"):
        flags["layers"] = split(flags["layers"])
    return preset.updated(**flags | {"text": flags.get("text") or None})


def split(layers: str) -> str | list[str]:
    """One name or preset as it is; several names as a list."""
    return layers.split(",") if "," in layers else layers


def _elsewhere(key: str) -> str:
    """What to do with a key that presets do not have: it may be a flag of some command."""
    from detcam.cli.app import app
    from detcam.config import Preset

    flag = f"--{key.replace('_', '-')}"
    commands: dict[str, Any] = getattr(typer.main.get_command(app), "commands", {})
    owners = [
        name
        for name, command in commands.items()
        if any(flag in (*option.opts, *option.secondary_opts) for option in command.params)
    ]
    if owners:
        return f"it is no part of a preset, give {flag} to detcam {', '.join(owners)}"
    return nearest(key, Preset.model_fields)


def build_explainer(options: dict[str, Any]) -> Any:
    """The Explainer of these options; torch and the models are imported here, so that `--help` is quick."""
    from detcam.explainer import Explainer

    return Explainer(**options)


def require_files(images: Sequence[Path]) -> None:
    """Complain about a missing picture before the model is loaded and before anything is written."""
    for path in images:
        if not path.exists():
            raise InputError(f"{path} does not exist: check the path")


def require_writable(folder: Path) -> None:
    """Raise an OutputError if nothing can be written to a folder, before any work is done."""
    parent = folder.absolute()
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise OutputError(f"{folder} cannot be written ({parent} is no writable folder): choose another --out")
