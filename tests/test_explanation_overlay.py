"""Overlays of one object, of some and of all; what they cost; how an explanation shows itself."""

import html
import re
from base64 import b64decode
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from support import explanation_of, random_picture
from torch.nn.functional import interpolate

from detcam import Explanation, InputError, ops
from detcam.geometry import Geometry
from detcam.questions.answer import AskedExplanation
from detcam.render import draw_box_on

LABELS = ("car", "dog", "car", "日本 <b>")
SIZE = (300, 420)  # boxes, labels and the letters in them are small beside it
BOXES = torch.tensor([[20.0, 30, 120, 140], [200, 60, 400, 280], [50, 200, 90, 260], [300, 5, 410, 40]])


@pytest.fixture
def explanation(seed: int) -> Explanation:
    maps = [torch.randn(6, 9), torch.randn(12, 18) * 5, torch.full((6, 9), 2.0), torch.rand(4, 20) + 3]
    return explanation_of(random_picture(seed, *SIZE), maps, labels=LABELS, boxes=BOXES)


def expected(explanation: Explanation, chosen: list[int], alpha: float, table: int) -> np.ndarray:
    """By the documented formula, in float64: min-max per map, resize, maximum, opacity by the square root."""
    heat = torch.zeros(SIZE, dtype=torch.float64)
    for i in chosen:
        raw = explanation.maps[i].double().clamp(min=0)
        span = raw.max() - raw.min()
        scaled = (raw - raw.min()) / span if span > 0 else torch.zeros_like(raw)
        heat = heat.maximum(interpolate(scaled[None, None], SIZE, mode="bilinear")[0, 0])
    colours = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], table)[:, 0, ::-1].astype(float)
    opacity = alpha * heat.sqrt().numpy()[:, :, None]
    mixed = explanation.image * (1 - opacity) + colours[np.rint(heat.numpy() * 255).astype(int)] * opacity
    picture = np.rint(mixed).astype(np.uint8)
    for i in chosen:
        draw_box_on(picture, BOXES[i].tolist(), f"{LABELS[i]} {float(explanation.scores[i]):.2f}")
    return picture


@pytest.mark.parametrize(
    ("options", "chosen"),
    [({}, [0, 1, 2, 3]), ({"i": 1}, [1]), ({"i": -1}, [3]), ({"label": "car"}, [0, 2]), ({"label": "dog"}, [1])],
    ids=str,
)
def test_one_object_a_class_or_all(options: dict[str, Any], chosen: list[int], explanation: Explanation) -> None:
    picture = explanation.overlay(**options, alpha=0.6, colormap="viridis")
    difference = np.abs(picture.astype(int) - expected(explanation, chosen, 0.6, cv2.COLORMAP_VIRIDIS))
    assert difference.mean() < 0.02
    assert np.quantile(difference, 0.9999) <= 3  # a heat on the edge of two colours


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label": "caar"}, "did you mean 'car'"),
        ({"i": 0, "label": "car"}, "give one of i and label"),
        ({"alpha": 1.5}, r"alpha: expected a number in \[0, 1\], got 1.5"),
        ({"colormap": "virdis"}, "did you mean 'viridis'"),
    ],
)
def test_what_cannot_be_drawn_is_refused(options: dict[str, Any], message: str, explanation: Explanation) -> None:
    with pytest.raises(InputError, match=message):
        explanation.overlay(**options)


def test_without_objects_it_is_the_image(seed: int) -> None:
    nothing = explanation_of(random_picture(seed, 40, 60), [])
    picture = nothing.overlay()
    assert np.array_equal(picture, nothing.image)
    assert picture is not nothing.image
    assert repr(nothing) == "Explanation([], notes=[], settings={'method': 'hand'})"
    assert nothing.contact_sheet().ndim == 3


def test_nothing_is_drawn_where_a_crop_left_the_network_blind(seed: int) -> None:
    cropped = Geometry(source=(60, 90), resized=(60, 90), pad=(0, -15), network=(60, 60))
    e = explanation_of(random_picture(seed, 60, 90), [torch.rand(6, 6)], cropped, boxes=torch.zeros(1, 4), labels=("",))
    changed = (e.overlay() != e.image).any(axis=(0, 2))
    assert changed[45:75].any()
    assert not changed[75:].any()


def test_one_object_costs_one_object(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither an overlay nor `save` makes the heatmaps of two objects at the size of the image at once."""
    maps = [torch.rand(3, 4) for _ in range(12)]
    e = explanation_of(random_picture(seed, 90, 120), maps, labels=("thing",) * 12)
    rendered, original = [], ops.cam_maps

    def counted(*args: Any, **options: Any) -> torch.Tensor:
        rendered.append(original(*args, **options))
        return rendered[-1]

    monkeypatch.setattr(ops, "cam_maps", counted)
    for i in (0, None):
        e.overlay(i)
    assert not rendered, "an overlay needs only the coarse maps"
    e.save(tmp_path)
    assert max(heat.numel() for heat in rendered) == 90 * 120
    assert "heatmaps" not in vars(e)
    with np.load(tmp_path / "heatmaps.npz") as archive:
        assert np.array_equal(archive["heatmaps"], e.heatmaps.numpy())


def test_large_images_have_a_contact_sheet_drawn_small(seed: int) -> None:
    """Boxes lie at the same places as on a sheet of the large overlays."""
    image = np.zeros((1500, 3200, 3), np.uint8)
    boxes = torch.tensor([[1600.0, 600, 2400, 1200]])
    sheet = explanation_of(image, [torch.zeros(2, 2)], labels=("",), boxes=boxes).contact_sheet()
    (_, tile), gap = np.array_split(sheet, 2, axis=1), 8
    columns = np.flatnonzero((tile == (64, 224, 255)).all(axis=2)[200])
    width = (1600 - 3 * gap) / 2
    assert columns[0] - gap / 2 == pytest.approx(width / 2, abs=3)
    assert columns[-1] - gap / 2 == pytest.approx(width * 3 / 4, abs=3)


def test_in_a_notebook_it_shows_its_contact_sheet(explanation: Explanation) -> None:
    assert repr(explanation).startswith("Explanation([car 0.90, dog 0.77, car 0.63, 日本 <b> 0.50], ")
    page = explanation._repr_html_()
    shown = re.fullmatch(r'<img src="data:image/jpeg;base64,([\w+/=]+)" alt="([^"<>]*)" title="[^"<>]*" [^<>]*>', page)
    assert shown, page[-300:]
    assert html.unescape(shown[2]) == repr(explanation)
    picture = cv2.imdecode(np.frombuffer(b64decode(shown[1]), np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
    assert np.abs(picture.astype(int) - explanation.contact_sheet()).mean() < 6
    assert repr(AskedExplanation.of(explanation, [])).startswith("AskedExplanation([car 0.90, ")
