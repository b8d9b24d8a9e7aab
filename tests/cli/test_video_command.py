"""`detcam video` as a user meets it."""

import json
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from clips import Contents, moving_blobs, write_clip, write_sound
from support import heeding_ctrl_c

from detcam import cli
from detcam.scenes import HELD_OUT_SEED, draw_scene


def scenes(count: int) -> list[np.ndarray]:
    """A drawn scene that slides to the left."""
    image = draw_scene(HELD_OUT_SEED).image
    return [np.ascontiguousarray(np.roll(image, -2 * i, axis=1)) for i in range(count)]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "in.mp4", scenes(10), sound="aac")


def test_writes_video_rows_and_stats(clip: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out, rows, stats = tmp_path / "out.mp4", tmp_path / "rows.jsonl", tmp_path / "stats.json"
    arguments = ["--out", str(out), "--model", "scenes-yolo", "--imgsz", "160", "--every", "2", "--side-by-side"]
    assert cli.run(["video", str(clip), *arguments, "--rows", str(rows), "--json", str(stats)]) == 0
    given, found = Contents.of(clip), Contents.of(out)
    assert (found.times, found.duration, found.sound) == (given.times, given.duration, given.sound)
    assert found.images[0].shape[1] == 2 * given.images[0].shape[1]
    done = json.loads(stats.read_text())
    assert (done["frames"], done["expected"], done["explained"], done["every"]) == (10, 10, 5, 2)
    assert done["settings"]["method"] == "odam"
    lines = [json.loads(line) for line in rows.read_text().splitlines()]
    assert len(lines) == done["objects"] > 10
    keys = "frame time track label class_id score box peak energy explained note"
    assert all(list(line) == keys.split() for line in lines)
    assert {line["frame"] for line in lines} == set(range(10))
    said = capfd.readouterr()
    assert f"10 frames, {len(lines)} objects" in said.out
    assert said.err == ""


def test_a_damaged_video_is_a_warning(clip: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    broken = write_clip(tmp_path / "broken.avi", scenes(30))
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size * 2 // 3])
    arguments = ["--out", str(tmp_path / "out.mp4"), "--imgsz", "160", "--view", "none", "--model", "scenes-yolo"]
    assert cli.run(["video", str(broken), *arguments]) == 0
    said = capfd.readouterr()
    count = len(Contents.of(tmp_path / "out.mp4").images)
    assert 5 < count < 30
    assert f"{30 - count} of 30 frames are missing" in said.err
    assert said.err.startswith("warning: ")
    assert said.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing.mp4"], ["missing.mp4", "does not exist"]),
        (["empty.mp4"], ["empty.mp4", "empty"]),
        (["text.mp4"], ["text.mp4", "cannot be read"]),
        (["sound.m4a"], ["sound.m4a", "sound only"]),
        (["CLIP", "--out", "out.webm"], ["out.webm", "not a supported format"]),
        (["CLIP", "--out", "no/out.mp4"], ["no/out.mp4", "cannot be written"]),
        (["CLIP", "--view", "box"], ["'box'", "'boxes'"]),
        (["CLIP", "--classes", "ballon"], ["ballon", "'balloon'"]),
        (["CLIP", "--model", "no.pt"], ["no.pt", "does not exist"]),
        (["CLIP", "--every", "0"], ["every"]),
        (["CLIP", "--budget", "-1"], ["budget"]),
    ],
    ids=lambda value: " ".join(value[:4]),
)
def test_errors_are_one_line_and_leave_nothing(
    clip: Path,
    tmp_path: Path,
    arguments: list[str],
    words: list[str],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.mp4").touch()
    Path("text.mp4").write_text("this is no video " * 100)
    write_sound(Path("sound.m4a"))
    before = sorted(tmp_path.iterdir())
    assert cli.run(["video", "--model", "scenes-yolo", *(str(clip) if a == "CLIP" else a for a in arguments)]) == 2
    said = capfd.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    for word in words:
        assert word in said
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.nightly
def test_ctrl_c_finishes_a_file_that_plays(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "in.mp4", moving_blobs(1, 3000, 64, 64), sound="aac")
    out = tmp_path / "out.mp4"
    arguments = [
        sys.executable,
        "-m",
        "detcam",
        "video",
        str(clip),
        "--out",
        str(out),
        "--imgsz",
        "64",
        "--model",
        "scenes-yolo",
    ]
    rows = tmp_path / "rows.jsonl"
    command = [*arguments, "--rows", str(rows)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heeding_ctrl_c) as process:
        deadline = time.monotonic() + 100
        seen = 0  # the file is there to stay once the first frame is written
        while seen < 5 and time.monotonic() < deadline:
            assert process.poll() is None
            seen = seen + 1 if list(tmp_path.glob(".out.*")) else 0
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "interrupted" in said
    found = Contents.of(out)
    given = Contents.of(clip)
    count = len(found.images)
    assert 0 < count < 3000
    assert found.times == given.times[:count]
    assert found.sound_times[-1] <= found.duration
    assert rows.exists()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.nightly
def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["explain_video.py"])
    runpy.run_path(str(Path(__file__).parents[2] / "examples" / "explain_video.py"), run_name="__main__")
    assert len(Contents.of(tmp_path / "heat.mp4").images) == 20
