"""Ctrl-C in a real process: exit code 130, one line that says what is written and how to go on, and that it is true."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from support import heeding_ctrl_c

from benchmarks.training.yolo_dataset import write_dataset
from detcam import cli
from detcam.cli.interrupt import NOTHING
from detcam.scenes import HELD_OUT_SEED, draw_scene

PICTURES = 150
PATIENCE = 300.0  # seconds
QUICK = ["--model", "scenes-yolo", "--imgsz", "160"]
SCRIPT = """
import sys
from detcam import cli
for line in sys.stdin:
    code = cli.run(line.rstrip("\\n").split("\\t"))
    print("exit", code, file=sys.stderr, flush=True)
"""


class Terminal:
    """Runs commands one after the other in a process of its own, and ends each with Ctrl-C."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            preexec_fn=heeding_ctrl_c,
        )  # fmt: skip

    def interrupted(self, command: list[str], begun: Callable[[], bool]) -> list[str]:
        """The lines that a command wrote on standard error; Ctrl-C comes once it has begun."""
        assert self._process.stdin is not None
        assert self._process.stderr is not None
        self._process.stdin.write("\t".join(command) + "\n")
        self._process.stdin.flush()
        deadline = time.monotonic() + PATIENCE
        while not begun():
            assert self._process.poll() is None, self._process.stderr.read()
            assert time.monotonic() < deadline, f"{command} does not begin"
            time.sleep(0.01)
        self._process.send_signal(signal.SIGINT)
        lines: list[str] = []
        for line in self._process.stderr:
            if line.startswith("exit "):
                assert line == "exit 130\n", lines
                return lines
            lines.append(line.rstrip("\n"))
        raise AssertionError(f"{command} ended the process: {lines}")

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture(scope="module")
def terminal() -> Iterator[Terminal]:
    running = Terminal()
    yield running
    running.close()


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One held-out scene many times over, as pictures with labels."""
    folder = tmp_path_factory.mktemp("scenes")
    write_dataset(folder, train=(), val=[HELD_OUT_SEED], size=(120, 160), workers=1)
    for kind in ("images", "labels"):
        (first,) = (folder / kind / "val").iterdir()
        for i in range(PICTURES - 1):
            shutil.copy(first, first.with_stem(f"copy_{i:03d}"))
    return folder


def one(lines: list[str]) -> str:
    """The line about Ctrl-C: the last one, and the only one of its kind."""
    said = [line for line in lines if "interrupted" in line or "Traceback" in line]
    assert said == lines[-1:]
    return lines[-1]


def close_to(said: int, found: int) -> None:
    """Ctrl-C may come between a picture that is written and its count."""
    assert 0 <= found - said <= 1
    assert 0 < said < PICTURES


@pytest.mark.nightly
def test_explain_and_the_report_of_what_it_wrote(terminal: Terminal, scenes: Path, tmp_path: Path) -> None:
    pictures, out = sorted(map(str, (scenes / "images" / "val").iterdir())), tmp_path / "out"
    command = ["explain", *pictures, *QUICK, "--max-det", "1", "--out", str(out)]
    line = one(terminal.interrupted(command, lambda: len(list(out.glob("*/contact.png"))) > 2))
    words = line.split()
    assert line == (
        f"interrupted: {words[1]} of {PICTURES} images are explained in {out}: the same command starts over"
    )
    close_to(int(words[1]), len(list(out.iterdir())))

    whole = next(out.iterdir())
    for i in range(PICTURES):
        copy = Path(shutil.copytree(whole, out / f"more_{i}"))
        document = json.loads((copy / "explanation.json").read_text())
        (copy / "explanation.json").write_text(json.dumps({**document, "source": f"more_{i}.png"}))
    line = one(terminal.interrupted(["report", str(out)], lambda: bool(list(out.glob("*/report.html")))))
    assert line == f"interrupted: the pages that {out} holds are complete: the same command writes all of them"
    pages = list(out.glob("*/report.html"))
    assert 0 < len(pages) < PICTURES
    assert not (out / "index.html").exists()
    assert all(page.read_text().rstrip().endswith("</html>") for page in pages)
    assert not list(out.rglob(".detcam-*"))


@pytest.mark.nightly
def test_demo(terminal: Terminal, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    command = ["demo", "--scenes", "100", "--out", str(out)]
    line = one(terminal.interrupted(command, lambda: (out / "scene_002").exists()))
    words = line.split()
    assert line == f"interrupted: {words[1]} of 100 scenes are explained in {out}"
    close_to(int(words[1]), len(list(out.rglob("explanation.json"))))


@pytest.mark.nightly
def test_evaluate_and_it_goes_on(
    terminal: Terminal, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "judged"
    labels = ["--images", str(scenes / "images" / "val"), "--labels", str(scenes / "labels" / "val")]
    command = ["evaluate", *QUICK, *labels, "--methods", "odam", "--layers", "level", "--quick", "--out", str(out)]
    rows = lambda: list((out / "rows").glob("*.json"))  # noqa: E731
    line = one(terminal.interrupted([*command, "--pictures", str(PICTURES)], lambda: len(rows()) > 0))
    count = len(rows())
    assert 0 < count < PICTURES
    plural = "" if count == 1 else "s"
    assert line == f"interrupted: {count} image{plural} judged in {out}: go on with --resume"
    assert cli.run([*command, "--pictures", str(PICTURES)]) == 2
    assert f"holds {count} rows of an earlier run: add --resume" in capsys.readouterr().err


@pytest.mark.nightly
def test_compare(terminal: Terminal, scenes: Path, tmp_path: Path) -> None:
    pictures, out = sorted(map(str, (scenes / "images" / "val").iterdir())), tmp_path / "out"
    command = ["compare", *pictures, *QUICK, "--layers", "level", "--layers", "evidence", "--out", str(out)]
    line = one(terminal.interrupted(command, out.exists))
    assert line.startswith(f"interrupted: {NOTHING}, because the comparison is written when all images are compared")
    assert list(out.iterdir()) == []


def test_explain_says_how_far_it_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C while the third of four images is saved."""
    from detcam import Explanation

    out, images, saved = tmp_path / "out", [tmp_path / f"{i}.png" for i in range(4)], []
    for image in images:
        cv2.imwrite(str(image), np.zeros((64, 64, 3), np.uint8))

    def save(explanation: Explanation, folder: Path, source: Path) -> None:
        saved.append(source)
        if len(saved) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Explanation, "save", save)
    assert cli.run(["explain", *map(str, images), *QUICK, "--out", str(out)]) == 130
    assert saved == images[:3]
    assert capfd.readouterr().err == (
        f"interrupted: 2 of 4 images are explained in {out}: the same command starts over\n"
    )


