"""What hides pixels, and in which order."""

import pytest
import torch

from detcam.engine.masking import fill, places, seen, spread
from detcam.geometry import Geometry


def test_places_follow_the_heat(seed: int) -> None:
    heat = torch.rand(3, 6, 9)
    inside = torch.ones(6, 9, dtype=torch.bool)
    inside[:, :2] = False
    found = places(heat, inside)
    for one, own in zip(found, heat, strict=True):
        assert sorted(one[inside].tolist()) == list(range(6 * 7))
        assert own[inside][one[inside].argsort()].diff().le(0).all()
    assert bool((found[:, ~inside] == -1).all())


def test_equally_hot_pixels_come_in_no_order_of_place() -> None:
    everything = torch.ones(80, 120, dtype=torch.bool)
    flat = places(torch.ones(1, 80, 120), everything)[0]
    first = flat < 4800
    for half in (first[:40], first[:, :60], first[40:], first[:, 60:]):
        assert 0.4 < float(half.float().mean()) < 0.6
    assert torch.equal(flat, places(torch.ones(1, 80, 120), everything)[0])
    block = flat[3:6, 9:12].flatten()  # three pixels a block, and forty blocks along the longest side
    assert sorted((block - block.min()).tolist()) == list(range(9))


def test_only_the_picture_takes_part() -> None:
    padded = seen(Geometry((10, 20), (4, 8), (2, 0), (8, 8)), torch.device("cpu"))
    assert padded.sum(dim=1).tolist() == [0, 0, 8, 8, 8, 8, 0, 0]
    cropped = seen(Geometry((10, 20), (8, 16), (0, -4), (8, 8)), torch.device("cpu"))
    assert bool(cropped.all())


@pytest.mark.parametrize("name", ["blur", "black", "inpaint"])
def test_a_fill_changes_hidden_pixels_only(name: str, seed: int) -> None:
    picture, black = torch.rand(3, 24, 32), torch.full((3, 24, 32), -0.4)
    hidden = torch.rand(2, 24, 32) < 0.5
    made = fill(name, picture, black)(hidden)
    for one, mask in zip(made, hidden, strict=True):
        assert torch.equal(one[:, ~mask], picture[:, ~mask])
        changed = (one[:, mask] - picture[:, mask]).abs() > 1e-4
        assert float(changed.float().mean()) > 0.95
    if name == "black":
        assert bool((made[0][:, hidden[0]] == -0.4).all())


def test_spread_colours_come_from_what_is_seen(seed: int) -> None:
    left = torch.zeros(3, 32, 32)
    left[0, :, 16:] = 1.0
    known = torch.ones(1, 32, 32, dtype=torch.bool)
    known[:, 4:12, 2:10] = False  # inside the left half
    assert float(spread(left, known)[0, 0, 4:12, 2:10].max()) < 0.2
    picture = torch.rand(3, 19, 33)
    some = torch.rand(4, 19, 33) < 0.1
    filled = spread(picture, some)
    for one, mask in zip(filled, some, strict=True):
        low, high = picture[:, mask].amin(dim=1)[:, None, None], picture[:, mask].amax(dim=1)[:, None, None]
        assert bool(((one >= low - 1e-5) & (one <= high + 1e-5)).all())
    nothing = spread(picture, torch.zeros(1, 19, 33, dtype=torch.bool))[0]
    torch.testing.assert_close(nothing, picture.mean(dim=(1, 2), keepdim=True).expand_as(picture))
