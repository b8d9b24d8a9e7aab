"""Progress and counts: bars on a terminal, lines elsewhere, nothing where a command is to be quiet."""

from __future__ import annotations

import io
import logging
from typing import Any

import pytest
from rich.console import Console

from detcam.cli.console import console, counted, counted_labels, log_lines, progress


def told(steps: int, terminal: bool = False, **options: Any) -> str:
    stream = io.StringIO()
    screen = Console(file=stream, force_terminal=terminal, width=80, highlight=False, soft_wrap=True)
    with progress(screen, **options) as bars:
        tell = bars("explaining", steps)
        for i in range(steps):
            tell(i + 1, state=f"{i} fps", line=f"[b]{i + 1}[/b] of {steps}")
    return stream.getvalue()


def test_a_line_now_and_then_where_there_is_no_terminal() -> None:
    assert told(3, seconds=0) == "[b]1[/b] of 3\n[b]2[/b] of 3\n[b]3[/b] of 3\n"
    assert told(3, seconds=1000) == ""
    assert told(3, seconds=1000, at_once=True) == "[b]1[/b] of 3\n"


def test_a_bar_on_a_terminal() -> None:
    shown = told(3, terminal=True, seconds=0)
    assert "explaining" in shown
    assert "3/3" in shown
    assert "2 fps" in shown
    assert "of 3" not in shown
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1, "the cursor comes back"


@pytest.mark.parametrize("terminal", [False, True])
def test_quiet_is_quiet(terminal: bool) -> None:
    assert told(3, terminal, quiet=True, seconds=0) == ""


def test_what_is_logged_is_a_line() -> None:
    stream = io.StringIO()
    logger = logging.getLogger("detcam.tests")
    with log_lines(Console(file=stream, width=20, soft_wrap=True), "detcam.tests"):
        logger.warning("%s is not [bold]", "a worker that ended")
    logger.warning("unheard")
    assert stream.getvalue() == "a worker that ended is not [bold]\n"


def test_a_path_is_never_broken(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    console().print("out " + "x" * 50)
    console(stderr=True).print("err " + "y" * 50)
    console(quiet=True).print("nothing")
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == (f"out {'x' * 50}\n", f"err {'y' * 50}\n")


def test_counts() -> None:
    assert [counted(n, "image") for n in (0, 1, 2)] == ["0 images", "1 image", "2 images"]
    assert counted_labels(["person", "bus", "person"]) == "3 objects (2 person, 1 bus)"
    assert counted_labels(["bus"]) == "1 object (1 bus)"
    assert counted_labels([]) == "0 objects"
