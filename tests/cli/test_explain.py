"""`detcam explain --ask` and the progress of slow methods, as a user sees them."""

import importlib
import io
import json
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from rich.console import Console

from detcam import Explainer, cli
from detcam.methods.perturbation import Occlusion
from detcam.saved import Saved, find
from detcam.scenes import CLASSES, HELD_OUT_SEED, draw_scene


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    path = tmp_path / "scene.png"
    cv2.imwrite(str(path), draw_scene(HELD_OUT_SEED).image[:, :, ::-1])
    return path


def test_ask_on_the_command_line(scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair = "147,276,247,478:kite"
    arguments = ["explain", str(scene), "--model", "scenes-yolo"]
    assert cli.run([*arguments, "--ask", pair, "--ask", "5,5,60,60:1", "--out", str(tmp_path / "o")]) == 0
    printed = capsys.readouterr().out
    assert "asked for kite: the best candidate" in printed
    document = json.loads((tmp_path / "o" / "explanation.json").read_text())
    assert [a["class_id"] for a in document["asked"]] == [CLASSES.index("kite"), 1]
    for wrong in ("147,276,247:kite", "147,276,247,478", "a,b,c,d:kite", "147,276,247,478:kit", "900,1,950,9:kite"):
        assert cli.run([*arguments, "--ask", wrong, "--out", str(tmp_path / "no")]) == 2
        assert capsys.readouterr().err.startswith("error: ask")
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("terminal", [True, False])
def test_sweeps_show_a_bar_on_a_terminal_only(
    terminal: bool, scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = io.StringIO()
    screen = Console(file=text, force_terminal=terminal, highlight=False, soft_wrap=True)
    module = importlib.import_module("detcam.cli.explain")
    monkeypatch.setattr(module, "console", lambda: screen)

    def slow(**options: Any) -> Any:
        def told(done: int, total: int) -> None:
            counts.append((done, total))
            options["progress"](done, total)
            time.sleep(0.15 if done == 2 else 0)  # bars are drawn ten times a second

        return Explainer(**{**options, "method": Occlusion(cells=3), "progress": told, "memory": 1})

    counts: list[tuple[int, int]] = []
    monkeypatch.setattr(module, "Explainer", slow)
    arguments = ["explain", str(scene), str(scene), "--model", "scenes-yolo", "--out", str(tmp_path / "o")]
    assert cli.run([*arguments, "--max-det", "1", "--imgsz", "96"]) == 0
    assert len(counts) >= 2
    assert ("sweeping" in text.getvalue()) == terminal
    assert ("explaining" in text.getvalue()) == terminal
    assert ("\x1b" in text.getvalue()) == terminal


def test_the_page_shows_both_views(scene: Path, tmp_path: Path) -> None:
    out = tmp_path / "o"
    arguments = ["explain", str(scene), "--model", "scenes-yolo", "--imgsz", "96", "--max-det", "2", "--out", str(out)]
    for given, views in (
        ([], ["why", "where"]),
        (["--view", "where"], ["where", "why"]),
        (["--method", "gradcam"], [""]),
    ):
        assert cli.run([*arguments, *given, "--report"]) == 0
        assert [Saved.read(folder).view for folder in find(out)] == views
    assert cli.run([*arguments, "--report"]) == 0
    for method, folder in (("layerig", out), ("odam", out / "view-where")):
        expected = Explainer("scenes-yolo", method, imgsz=96, max_det=2)(str(scene))
        for ours, theirs in zip(Saved.read(folder).maps(), expected.maps, strict=True):
            assert np.array_equal(ours, theirs.numpy())
    assert cli.run(arguments) == 0
    assert find(out) == [out], "the view of an earlier run is gone"


def test_a_model_that_cannot_answer_the_other_view(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The explanation that was asked for and its page are there all the same."""
    monkeypatch.setitem(importlib.import_module("detcam.methods").VIEWS, "why", ("layerig", "model.22.dfl"))
    out = tmp_path / "o"
    arguments = [
        "--model",
        "scenes-yolo",
        "--view",
        "where",
        "--imgsz",
        "160",
        "--max-det",
        "2",
        "--report",
        "--out",
        str(out),
    ]
    assert cli.run(["explain", str(scene), *arguments]) == 0
    assert find(out) == [out]
    assert (out / "report.html").exists()
    error = capsys.readouterr().err
    assert error.startswith("warning: ")
    assert "cannot answer 'why'" in error
    assert "model.22.dfl" in error
