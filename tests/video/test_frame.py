"""Frames are drawn on where something is to be drawn, and only there."""

from typing import Any

import numpy as np
import pytest
from frames import Pictures
from torch import nn

import detcam
from detcam import Explainer, InputError
from detcam.render import blend, draw_box_on
from detcam.video import Frame, Style


@pytest.fixture
def frame(explainer: Explainer, picture: np.ndarray) -> Frame:
    return next(iter(detcam.video.explain(Pictures([picture]), explainer)))


def marked(frame: Frame, chosen: list[int]) -> np.ndarray:
    """[H, W] bool: pixels that boxes and titles of the chosen objects may touch, by drawing them on black."""
    touched = np.zeros(frame.image.shape[:2], bool)
    for i in chosen:
        for back in (0, 255):
            canvas = np.full_like(frame.image, back)
            title = f"{frame.objects.labels[i]} {frame.tracks[i]} {float(frame.objects.scores[i]):.2f}"
            draw_box_on(canvas, frame.objects.boxes[i].tolist(), title, (7, 200, 90))
            touched |= (canvas != back).any(axis=2)
    return touched


def inside(frame: Frame, chosen: list[int]) -> np.ndarray:
    height, width = frame.image.shape[:2]
    y, x = np.arange(height)[:, None] + 0.5, np.arange(width) + 0.5
    found = np.zeros((height, width), bool)
    for i in chosen:
        x1, y1, x2, y2 = frame.objects.boxes[i].tolist()
        found |= (x >= x1) & (x < x2) & (y >= y1) & (y < y2)
    return found


@pytest.mark.parametrize("view", ["boxes", "fused", "none"])
def test_where_and_only_where(frame: Frame, view: str) -> None:
    everyone = list(range(len(frame)))
    drawn = (frame.overlay(Style(view)) != frame.image).any(axis=2)
    heat = frame.heatmaps.amax(dim=0).numpy()
    may, must = marked(frame, everyone), np.zeros_like(drawn)
    if view != "none":
        where = inside(frame, everyone) if view == "boxes" else np.ones_like(drawn)
        may = may | (where & (heat > 0))
    if view == "fused":
        must = heat > 0.3
    assert not (drawn & ~may).any()
    assert (drawn | ~(must & ~marked(frame, everyone))).mean() > 0.995  # a colour may meet its like
    assert drawn.any()


def test_the_heat_is_laid_as_the_renderer_lays_it(frame: Frame) -> None:
    heat = frame.heatmaps.amax(dim=0).numpy()
    free = ~marked(frame, list(range(len(frame))))
    expected = blend(frame.image, heat, 0.75)
    difference = np.abs(frame.overlay(Style("fused")).astype(int) - expected)[free]
    assert (difference <= 3).mean() > 0.99  # one level of the colour table more or less


def test_who_is_drawn(frame: Frame) -> None:
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
        assert not (drawn & ~(marked(frame, chosen) | inside(frame, chosen))).any()
        assert drawn.any() == bool(chosen)


def test_side_by_side(frame: Frame) -> None:
    width = frame.image.shape[1]
    both = frame.overlay(Style(side_by_side=True))
    np.testing.assert_array_equal(both[:, :width], frame.image)
    np.testing.assert_array_equal(both[:, width:], frame.overlay())


def test_the_frame_itself_is_left_alone(frame: Frame, picture: np.ndarray) -> None:
    for view in ("boxes", "none"):
        frame.overlay(Style(view))
        np.testing.assert_array_equal(frame.image, picture)


def test_no_objects_no_change(picture: np.ndarray, detector: nn.Module) -> None:
    strict = Explainer(detector, imgsz=160, conf=1.0)
    frame = next(iter(detcam.video.explain(Pictures([picture]), strict)))
    assert len(frame) == 0
    assert frame.rows() == []
    assert frame.heatmaps.shape == (0, *picture.shape[:2])
    np.testing.assert_array_equal(frame.overlay(Style("fused")), picture)


@pytest.mark.parametrize(
    "options", [{"view": "boxs"}, {"colormap": "infrno"}, {"strongest": 0}, {"alpha": 1.5}], ids=str
)
def test_values_that_cannot_be_used(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        Style(**options)
