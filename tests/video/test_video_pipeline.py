"""The generator and the file: what is explained when, what is carried, what is drawn and what is not."""

import gc
import json
import threading
import weakref
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
import torch
from clips import Contents, moving_blobs, number_grey, write_clip
from torch import nn

import detcam
from detcam import Explainer, InputError
from detcam.geometry import Geometry
from detcam.video import Frame, Source, Style
from detcam.video.detect import LONGEST, Pace, choose, period
from detcam.video.source import Picture


class Pictures(Source):
    """Frames from memory, and how many of them are alive at once."""

    name = "pictures"

    def __init__(self, images: list[np.ndarray], times: list[float] | None = None, error_at: int | None = None) -> None:
        self._images, self._error_at = images, error_at
        self._times = times or [i / 10 for i in range(len(images))]
        self.frames = len(images)
        self.rate = None
        self.alive = self.most = 0
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[Picture]:
        for i, (image, time) in enumerate(zip(self._images, self._times, strict=True)):
            if i == self._error_at:
                raise OSError("the source broke")
            fresh = image.copy()
            with self._lock:
                self.alive += 1
                self.most = max(self.most, self.alive)
            weakref.finalize(fresh, self._gone)
            self.decoded += 1
            yield Picture(fresh, time, 0.1)

    def _gone(self) -> None:
        with self._lock:
            self.alive -= 1


@pytest.fixture
def explainer(detector: nn.Module) -> Explainer:
    return Explainer(detector, imgsz=160, layers="level")


def still(picture: np.ndarray, count: int, seed: int, noise: float = 0.0) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    shaken = (picture + generator.normal(0, noise, picture.shape) for _ in range(count))
    return [np.clip(image, 0, 255).round().astype(np.uint8) for image in shaken]


def test_every_frame_has_the_explainers_objects_and_heatmaps(
    explainer: Explainer, picture: np.ndarray, seed: int
) -> None:
    """Not steady: each map divided by its own maximum. Maps of coarse levels bend at the cells of the finest."""
    images = still(picture, 5, seed, 6)
    frames = list(detcam.video.explain(Pictures(images), explainer, steady=False, batch=2))
    assert [frame.index for frame in frames] == list(range(5))
    assert [frame.time for frame in frames] == [i / 10 for i in range(5)]
    finest = 0
    for frame, image in zip(frames, images, strict=True):
        expected = explainer(image)
        assert frame.explained
        np.testing.assert_array_equal(frame.image, image)
        torch.testing.assert_close(frame.objects.boxes, expected.boxes, atol=0.01, rtol=0)
        assert len(set(frame.tracks)) == len(frame)
        full = expected.render(dtype=torch.float32, normalize="none")
        finest = max([finest, *(len(raw) for raw in expected.maps)])
        for found, heat, raw in zip(frame.heatmaps, full, expected.maps, strict=True):
            if not (raw > 0).any():
                assert not found.any()
            elif len(raw) == finest:
                torch.testing.assert_close(found, heat / raw.max(), atol=1e-3, rtol=0)
            else:
                assert float(torch.stack([found.flatten(), heat.flatten()]).corrcoef()[0, 1]) > 0.97


def test_each_kth_frame_is_explained_and_all_are_detected(explainer: Explainer, picture: np.ndarray, seed: int) -> None:
    images = still(picture, 8, seed, 4)
    frames = list(detcam.video.explain(Pictures(images), explainer, every=3, batch=2))
    assert [frame.explained for frame in frames] == [i % 3 == 0 for i in range(8)]
    for frame, image in zip(frames, images, strict=True):
        torch.testing.assert_close(frame.objects.boxes, explainer(image).boxes, atol=0.01, rtol=0)


def test_carried_heatmaps_of_a_still_picture_stay(explainer: Explainer, picture: np.ndarray) -> None:
    frames = list(detcam.video.explain(Pictures([picture] * 4), explainer, every=4))
    for frame in frames[1:]:
        assert frame.tracks == frames[0].tracks
        torch.testing.assert_close(frame.heatmaps, frames[0].heatmaps, atol=1e-3, rtol=0)
        assert [row["explained"] for row in frame.rows()] == [0.0] * len(frame)


