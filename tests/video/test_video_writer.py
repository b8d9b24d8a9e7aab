"""From file to file: frames, times, sound and rows, and what an error leaves."""

import json
import threading
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from clips import Contents, moving_blobs, number_grey, write_clip
from frames import Pictures

import detcam
from detcam import Explainer, InputError
from detcam.video import Style


def halved(picture: np.ndarray) -> np.ndarray:
    """[H, W, 3] uint8: with one colour for each 2 x 2 pixels, as files keep it."""
    return av.VideoFrame.from_ndarray(picture).reformat(format="yuv420p").to_ndarray(format="rgb24")


def test_frames_times_and_sound_are_kept(explainer: Explainer, tmp_path: Path, seed: int) -> None:
    clip = write_clip(tmp_path / "in.mp4", moving_blobs(seed, 21, 120, 200), sound="aac")
    given = Contents.of(clip)
    style = Style(strongest=1, side_by_side=True)  # to the left the corner with the number stays clear
    done = detcam.video.write(clip, tmp_path / "out.mp4", explainer, style, rows=tmp_path / "rows.jsonl", every=2)
    found = Contents.of(tmp_path / "out.mp4")
    assert (found.times, found.duration, found.sound) == (given.times, given.duration, given.sound)
    assert found.greys == pytest.approx([number_grey(i) for i in range(21)], abs=4)
    assert (done["frames"], done["explained"], done["damaged"], done["missing"]) == (21, 11, 0, 0)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == done["objects"] > 0
    assert [row["frame"] for row in rows] == sorted(row["frame"] for row in rows)
    assert not list(tmp_path.glob(".*"))


def test_encoded_frames_differ_where_something_is_drawn(
    explainer: Explainer, tmp_path: Path, picture: np.ndarray
) -> None:
    clip = write_clip(tmp_path / "in.mkv", [picture] * 4, codec="ffv1")
    detcam.video.write(clip, tmp_path / "out.mp4", explainer)
    frames = list(detcam.video.explain(clip, explainer))
    for frame, image in zip(frames, Contents.of(tmp_path / "out.mp4").images, strict=True):
        assert np.abs(image.astype(int) - halved(frame.overlay())).mean() < 8
        drawn = (frame.overlay() != frame.image).any(axis=2)
        changed = np.abs(image.astype(int) - halved(frame.image)).mean(axis=2)
        clear = cv2.dilate(drawn.astype(np.uint8), np.ones((17, 17))) == 0  # a codec's blocks carry colour over
        if drawn.any() and clear.any():
            assert changed[drawn].mean() > 3 * changed[clear].mean()


def test_each_thread_has_a_clock(explainer: Explainer, tmp_path: Path, picture: np.ndarray) -> None:
    done = detcam.video.write(Pictures([picture] * 4), tmp_path / "out.mp4", explainer)
    assert done["seconds"].keys() == {"decode", "model", "paint", "encode"}
    for thread, seconds in done["seconds"].items():
        parts = sum(value for part, value in seconds.items() if part != "alive")
        assert 0 < parts <= seconds["alive"] + 0.01, thread
        assert seconds["alive"] <= done["wall"] + 0.01


@pytest.mark.nightly
def test_clocks_add_up(explainer: Explainer, tmp_path: Path, picture: np.ndarray) -> None:
    done = detcam.video.write(Pictures([picture] * 24), tmp_path / "out.mp4", explainer)
    for thread, seconds in done["seconds"].items():
        parts = sum(value for part, value in seconds.items() if part != "alive")
        assert parts == pytest.approx(seconds["alive"], rel=0.1, abs=0.05), thread
    assert done["seconds"]["encode"]["alive"] > 0.8 * done["wall"] - 0.1


def test_a_stop_finishes_the_file(explainer: Explainer, tmp_path: Path, picture: np.ndarray) -> None:
    stop = threading.Event()

    def after_three(stats: Any) -> None:
        if stats.clocks["encode"].parts["encode"] and stats.frames >= 3:
            stop.set()

    done = detcam.video.write(
        Pictures([picture] * 500), tmp_path / "out.mp4", explainer, stop=stop, progress=after_three
    )
    assert not done["whole"]
    assert 1 <= done["frames"] < 100
    assert len(Contents.of(tmp_path / "out.mp4").images) == done["frames"]


def test_an_error_leaves_nothing(explainer: Explainer, tmp_path: Path, picture: np.ndarray) -> None:
    source = Pictures([picture] * 20, error_at=12)
    with pytest.raises(OSError, match="the source broke"):
        detcam.video.write(source, tmp_path / "out.mp4", explainer, rows=tmp_path / "rows.jsonl")
    assert not list(tmp_path.iterdir())
    assert "detcam video" not in {thread.name for thread in threading.enumerate()}


def test_not_onto_itself(explainer: Explainer, tmp_path: Path, seed: int) -> None:
    clip = write_clip(tmp_path / "in.mp4", moving_blobs(seed, 3, 32, 32))
    before = clip.read_bytes()
    with pytest.raises(InputError, match="the input video"):
        detcam.video.write(clip, clip, explainer)
    assert clip.read_bytes() == before
