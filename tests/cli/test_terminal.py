"""What the terminal shows at 80 columns, without colour, and when piped."""

import io
import os
import pty
import re
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import pytest
from rich.console import Console

from detcam import cli
from detcam.cli import evaluate
from detcam.cli import lists as listings
from detcam.cli.families import family_rows
from detcam.layers import Layer
from detcam.methods import METHODS
from detcam.scenes import HELD_OUT_SEED, draw_scene

WIDTH = 80
COLOUR = re.compile(r"\x1b\[[\d;]*(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])[;m]")
LONG = "model.backbone.conv_encoder.model.encoder.stages.3.layers.11.layer.2.convolution"  # 80 characters


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """Runs a command; its lines in a pipe with the given number of columns."""

    def run(*command: str, width: int = WIDTH) -> list[str]:
        monkeypatch.setenv("COLUMNS", str(width))
        assert cli.run(command) == 0
        return capsys.readouterr().out.splitlines()

    return run


@pytest.mark.parametrize("command", [["methods"], ["families"], ["layers", "scenes-yolo"]], ids=" ".join)
def test_lists_fit_80_columns_in_plain_text(command: list[str], printed: Callable[..., list[str]]) -> None:
    lines = printed(*command)
    assert len(lines) > 10
    assert not [line for line in lines if len(line) > WIDTH or line != line.rstrip() or "\x1b" in line]


@pytest.mark.parametrize("width", [WIDTH, 40])
def test_no_name_is_cut(width: int, printed: Callable[..., list[str]]) -> None:
    shown = {line.split("  ")[0] for line in printed("methods", width=width)}
    assert set(METHODS) <= shown
    lines = printed("families", width=width)
    assert {row["family"] for row in family_rows()} <= {line.split("  ")[0] for line in lines}
    text = " ".join(" ".join(lines).split())
    for row in family_rows():
        assert row["models"] in text
        assert row["install"] in text


def layer(name: str) -> Layer:
    return Layer(name, "", "RTDetrResNetBottleNeckLayer", 2048, 20, 20, 32.0, 0.5, ("level", "evidence"))


@pytest.mark.parametrize(
    "names", [["model.1", "model.22"], ["model.1", LONG], [LONG * 2]], ids=["short", "long", "longer"]
)
def test_a_layers_name_can_be_copied_whole(names: list[str]) -> None:
    stream = io.StringIO()
    listings.print_layers(
        [layer(name) for name in names], Console(highlight=False, soft_wrap=True, width=WIDTH, file=stream)
    )
    lines = stream.getvalue().splitlines()
    for name in names:
        assert any(line.split()[0] == name for line in lines if line.strip())
    assert not [line for line in lines if len(line) > WIDTH and line not in names]
    assert "level, evidence" in " ".join(stream.getvalue().split())


def test_the_judges_table_keeps_words_and_names_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    monkeypatch.setattr("detcam.evaluate.report.save", lambda folder, document: [folder, folder / "report.md"])
    names = ["odam @ level", "ultralytics layercam", "product:odam@evidence,odam@level"]
    for measures in (
        evaluate.HEADLINES,
        [f"{kind} {m}" for kind in ("mark", "beacon", "context") for m in ("mass", "rank")],
    ):
        document = {
            "objects": 3, "pictures": 2, "settings": {"quick": False}, "unchanged_by_randomised_weights": [],
            "measures": [{"name": m, "better": "higher"} for m in measures],
            "contenders": {name: {m: {"mean": 0.123} for m in measures} for name in names},
        }  # fmt: skip
        evaluate.finish(tmp_path, document, as_json=False)
        shown = capsys.readouterr().out
        lines = shown.splitlines()[: -2 if len(str(tmp_path)) > WIDTH else -1]
        assert "\x1b" not in shown
        assert not [line for line in lines if len(line) > WIDTH or "…" in line]
        words = {word for measure in measures for word in re.split("[_ ]", measure)}
        assert words <= set(shown.split())
        assert {"layercam", "@"} <= set(shown.split())
        assert names[2] in "".join(line[:40].split(" ")[0] for line in lines)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("terminal") / "scene.png"
    cv2.imwrite(str(path), draw_scene(HELD_OUT_SEED, (120, 160)).image[:, :, ::-1])
    return path


def test_a_pipe_gets_plain_lines(scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["explain", "--model", "scenes", str(scene), str(scene), "--out", str(tmp_path)], ["doctor"]):
        assert cli.run(command) == 0
        shown = capsys.readouterr().out
        assert shown
        assert "\x1b" not in shown
        assert "\r" not in shown
        assert "explaining" not in shown


def test_a_terminal_without_colour_gets_none_and_keeps_its_lines(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a real terminal of 80 columns: bars come and go, lines stay, and NO_COLOR is kept to."""
    for name, value in {"NO_COLOR": "1", "COLUMNS": str(WIDTH), "TERM": "xterm-256color"}.items():
        monkeypatch.setenv(name, value)
    main, end = pty.openpty()
    parts: list[bytes] = []

    def read() -> None:
        with suppress(OSError):  # the other end is closed
            while part := os.read(main, 65536):
                parts.append(part)

    reader = threading.Thread(target=read)
    reader.start()
    with open(end, "w", encoding="utf-8") as terminal, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", terminal)
        patched.setattr(sys, "stderr", terminal)
        codes = [
            cli.run(["explain", "--model", "scenes", str(scene), str(scene), "--out", str(tmp_path)]),
            cli.run(["families"]),
        ]
    reader.join(60)
    os.close(main)
    text = b"".join(parts).decode()
    assert codes == [0, 0], text
    assert "explaining" in text
    assert not COLOUR.search(text)
    assert f"-> {tmp_path / 'scene'}\r\n" in text
    assert "targets: " in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h")  # a cursor that was hidden comes back


def test_quick_says_what_it_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("detcam.evaluate.report.save", lambda folder, document: [folder, folder / "report.md"])
    document: dict[str, Any] = {
        "objects": 3, "pictures": 2, "settings": {"quick": True, "pictures": 2, "of": 64}, "measures": [],
        "unchanged_by_randomised_weights": [], "contenders": {"odam @ level": {}},
    }  # fmt: skip
    evaluate.finish(tmp_path, document, as_json=False)
    assert "--quick judged 2 of 64 images" in capsys.readouterr().out
