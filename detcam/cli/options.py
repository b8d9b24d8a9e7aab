"""Options that several commands share; those of a preset are generated from the fields of `Preset`."""

import os
from collections.abc import Callable, Collection, Sequence
from functools import wraps
from glob import glob
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import typer

from detcam.config import Preset, default_of, read_preset
from detcam.errors import InputError, OutputError, nearest

ConfigFlag = Annotated[Path | None, typer.Option(help="A YAML preset, see configs/; flags win over it.")]
PrintConfigFlag = Annotated[
    bool, typer.Option("--print-config", help="Print the options in force as a preset, and do nothing else.")
]
TrustFlag = Annotated[
    bool,
    typer.Option(
        "--trust-checkpoint", help="Load pickled weights whatever classes they name: this runs any code in the file."
    ),
]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
Command = Callable[..., None]


def with_preset_options(without: Collection[str] = (), **helps: str) -> Callable[[Command], Command]:
    """Decorator of a command with a parameter `preset`: flags for the options of a preset, --config, --print-config.

    The command gets the preset in force; its flags stand in the help where `preset` stands in the command's signature.
    With --print-config that preset is printed and the command does not run. A flag that the command declares itself is
    left to the command, fields in `without` get no flag, and `helps` replaces the generated help texts of some fields.
    """

    def decorate(command: Command) -> Command:
        hints = get_type_hints(command, include_extras=True)
        fields = [name for name in Preset.model_fields if name not in hints and name not in without]
        options = [
            _parameter(name, Annotated[_kind(name) | None, typer.Option(help=helps.get(name) or help_of(name))], None)
            for name in fields
        ]
        if "config" not in hints:
            options.append(_parameter("config", ConfigFlag, None))
        if "print_config" not in hints:
            options.append(_parameter("print_config", PrintConfigFlag, False))

        @wraps(command)
        def run(**values: Any) -> None:
            config = None if "config" in hints else values.pop("config")
            preset = preset_of(config, **{name: values.pop(name) for name in fields})
            if "print_config" not in hints and values.pop("print_config"):
                print(preset.to_yaml(), end="")
            else:
                command(preset=preset, **values)

        parameters: list[Parameter] = []
        for name, parameter in signature(command).parameters.items():
            parameters += options if name == "preset" else [_parameter(name, hints[name], parameter.default)]
        run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate


def _parameter(name: str, hint: Any, default: Any) -> Parameter:
    return Parameter(name, Parameter.KEYWORD_ONLY, annotation=hint, default=default)


def _kind(name: str) -> Any:
    """The type of a flag, from that of the field: a list is a repeated flag, or text with commas where text will do."""
    hint = Preset.model_fields[name].annotation
    kinds = get_args(hint) or (hint,)
    return str if name == "imgsz" else next((kind for kind in (int, float, str, list[str]) if kind in kinds), str)


def help_of(name: str, more: str = "") -> str:
    """The help text of a flag: the description, how to give several values, `more`, and the default (no model is)."""
    field, default = Preset.model_fields[name], None if name == "model" else default_of(name)
    if list[str] in get_args(field.annotation):
        more = (" Repeatable." if _kind(name) == list[str] else " Separate names with commas.") + more
    return f"{field.description}{more}{f' [default: {default}]' if default else ''}"


def preset_of(config: str | Path | None = None, **flags: Any) -> Preset:
    """The file's or the default preset with the given flags laid over it; an InputError if it is not valid."""
    preset = read_preset(config, _elsewhere) if config else Preset()
    if "," in (flags.get("layers") or ""):
        flags["layers"] = flags["layers"].split(",")
    if isinstance(flags.get("classes"), str):
        flags["classes"] = [_number(part.strip()) for part in flags["classes"].split(",")]
    if isinstance(flags.get("imgsz"), str):
        sides = [_number(side.strip()) for side in flags["imgsz"].split(",")]
        flags["imgsz"] = sides[0] if len(sides) == 1 else sides
    return preset.updated(**flags | {name: flags.get(name) or None for name in ("text", "names")})


def _number(text: str) -> int | str:
    return int(text) if text.isdecimal() else text


def _elsewhere(key: str) -> str:
    """The hint for a key that presets do not have: it may be a flag of some command."""
    from detcam.cli.app import app

    flag = f"--{key.replace('_', '-')}"
    commands: dict[str, Any] = getattr(typer.main.get_command(app), "commands", {})
    owners = [
        name
        for name, command in commands.items()
        if any(flag in (*option.opts, *option.secondary_opts) for option in command.params)
    ]
    if owners:
        return f"it is not part of a preset, give {flag} to detcam {', '.join(owners)}"
    return nearest(key, Preset.model_fields)


def require_files(images: Sequence[Path]) -> list[Path]:
    """The image files, which must exist; patterns are expanded, as the shell of Windows leaves that to commands."""
    files: list[Path] = []
    for path in images:
        matches = [path] if path.exists() else [Path(name) for name in sorted(glob(str(path), recursive=True))]
        if not matches:
            raise InputError(f"{path} does not exist: check the path")
        files += matches
    return files


def require_writable(folder: Path) -> None:
    """Raise an OutputError if nothing can be written to a folder, before any work is done."""
    parent = folder.absolute()
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise OutputError(f"{folder} cannot be written ({parent} is not a writable folder): choose another --out")


def require_model(preset: Preset) -> None:
    """Raise an InputError if neither a flag nor a preset names a model: the default knows drawn scenes only."""
    if "model" not in preset.model_fields_set:
        raise InputError(
            "model: none is given: give --model yolov8n.pt (a path or a name), or --model scenes for the demo model of "
            "drawn scenes"
        )
