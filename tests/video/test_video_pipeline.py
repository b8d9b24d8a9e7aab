"""The pipeline: what is explained when, what is carried along, and how it ends."""

import json
import threading
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from frames import Pictures, still
from support import fingerprint
from torch import nn

import detcam
from detcam import Explainer, InputError
from detcam.geometry import Geometry


def order_of(found: list[int], expected: list[int]) -> list[int]:
    """Where the expected ones are: in a batch, rounding may change the order of objects of equal score."""
    assert sorted(found) == sorted(expected)
    return [found.index(each) for each in expected]


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
        places = order_of(frame.objects.index.tolist(), expected.objects.index.tolist())
        torch.testing.assert_close(frame.objects.scores, expected.scores, atol=1e-5, rtol=0)
        torch.testing.assert_close(frame.objects.boxes[places], expected.boxes, atol=0.01, rtol=0)
        assert len(set(frame.tracks)) == len(frame)
        full = expected.render(dtype=torch.float32, normalize="none")
        finest = max([finest, *(len(raw) for raw in expected.maps)])
        for found, heat, raw in zip(frame.heatmaps[places], full, expected.maps, strict=True):
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
        alone = explainer(image)
        torch.testing.assert_close(frame.objects.scores, alone.scores, atol=1e-4, rtol=0)
        same = (frame.objects.boxes - alone.boxes).abs().amax(dim=1) < 0.01
        assert float(same.float().mean()) > 0.8  # in a batch, rounding may decide between two boxes of equal score


def test_carried_heatmaps_of_a_still_picture_stay(explainer: Explainer, picture: np.ndarray) -> None:
    frames = list(detcam.video.explain(Pictures([picture] * 4), explainer, every=4))
    for frame in frames[1:]:
        places = order_of(frame.objects.index.tolist(), frames[0].objects.index.tolist())
        assert [frame.tracks[i] for i in places] == frames[0].tracks
        torch.testing.assert_close(frame.heatmaps[places], frames[0].heatmaps, atol=1e-3, rtol=0)
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


@pytest.mark.nightly
def test_memory_is_flat(explainer: Explainer, picture: np.ndarray) -> None:
    """Frames come and go: however long a video is, no more of them are alive than queues and stages hold."""
    source = Pictures([picture[:64, :96]] * 90)
    for _ in detcam.video.explain(source, explainer, every=0, batch=2):
        pass
    assert source.most < 20


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
    before = fingerprint(detector)
    list(detcam.video.explain(Pictures([picture] * 3), explainer, every=2))
    assert fingerprint(detector) == before


@pytest.mark.parametrize("options", [{"every": -1}, {"budget": 0.0}, {"budget": -3.0}])
def test_options_out_of_range(explainer: Explainer, options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        detcam.video.explain(Pictures([]), explainer, **options)


def test_a_frame_knows_where_its_picture_lay(explainer: Explainer, picture: np.ndarray) -> None:
    frame = next(iter(detcam.video.explain(Pictures([picture]), explainer)))
    assert isinstance(frame.geometry, Geometry)
    assert frame.geometry.source == picture.shape[:2]