def test_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """While the model is loaded; also of commands that write nothing at all."""

    def stop(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    picture, out = tmp_path / "a.png", tmp_path / "out"
    cv2.imwrite(str(picture), draw_scene(HELD_OUT_SEED, (120, 160)).image[:, :, ::-1])
    clip = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(clip), cv2.VideoWriter.fourcc(*"MJPG"), 5, (160, 120))
    for _ in range(3):
        writer.write(np.zeros((120, 160, 3), np.uint8))
    writer.release()
    monkeypatch.setattr("detcam.explainer.Explainer.__init__", stop)
    monkeypatch.setattr("detcam.models.load.load_model", stop)
    for command in (
        ["explain", "--model", "scenes", str(picture), "--out", str(out)],
        ["demo", "--out", str(out)],
        ["compare", str(picture), "--model", "scenes", "--layers", "level", "--layers", "evidence", "--out", str(out)],
        ["video", str(clip), "--model", "scenes", "--out", str(tmp_path / "out.mp4")],
        ["layers", "scenes-yolo"],
    ):
        before = sorted(tmp_path.iterdir())
        assert cli.run(command) == 130
        said = capfd.readouterr()
        assert said.err.startswith(f"interrupted: {NOTHING}")
        assert said.err.count("\n") == 1
        assert said.out == ""
        assert sorted(tmp_path.iterdir()) == before
