"""Heat over pictures, boxes with titles, and the sheet of all objects."""

import cv2
import numpy as np
import pytest
from support import random_picture

from detcam.errors import InputError
from detcam.render import COLORMAPS, blend, contact_sheet, draw_box_on


@pytest.fixture
def picture(seed: int) -> np.ndarray:
    return random_picture(seed, 40, 60)


@pytest.mark.parametrize("colormap", COLORMAPS)
def test_blend_is_the_documented_mix(colormap: str, picture: np.ndarray, seed: int) -> None:
    heat = np.random.default_rng(seed).random((40, 60), dtype=np.float32)
    heat[0] = 0
    heat[1] = 1
    blended = blend(picture, heat, 0.7, colormap)
    assert blended.dtype == np.uint8
    table = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], COLORMAPS[colormap])[:, 0, ::-1].astype(float)
    colours = table[np.rint(heat * 255).astype(int)]
    opacity = 0.7 * np.sqrt(heat.astype(float))[:, :, None]
    expected = picture * (1 - opacity) + colours * opacity
    assert np.abs(blended - expected).max() <= 0.51
    assert np.array_equal(blended[0], picture[0]), "cold pixels stay as they are"


def test_full_and_no_opacity(picture: np.ndarray) -> None:
    hot = np.ones((40, 60), np.float32)
    assert np.array_equal(blend(picture, hot, 0.0), picture)
    assert len(np.unique(blend(picture, hot, 1.0).reshape(-1, 3), axis=0)) == 1


def test_an_unknown_colour_map_names_the_nearest(picture: np.ndarray) -> None:
    with pytest.raises(InputError, match="did you mean 'viridis'"):
        blend(picture, np.zeros((40, 60), np.float32), 0.5, "virdis")


def test_a_box_is_drawn_where_it_is() -> None:
    drawn = np.zeros((200, 300, 3), np.uint8)
    draw_box_on(drawn, (100.2, 80.0, 160.0, 149.7), "dog 0.90")
    painted = drawn.any(axis=2)
    rows, _ = np.nonzero(painted[80:])
    _, columns = np.nonzero(painted[84:])  # below the title, which is wider than the box with OpenCV's older font
    assert (rows.min() + 80, rows.max() + 80) == pytest.approx((80, 149), abs=1)
    assert (columns.min(), columns.max()) == pytest.approx((100, 159), abs=1)
    assert not painted[90:140, 110:150].any(), "the inside stays clear"
    assert painted[60:80, 100:160].any(), "the title stands above the box"


@pytest.mark.parametrize("shape", [(1, 1), (3, 500), (500, 3), (40, 60)])
@pytest.mark.parametrize("box", [(0, 0, 1, 1), (-50, -50, 900, 900), (5, 5, 5, 5), (2, 30, 9, 39)])
def test_boxes_at_the_edge_of_pictures_of_any_size(shape: tuple[int, int], box: tuple[float, ...]) -> None:
    drawn = np.zeros((*shape, 3), np.uint8)
    draw_box_on(drawn, box, "日本語 ☕ 0.50")
    assert drawn.shape == (*shape, 3)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 10, 25])
def test_every_picture_is_on_the_sheet(count: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    colours = generator.choice(np.arange(40, 256), size=(count, 3), replace=True)
    colours[:, 0] = 40 + np.arange(count) * 8  # all different
    pictures = [np.full((30, 40, 3), colour, np.uint8) for colour in colours]
    sheet = contact_sheet(pictures, width=400)
    assert sheet.shape[1] == pytest.approx(400, abs=10)
    seen: list[tuple[int, ...]] = []
    for row in sheet[:: max(sheet.shape[0] // 200, 1)]:
        for pixel in dict.fromkeys(map(tuple, row.tolist())):
            if pixel not in seen and any(pixel == tuple(c) for c in colours.tolist()):
                seen.append(pixel)
    assert seen == [tuple(colour) for colour in colours.tolist()], "in reading order"


def test_the_sheet_of_a_tall_thin_picture_stays_small() -> None:
    sheet = contact_sheet([np.zeros((100, 2, 3), np.uint8)] * 3)
    assert sheet.size < 40_000_000
