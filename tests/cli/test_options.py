"""Options are described once, in `Preset`: flags, docs and the default preset are generated from it."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from detcam import cli
from detcam.adapters import NAMED, TARGETS
from detcam.cli.app import app
from detcam.cli.options import require_files, with_preset_options
from detcam.config import Preset, default_of
from detcam.errors import InputError
from detcam.options import LAYER_PRESETS, SEGMENTS

TABLES = Path(__file__).parents[2] / "docs" / "make_tables.py"
COMMANDS = ("explain", "video", "batch", "evaluate", "compare")


def options_of(command: str) -> dict[str, Any]:
    """Flag -> option of a command."""
    parameters = typer.main.get_command(app).commands[command].params  # type: ignore[attr-defined]
    return {flag: option for option in parameters for flag in option.opts}


def test_the_docs_and_the_default_preset_are_generated_from_the_fields() -> None:
    for path, text in runpy.run_path(str(TABLES))["texts"]().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is stale: run python docs/make_tables.py"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_key_of_a_preset_is_a_flag_of_every_command(command: str) -> None:
    options = options_of(command)
    missing = {f"--{key.replace('_', '-')}" for key in Preset.model_fields} - set(options)
    assert missing == ({"--method"} if command == "evaluate" else set())
    assert {"--config", "--print-config", "--trust-checkpoint"} <= set(options)
    for name in ("model", "target", "segments", "text", "adapter", "conf", "iou"):
        description, help_text = Preset.model_fields[name].description, options[f"--{name}"].help
        assert help_text.startswith(description)
        default = None if name == "model" else default_of(name)
        assert ("[default: " in help_text) == (default is not None)
        assert default is None or f"[default: {default}]" in help_text
    assert options["--device"].help.startswith("Device, such as cpu, cuda")


def test_descriptions_name_every_choice() -> None:
    described = {name: field.description or "" for name, field in Preset.model_fields.items()}
    assert all(described.values())
    for name, choices in (("target", TARGETS), ("layers", LAYER_PRESETS), ("segments", SEGMENTS), ("adapter", NAMED)):
        assert all(choice in described[name] for choice in choices)
    assert set(NAMED) == {"panoptic"}, "the choices of Preset.adapter"


def test_a_command_gets_the_preset_in_force_and_keeps_its_own_flags(tmp_path: Path) -> None:
    taken: dict[str, Any] = {}
    small = typer.Typer()

    @small.command()
    @with_preset_options(without=["text"], max_det="Most objects per page.")
    def command(
        layers: Annotated[list[str] | None, typer.Option(help="Repeatable here.")] = None, *, preset: Preset
    ) -> None:
        taken.update(layers=layers, preset=preset)

    runner = CliRunner()
    assert runner.invoke(small, ["--layers", "a", "--layers", "b", "--conf", "0.5"]).exit_code == 0
    assert taken == {"layers": ["a", "b"], "preset": Preset(conf=0.5)}
    assert taken["preset"].model_fields_set == {"conf"}, "a flag that is not given is not set"
    shown = runner.invoke(small, ["--help"], env={"COLUMNS": "200"}).output
    assert "Most objects per page." in shown
    assert "Repeatable here." in shown
    assert "--text" not in shown

    path = tmp_path / "preset.yaml"
    path.write_text("conf: 0.4\niou: 0.6\n")
    taken.clear()
    printed = runner.invoke(small, ["--config", str(path), "--conf", "0.5", "--print-config"]).output
    assert printed == Preset(conf=0.5, iou=0.6).to_yaml()
    assert not taken, "--print-config does nothing else"


@pytest.mark.parametrize("command", COMMANDS)
def test_wrong_values_are_named(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    for flags, words in (
        (["--conf", "2"], "option 'conf' is 2.0"),
        (["--segments", "x"], "option 'segments' is 'x': input should be 'class' or 'component'"),
        (["--adapter", "x"], "option 'adapter' is 'x': input should be 'auto' or 'panoptic'"),
        (["--imgsz", "big"], "option 'imgsz' is 'big'"),
    ):
        assert cli.run([command, "--print-config", *flags]) == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1


def test_patterns_are_expanded_if_no_such_file_exists(tmp_path: Path) -> None:
    """The shell of Windows leaves that to the command."""
    for name in ("b.jpg", "a.jpg", "c.png", "[1].jpg"):
        (tmp_path / name).touch()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "d.jpg").touch()
    found = require_files([tmp_path / "[ab].jpg", tmp_path / "[1].jpg", tmp_path / "**" / "d.jpg"])
    assert [path.name for path in found] == ["a.jpg", "b.jpg", "[1].jpg", "d.jpg"]
    with pytest.raises(InputError, match=r"\*\.gif does not exist"):
        require_files([tmp_path / "*.gif"])
