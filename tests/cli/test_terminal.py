"""What the terminal shows at 80 columns, without colour, and when piped."""

import io
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

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


def printed(command: list[str], monkeypatch: pytest.MonkeyPatch, width: int = WIDTH) -> list[str]:
    """The lines of a command that lists something, as a pipe of so many columns gets them."""
    stream = io.StringIO()
    monkeypatch.setattr(listings, "out", Console(highlight=False, width=width, file=stream))
    assert cli.run(command) == 0
    return stream.getvalue().splitlines()


@pytest.mark.parametrize("command", [["methods"], ["families"], ["layers", "scenes"]], ids=" ".join)
def test_lists_fit_80_columns_in_plain_text(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    lines = printed(command, monkeypatch)
    assert len(lines) > 10
    assert not [line for line in lines if len(line) > WIDTH or line != line.rstrip() or "\x1b" in line]


@pytest.mark.parametrize("width", [WIDTH, 40])
def test_no_name_is_cut(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = {line.split("  ")[0] for line in printed(["methods"], monkeypatch, width)}
    assert set(METHODS) <= shown
    shown = {line.split("  ")[0] for line in printed(["families"], monkeypatch, width)}
    assert {row["family"] for row in family_rows()} <= shown
    text = " ".join(" ".join(printed(["families"], monkeypatch, width)).split())
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
    listings.print_layers([layer(name) for name in names], Console(highlight=False, width=WIDTH, file=stream))
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
            "objects": 3, "pictures": 2, "unchanged_by_randomised_weights": [],
            "measures": [{"name": m, "better": "higher"} for m in measures],
            "contenders": {name: {m: {"mean": 0.123} for m in measures} for name in names},
        }  # fmt: skip
        evaluate._finish(tmp_path, document, as_json=False)
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
    for command in (["explain", str(scene), str(scene), "--out", str(tmp_path)], ["doctor"]):
        assert cli.run(command) == 0
        shown = capsys.readouterr().out
        assert shown
        assert "\x1b" not in shown
        assert "\r" not in shown
        assert "explaining" not in shown


def test_a_terminal_without_colour_gets_none_and_keeps_its_lines(scene: Path, tmp_path: Path) -> None:
    """In a real terminal of 80 columns: bars come and go, lines stay, and NO_COLOR is kept to."""
    script = f"""
import os
os.environ.update(NO_COLOR="1", COLUMNS="80", TERM="xterm-256color")
from detcam import cli
cli.run(["explain", {str(scene)!r}, {str(scene)!r}, "--out", {str(tmp_path)!r}])
cli.run(["layers", "scenes"])
"""
    main, end = pty.openpty()
    with subprocess.Popen([sys.executable, "-c", script], stdout=end, stderr=end, stdin=end) as process:
        os.close(end)
        shown = b""
        while True:
            try:
                part = os.read(main, 65536)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            shown += part
    os.close(main)
    text = shown.decode()
    assert process.returncode == 0, text
    assert "explaining" in text
    assert not COLOUR.search(text)
    assert f"-> {tmp_path / 'scene'}\r\n" in text
    assert "model.21" in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h")  # a cursor that was hidden comes back
