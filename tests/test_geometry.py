"""The letterbox equals Ultralytics' letterbox bit for bit, and its inverse is exact."""

import dataclasses
from functools import cache

import numpy as np
import pytest
import torch
from support import explanation_of, random_picture, seed_of

from detcam.geometry import Geometry, letterbox

SHAPES = [
    (480, 640), (640, 480), (333, 501), (101, 37), (5, 3), (1, 1), (3, 5), (640, 640), (639, 641), (1, 2000),
    (2000, 1), (1500, 2000), (32, 32), (33, 31), (213, 640),
]  # fmt: skip


@cache
def picture_of(shape: tuple[int, int]) -> np.ndarray:
    return random_picture(seed_of(f"letterbox {shape}"), *shape)


@pytest.mark.parametrize("size", [(640, 640), (160, 160), (320, 96), (64, 512)])
@pytest.mark.parametrize("stride", [32, 64])
def test_pixels_are_those_of_ultralytics(size: tuple[int, int], stride: int) -> None:
    augment = pytest.importorskip("ultralytics.data.augment")
    for shape in SHAPES:
        picture = picture_of(shape)
        expected = augment.LetterBox(size, auto=True, stride=stride)(image=picture)
        padded, geometry = letterbox(picture, size, stride)
        assert np.array_equal(padded, expected), shape
        assert geometry.network == expected.shape[:2]
        assert geometry.source == shape