def test_every_0_explains_nothing(explainer: Explainer, picture: np.ndarray) -> None:
    frames = list(detcam.video.explain(Pictures([picture] * 3), explainer, every=0))
    assert not any(frame.explained or frame.warm for frame in frames)
    assert not frames[2].heatmaps.any()
    assert frames[2].rows()[0]["note"] == "not explained yet"


def test_rows_hold_peak_and_energy(explainer: Explainer, picture: np.ndarray) -> None:
    frame = next(iter(detcam.video.explain(Pictures([picture]), explainer)))
    explanation = explainer(picture)
    full = explanation.render(dtype=torch.float32, normalize="none").double()
    y, x = torch.arange(picture.shape[0])[:, None] + 0.5, torch.arange(picture.shape[1]) + 0.5
    assert len(frame.rows()) == len(explanation)
    for row, raw, heat, box in zip(frame.rows(), explanation.maps, full, explanation.boxes, strict=True):
        assert row["peak"] == pytest.approx(max(float(raw.max()), 0.0), abs=1e-5)
        inside = (x >= box[0]) & (x < box[2]) & (y >= box[1]) & (y < box[3])
        if heat.sum() > 0:
            assert row["energy"] == pytest.approx(float(heat[inside].sum() / heat.sum()), abs=1e-3)
        assert json.loads(json.dumps(row)) == row


def test_memory_is_flat(explainer: Explainer, picture: np.ndarray) -> None:
    """Frames come and go: no more of them are alive in a long video than in a short one."""
    most = []
    for count in (30, 90):
        source = Pictures([picture[:64, :96]] * count)
        for _ in detcam.video.explain(source, explainer, every=0, batch=2):
            pass
        gc.collect()
        most.append(source.most)
    assert most[1] <= most[0] + 2
    assert most[1] < 20