@pytest.mark.parametrize("shape", SHAPES)
def test_boxes_are_scaled_as_predict_scales_them(shape: tuple[int, int], seed: int) -> None:
    ops = pytest.importorskip("ultralytics.utils.ops")
    _, geometry = letterbox(np.zeros((*shape, 3), np.uint8), (320, 320), 32)
    extent = torch.tensor([geometry.network[1], geometry.network[0]] * 2)
    boxes = torch.rand(20, 4) * extent * 1.2 - 0.1 * extent
    expected = ops.scale_boxes(geometry.network, boxes.clone(), shape)
    torch.testing.assert_close(geometry.to_source(boxes), expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("shape", SHAPES)
def test_boxes_return_from_the_network(shape: tuple[int, int], seed: int) -> None:
    _, geometry = letterbox(np.zeros((*shape, 3), np.uint8), (320, 320), 32)
    height, width = shape
    boxes = torch.rand(10, 4, dtype=torch.float64) * torch.tensor([width, height] * 2)
    torch.testing.assert_close(geometry.to_source(geometry.to_network(boxes)), boxes)
    corners = geometry.to_network(torch.tensor([[0.0, 0.0, width, height]]))[0].tolist()
    top, left = geometry.pad
    assert corners == pytest.approx([left, top, left + geometry.resized[1], top + geometry.resized[0]], abs=1e-3)


def test_boxes_are_clipped_to_the_picture() -> None:
    geometry = Geometry(source=(100, 200), resized=(160, 320), pad=(16, 0), network=(192, 320))
    boxes = torch.tensor([[-50.0, -50.0, 999.0, 999.0], [32.0, 48.0, 64.0, 80.0]])
    assert geometry.to_source(boxes).tolist() == [[0, 0, 200, 100], [20, 20, 40, 40]]


@pytest.mark.parametrize("stride", [4, 8, 16, 32])
@pytest.mark.parametrize("shape", [(90, 333), (333, 90), (101, 37), (640, 480), (700, 900), (12, 400)])
def test_a_planted_square_returns_to_its_source_pixels(shape: tuple[int, int], stride: int, seed: int) -> None:
    """Paint a square into the picture, letterbox it, pool the network's input into cells: the map must lead back."""
    generator = np.random.default_rng(seed)
    height, width = shape
    ratio = min(320 / height, 320 / width)
    side = max(round(2 * stride / ratio), 1)  # two cells wide
    if side >= min(shape):
        side = min(shape) - 1
    y, x = int(generator.integers(0, height - side)), int(generator.integers(0, width - side))
    picture = np.zeros((*shape, 3), np.uint8)
    picture[y : y + side, x : x + side] = 255
    padded, geometry = letterbox(picture, (320, 320), 32)
    pixels = torch.from_numpy(padded).float().mean(dim=2)
    pixels[: geometry.pad[0]] = 0  # the padding is grey
    pixels[geometry.pad[0] + geometry.resized[0] :] = 0
    pixels[:, : geometry.pad[1]] = 0
    pixels[:, geometry.pad[1] + geometry.resized[1] :] = 0
    cells = torch.nn.functional.avg_pool2d(pixels[None], stride)[0]

    explanation = explanation_of(picture, [cells], geometry)
    heat = explanation.render(dtype=torch.float64, normalize="none")[0]
    assert heat.shape == shape
    rows, columns = torch.arange(height) + 0.5, torch.arange(width) + 0.5
    centre_y = float((heat.sum(dim=1) * rows).sum() / heat.sum())
    centre_x = float((heat.sum(dim=0) * columns).sum() / heat.sum())
    cell = stride / ratio  # one feature cell in source pixels
    assert abs(centre_y - (y + side / 2)) <= max(cell, 1) * 0.75
    assert abs(centre_x - (x + side / 2)) <= max(cell, 1) * 0.75
    peak = divmod(int(heat.argmax()), width)
    assert y - cell <= peak[0] <= y + side + cell
    assert x - cell <= peak[1] <= x + side + cell


def test_window_is_the_picture_s_part_of_the_cells() -> None:
    geometry = Geometry(source=(50, 100), resized=(160, 320), pad=(16, 0), network=(192, 320))
    assert geometry.window((6, 10)) == (0.0, 0.5, 10.0, 5.5)
    assert geometry.window((192, 320)) == (0, 16, 320, 176)


def test_what_a_crop_leaves_unseen() -> None:
    """A picture of 4 x 8 becomes 8 x 16, of which the network sees the middle 8 x 8: source columns 2 to 6."""
    crop = Geometry((4, 8), (8, 16), (0, -4), (8, 8))
    assert crop.seen((4, 8)) == (slice(0, 4), slice(2, 6))
    assert crop.seen((40, 80)) == (slice(0, 40), slice(20, 60))
    assert Geometry((4, 8), (8, 16), (-2, 0), (5, 16)).seen((4, 8)) == (slice(1, 3), slice(0, 8))  # rows 2 to 7 of 8
    padded = Geometry((37, 90), (43, 104), (10, 12), (64, 128))
    for size in ((37, 90), (5, 7), (400, 900)):
        assert padded.seen(size) == (slice(0, size[0]), slice(0, size[1]))


def test_a_crop_lies_in_the_network_as_an_image_of_its_own(seed: int) -> None:
    _, alone = letterbox(np.zeros((61, 83, 3), np.uint8), (96, 128), 32)
    placed = dataclasses.replace(alone, source=(200, 300), crop=(50, 70, 61, 83))
    extent = torch.tensor([alone.network[1], alone.network[0]] * 2)
    boxes = torch.rand(20, 4, dtype=torch.float64) * extent * 1.2 - 0.1 * extent
    shift = torch.tensor([70.0, 50.0] * 2)
    torch.testing.assert_close(placed.to_source(boxes), alone.to_source(boxes) + shift)
    torch.testing.assert_close(placed.to_network(boxes + shift), alone.to_network(boxes))
    for cells in ((6, 8), (12, 17)):
        assert placed.window(cells, (70, 50, 153, 111)) == pytest.approx(alone.window(cells), abs=1e-9)
    assert placed.seen((200, 300)) == (slice(50, 111), slice(70, 153))
    assert placed.seen((100, 150)) == (slice(25, 55), slice(35, 76))  # centres 50 <= 2 y + 1 < 111
    assert placed.seen((2, 3)) == (slice(0, 1), slice(1, 2)), "centres at 50 and 150, at 50, 150 and 250"