@pytest.mark.parametrize("where", ["source", "model"])
def test_an_error_in_any_stage_ends_all(
    explainer: Explainer, picture: np.ndarray, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Pictures([picture] * 20, error_at=9 if where == "source" else None)
    if where == "model":
        monkeypatch.setattr(type(explainer.adapter), "prepare", lambda *args: 1 / 0)
    with pytest.raises(OSError if where == "source" else ZeroDivisionError):
        list(detcam.video.explain(source, explainer))
    assert "detcam video" not in {thread.name for thread in threading.enumerate()}


def test_leaving_the_loop_ends_all(explainer: Explainer, picture: np.ndarray) -> None:
    frames = detcam.video.explain(Pictures([picture] * 50), explainer)
    assert len(list(islice(frames, 2))) == 2
    frames.close()
    assert "detcam video" not in {thread.name for thread in threading.enumerate()}


def test_the_model_comes_back_as_it_was(detector: nn.Module, explainer: Explainer, picture: np.ndarray) -> None:
    from support import fingerprint

    before = fingerprint(detector)
    list(detcam.video.explain(Pictures([picture] * 3), explainer, every=2))
    assert fingerprint(detector) == before


class TestBudget:
    """K from a budget, against trying every K."""

    def test_the_least_k_that_meets_it(self, seed: int) -> None:
        generator = np.random.default_rng(seed)
        for _ in range(200):
            budget, plain, extra = generator.uniform(5, 60), generator.uniform(0.001, 0.05), generator.uniform(0, 0.5)
            meets = [k for k in range(1, LONGEST + 1) if plain + extra / k <= 0.8 / budget]
            assert period(budget, plain, plain + extra) == (meets[0] if meets else LONGEST)

    def test_k_follows_what_frames_cost(self) -> None:
        pace = Pace(1, budget=10)
        pace.note(4, False, 4 * 0.02)
        pace.note(4, True, 4 * 0.19)
        assert pace.every == 3  # 0.02 + 0.17 / 3 < 0.08 < 0.02 + 0.17 / 2
        for _ in range(60):
            pace.note(4, True, 4 * 0.05)
        assert pace.every == 1

    def test_a_cheaper_method_where_the_one_asked_for_is_too_dear(
        self, explainer: Explainer, picture: np.ndarray
    ) -> None:
        class Slow:
            def __init__(self) -> None:
                vars(self).update(vars(explainer))
                self.settings = {**explainer.settings, "method": "slow"}

            def __call__(self, images: Any) -> Any:
                threading.Event().wait(0.6)
                return explainer(images)

        slow: Any = Slow()
        choice = choose([picture] * 2, slow, 8, explainer)
        assert choice.explainer is explainer
        assert "odam" in choice.words
        assert "slow on every" in choice.words
        relaxed = choose([picture] * 2, slow, 0.9, explainer)
        assert relaxed.explainer is slow
        assert relaxed.every <= 5
        assert "slow on every" in relaxed.words

    def test_the_run_says_what_it_chose(self, explainer: Explainer, picture: np.ndarray) -> None:
        stats = detcam.video.Stats()
        frames = list(detcam.video.explain(Pictures([picture] * 9), explainer, budget=0.5, stats=stats))
        assert len(frames) == 9
        assert all(frame.explained for frame in frames)
        assert stats.choice is not None
        assert "budget of 0.5 frames a second: odam on every 1st frame" in stats.choice


@pytest.mark.parametrize("options", [{"every": -1}, {"budget": 0.0}, {"budget": -3.0}])
def test_options_out_of_range(explainer: Explainer, options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        detcam.video.explain(Pictures([]), explainer, **options)


class TestDrawing:
    """Where, and only where, something is drawn."""

    @pytest.fixture
    def frame(self, explainer: Explainer, picture: np.ndarray) -> Frame:
        return next(iter(detcam.video.explain(Pictures([picture]), explainer)))

    @staticmethod
    def marked(frame: Frame, chosen: list[int]) -> np.ndarray:
        """[H, W] bool: pixels that boxes and titles of the chosen objects may touch, by drawing them on black."""
        from detcam.render import draw_box_on

        touched = np.zeros(frame.image.shape[:2], bool)
        for i in chosen:
            for back in (0, 255):
                canvas = np.full_like(frame.image, back)
                title = f"{frame.objects.labels[i]} {frame.tracks[i]} {float(frame.objects.scores[i]):.2f}"
                draw_box_on(canvas, frame.objects.boxes[i].tolist(), title, (7, 200, 90))
                touched |= (canvas != back).any(axis=2)
        return touched

    @staticmethod
    def inside(frame: Frame, chosen: list[int]) -> np.ndarray:
        height, width = frame.image.shape[:2]
        y, x = np.arange(height)[:, None] + 0.5, np.arange(width) + 0.5
        found = np.zeros((height, width), bool)
        for i in chosen:
            x1, y1, x2, y2 = frame.objects.boxes[i].tolist()
            found |= (x >= x1) & (x < x2) & (y >= y1) & (y < y2)
        return found

    @pytest.mark.parametrize("view", ["boxes", "fused", "none"])
    def test_where_and_only_where(self, frame: Frame, view: str) -> None:
        everyone = list(range(len(frame)))
        drawn = (frame.overlay(Style(view)) != frame.image).any(axis=2)
        heat = frame.heatmaps.amax(dim=0).numpy()
        may, must = self.marked(frame, everyone), np.zeros_like(drawn)
        if view != "none":
            where = self.inside(frame, everyone) if view == "boxes" else np.ones_like(drawn)
            may = may | (where & (heat > 0))
        if view == "fused":
            must = heat > 0.3
        assert not (drawn & ~may).any()
        assert (drawn | ~(must & ~self.marked(frame, everyone))).mean() > 0.995  # a colour may meet its like
        assert drawn.any()

    def test_the_heat_is_laid_as_the_renderer_lays_it(self, frame: Frame) -> None:
        from detcam.render import blend

        heat = frame.heatmaps.amax(dim=0).numpy()
        free = ~self.marked(frame, list(range(len(frame))))
        expected = blend(frame.image, heat, 0.75)
        difference = np.abs(frame.overlay(Style("fused")).astype(int) - expected)[free]
        assert (difference <= 3).mean() > 0.99  # one level of the colour table more or less

    def test_who_is_drawn(self, frame: Frame) -> None:
        labels, scores = frame.objects.labels, frame.objects.scores.tolist()
        best = sorted(range(len(frame)), key=lambda i: scores[i])
        track = frame.tracks[-1]
        for style, chosen in (
            (Style(classes=(labels[0],)), [i for i in best if labels[i] == labels[0]]),
            (Style(track=track), [len(frame) - 1]),
            (Style(strongest=2), best[-2:]),
            (Style(classes=("nothing",)), []),
        ):
            assert style.chosen(frame.objects, frame.tracks) == chosen
            drawn = (frame.overlay(style) != frame.image).any(axis=2)
            assert not (drawn & ~(self.marked(frame, chosen) | self.inside(frame, chosen))).any()
            assert drawn.any() == bool(chosen)

    def test_side_by_side(self, frame: Frame) -> None:
        width = frame.image.shape[1]
        both = frame.overlay(Style(side_by_side=True))
        np.testing.assert_array_equal(both[:, :width], frame.image)
        np.testing.assert_array_equal(both[:, width:], frame.overlay())

    def test_the_frame_itself_is_left_alone(self, frame: Frame, picture: np.ndarray) -> None:
        for view in ("boxes", "none"):
            frame.overlay(Style(view))
            np.testing.assert_array_equal(frame.image, picture)

    def test_no_objects_no_change(self, picture: np.ndarray, detector: nn.Module) -> None:
        strict = Explainer(detector, imgsz=160, conf=1.0)
        frame = next(iter(detcam.video.explain(Pictures([picture]), strict)))
        assert len(frame) == 0
        assert frame.rows() == []
        assert frame.heatmaps.shape == (0, *picture.shape[:2])
        np.testing.assert_array_equal(frame.overlay(Style("fused")), picture)

    @pytest.mark.parametrize(
        "options", [{"view": "boxs"}, {"colormap": "infrno"}, {"strongest": 0}, {"alpha": 1.5}], ids=str
    )
    def test_values_that_cannot_be_used(self, options: dict[str, Any]) -> None:
        with pytest.raises(InputError, match=next(iter(options))):
            Style(**options)


def halved(picture: np.ndarray) -> np.ndarray:
    """[H, W, 3] uint8: with one colour for each 2 x 2 pixels, as files keep it."""
    return av.VideoFrame.from_ndarray(picture).reformat(format="yuv420p").to_ndarray(format="rgb24")


class TestWrite:
    """From file to file."""

    def test_frames_times_and_sound_are_kept(self, explainer: Explainer, tmp_path: Path, seed: int) -> None:
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
        self, explainer: Explainer, tmp_path: Path, picture: np.ndarray
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

    def test_clocks_add_up(self, explainer: Explainer, tmp_path: Path, picture: np.ndarray) -> None:
        done = detcam.video.write(Pictures([picture] * 24), tmp_path / "out.mp4", explainer)
        assert done["seconds"].keys() == {"decode", "model", "paint", "encode"}
        for thread, seconds in done["seconds"].items():
            parts = sum(value for part, value in seconds.items() if part != "alive")
            assert parts == pytest.approx(seconds["alive"], rel=0.1, abs=0.05), thread
            assert seconds["alive"] <= done["wall"] + 0.01
        assert done["seconds"]["encode"]["alive"] > 0.8 * done["wall"] - 0.1

    def test_a_stop_finishes_the_file(self, explainer: Explainer, tmp_path: Path, picture: np.ndarray) -> None:
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

    def test_an_error_leaves_nothing(self, explainer: Explainer, tmp_path: Path, picture: np.ndarray) -> None:
        source = Pictures([picture] * 20, error_at=12)
        with pytest.raises(OSError, match="the source broke"):
            detcam.video.write(source, tmp_path / "out.mp4", explainer, rows=tmp_path / "rows.jsonl")
        assert not list(tmp_path.iterdir())
        assert "detcam video" not in {thread.name for thread in threading.enumerate()}

    def test_not_onto_itself(self, explainer: Explainer, tmp_path: Path, seed: int) -> None:
        clip = write_clip(tmp_path / "in.mp4", moving_blobs(seed, 3, 32, 32))
        before = clip.read_bytes()
        with pytest.raises(InputError, match="video that is read"):
            detcam.video.write(clip, clip, explainer)
        assert clip.read_bytes() == before


def test_a_frame_knows_where_its_picture_lay(explainer: Explainer, picture: np.ndarray) -> None:
    frame = next(iter(detcam.video.explain(Pictures([picture]), explainer)))
    assert isinstance(frame.geometry, Geometry)
    assert frame.geometry.source == picture.shape[:2]
