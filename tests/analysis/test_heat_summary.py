"""Heat seen from the boxes: against rendered heatmaps, formulas and plants, and what is counted and what is not."""

from __future__ import annotations

import dataclasses
import math
import weakref
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from saved_sets import blobs, boxes_in, made, save_light
from support import random_picture
from torch import Tensor

from detcam.analysis.box_frame import BOX, SIDE, align
from detcam.analysis.heat_summary import summarise
from detcam.geometry import Geometry
from detcam.report.summary_page import summary_json, summary_page
from detcam.saved import Saved

PLACED = {
    "whole": None,
    "letterbox": Geometry(source=(120, 160), resized=(240, 320), pad=(40, 0), network=(320, 320)),
    "odd": Geometry(source=(120, 160), resized=(99, 132), pad=(14, 7), network=(128, 160)),
    "crop": Geometry(source=(120, 160), resized=(120, 160), pad=(-10, -30), network=(100, 100)),
}
WIDE = Geometry(source=(300, 400), resized=(240, 320), pad=(40, 0), network=(320, 320))
TALL = Geometry(source=(500, 380), resized=(320, 243), pad=(0, 38), network=(320, 320))


def bump(geometry: Geometry, box: list[float], at: tuple[float, float], wide: float, cells: int = 160) -> Tensor:
    """[cells, cells] a hill at `at` = (x, y), `wide` in both directions, in boxes from the box's upper left corner."""
    x1, y1, x2, y2 = box
    (height, width), (top, left) = geometry.source, geometry.pad
    middles = (torch.arange(cells, dtype=torch.float64) + 0.5) / cells
    x = (middles * geometry.network[1] - left) * width / geometry.resized[1]
    y = (middles * geometry.network[0] - top) * height / geometry.resized[0]
    u, v = (x - x1) / (x2 - x1), (y - y1) / (y2 - y1)
    return torch.exp(-((u - at[0]) ** 2 + (v[:, None] - at[1]) ** 2) / (2 * wide**2)).float()


@pytest.mark.parametrize("placed", PLACED)
def test_shares_are_those_of_the_rendered_heatmap(placed: str, seed: int) -> None:
    """The reference adds up pixels of a large rendering, cell by cell."""
    explanation = made(random_picture(seed, 120, 160), 4, geometry=PLACED[placed], maps=blobs(4))
    fine = 12
    heat = explanation.render(size=(120 * fine, 160 * fine), dtype=torch.float32).double().numpy()
    y, x = (np.arange(side * fine) / fine + 0.5 / fine for side in (120, 160))
    seen = np.zeros((120 * fine, 160 * fine), bool)
    seen[explanation.geometry.seen(seen.shape)] = True
    boxes = explanation.boxes.double().tolist()
    for i, raw in enumerate(explanation.maps):
        others = boxes[:i] + boxes[i + 1 :]
        aligned = align(raw.numpy(), explanation.geometry, boxes[i], others)
        if aligned is None:
            assert heat[i].sum() == 0
            continue
        shares, spread = aligned
        x1, y1, x2, y2 = boxes[i]
        edges = [start + (stop - start) * np.linspace(-1, 2, SIDE + 1) for start, stop in ((y1, y2), (x1, x2))]
        ys, xs = np.repeat(y, len(x)), np.tile(x, len(y))
        expected = np.histogram2d(ys, xs, bins=edges, weights=heat[i].ravel())[0] / heat[i].sum()
        assert shares.shape == (SIDE, SIDE)
        zones = [block.reshape(3, BOX, 3, BOX).sum(axis=(1, 3)) for block in (shares, expected)]
        assert np.abs(zones[0] - zones[1]).max() < 0.01
        assert np.abs(shares - expected).sum() < 0.25, "cells are a few pixels wide: their borders cost some"
        inside = ((x >= x1) & (x < x2)) & ((y >= y1) & (y < y2))[:, None]
        assert spread.outside == pytest.approx(1 - heat[i][inside].sum() / heat[i].sum(), abs=0.01)
        assert spread.even == pytest.approx(1 - (inside & seen).sum() / seen.sum(), abs=0.01)
        beside = np.zeros_like(inside)
        for a, b, c, d in others:
            beside |= ((x >= a) & (x < c)) & ((y >= b) & (y < d))[:, None]
        assert spread.others == pytest.approx(heat[i][beside & ~inside].sum() / heat[i].sum(), abs=0.01)


def test_by_hand() -> None:
    """Two cells side by side, 1 and 3: heat is 0 up to the first centre, rises to 2 at the second, and stays."""
    picture = Geometry((4, 8), (4, 8), (0, 0), (4, 8))
    left = align(np.array([[1.0, 3.0]]), picture, [0.0, 0.0, 4.0, 4.0], [[2.0, 0.0, 6.0, 4.0], [4.0, 0.0, 5.0, 2.0]])
    assert left is not None
    assert left[1].outside == pytest.approx(1 - 0.125)  # 1/4 of 2 lies in the rising half of the left cell
    assert left[1].others == pytest.approx((0.75 - 0.25 + 0.5) / 2 - 0.125)  # up to a quarter past the second centre
    assert (left[1].even, left[1].cells) == (0.5, 1)
    assert left[0].sum() == pytest.approx(1)
    assert align(np.full((3, 3), 7.0), picture, [0.0, 0.0, 4.0, 4.0]) is None, "a constant map shows no heat"
    broken = np.array([[np.nan, 3e38], [-1.0, np.inf]], np.float32)
    shares = align(broken, picture, [0.0, 0.0, 4.0, 4.0])
    assert shares is not None
    assert np.isfinite(shares[0]).all()


@pytest.mark.parametrize(
    ("box", "cells", "sight"),
    [
        ((40, 40, 60, 60), (slice(0, 10), slice(0, 10)), 1.0),
        ((40, 40, 60, 60), (slice(4, 6), slice(4, 6)), 0.0),  # the box alone
        ((40, 40, 60, 60), (slice(3, 7), slice(3, 7)), 12 / 32),  # a cell around it, of two
        ((40, 40, 60, 60), (slice(0, 10), slice(0, 5)), 0.5),  # the left half
        ((0, 40, 20, 60), (slice(4, 6), slice(0, 4)), 4 / 20),  # surroundings end with the image
        ((0, 0, 100, 100), (slice(4, 6), slice(4, 6)), 1.0),  # there are none
    ],
)
def test_what_a_map_can_show(box: tuple[int, ...], cells: tuple[slice, slice], sight: float) -> None:
    """Cells of 10 pixels; the signs of what is there do not matter."""
    raw = np.zeros((10, 10), np.float32)
    raw[cells] = np.random.default_rng(0).choice([-1.0, 1.0], raw[cells].shape)
    aligned = align(raw, Geometry((100, 100), (100, 100), (0, 0), (100, 100)), box)
    assert aligned is not None
    assert aligned[1].sight == pytest.approx(sight)


def test_a_planted_gaussian_comes_out_in_the_mean(seed: int, tmp_path: Path) -> None:
    """A hill at the same place of every box, whatever the picture and the box: the mean is its integral over cells."""
    generator = np.random.default_rng(seed)
    at, wide = (generator.uniform(0.1, 0.9), generator.uniform(-0.3, 0.3)), 0.25
    for i in range(8):
        geometry = (WIDE, TALL)[i % 2]
        height, width = geometry.source
        w, h = generator.uniform(60, 110, 2)
        x, y = width / 2 - w / 2 + generator.uniform(-15, 15), height / 2 - h / 2 + generator.uniform(-15, 15)
        box = [x, y, x + w, y + h]
        maps = [bump(geometry, box, at, wide) * 10.0 ** generator.uniform(-6, 6)]
        picture = random_picture(seed + i, height, width)
        save_light(tmp_path / str(i), made(picture, 1, ("kite",), torch.tensor([box]), geometry, maps), f"{i}.jpg")
    (summary,) = summarise(tmp_path)
    statistics = summary.statistics(label="kite")
    assert (statistics.objects, statistics.measured) == (8, 8)

    def integrals(middle: float) -> np.ndarray:
        edges = (np.linspace(-1, 2, SIDE + 1) - middle) / (wide * math.sqrt(2))
        return np.diff([math.erf(edge) / 2 for edge in edges])

    expected = np.outer(integrals(at[1]), integrals(at[0]))
    assert statistics.mean is not None
    assert np.abs(statistics.mean - expected).max() < 0.03 * expected.max()
    assert np.abs(statistics.mean - expected).sum() < 0.03
    inside = expected[BOX : 2 * BOX, BOX : 2 * BOX].sum()
    assert statistics.quartiles == pytest.approx([1 - inside] * 5, abs=0.01)


def test_a_cue_above_every_box_shows_and_is_ranked_first(seed: int, tmp_path: Path) -> None:
    for i in range(6):
        boxes = boxes_in(2, (150, 200)) + torch.tensor([80.0, 100, 80, 100])
        above = bump(WIDE, boxes[0].tolist(), (0.5, -0.5), 0.12)
        inside = bump(WIDE, boxes[1].tolist(), (0.5, 0.5), 0.12)
        explanation = made(random_picture(seed + i, 300, 400), 2, ("ship", "car"), boxes, WIDE, [above, inside])
        save_light(tmp_path / str(i), explanation, f"{i}.jpg")
    (summary,) = summarise(tmp_path)
    zones, farther = summary.statistics(label="ship").zones, summary.statistics(label="ship").farther
    assert zones is not None
    assert zones[0][1] > 0.9
    assert zones[0][1] + zones[1][1] == pytest.approx(1, abs=0.02)
    assert farther == pytest.approx(0, abs=0.01)
    zones = summary.statistics(label="car").zones
    assert zones is not None
    assert zones[1][1] > 0.9
    assert [item.label for item in summary.by_surroundings("found")] == ["ship"] * 6
    ranked = [item.spread.outside for item in summary.by_surroundings("found") if item.spread]
    assert ranked == sorted(ranked, reverse=True)


def test_figures_are_those_of_the_objects(seed: int, tmp_path: Path) -> None:
    labels = tuple(f"kind {i % 3}" for i in range(12))
    for i in range(3):
        save_light(tmp_path / str(i), made(random_picture(seed + i, 120, 160), 12, labels), f"{i}.jpg")
    (summary,) = summarise(tmp_path)
    for label, count in ((None, 36), ("kind 1", 12)):
        shares = [item.spread.outside for item in summary.objects if item.spread and label in (None, item.label)]
        assert len(shares) == count
        statistics = summary.statistics(label=label)
        assert (statistics.objects, statistics.measured, statistics.unexplained) == (count, count, 0)
        assert statistics.quartiles == pytest.approx(np.percentile(shares, [0, 25, 50, 75, 100]).tolist())
        assert statistics.histogram == np.histogram(shares, 20, (0, 1))[0].tolist()
        assert statistics.mean is not None
        assert statistics.zones is not None
        inside = statistics.mean[BOX : 2 * BOX, BOX : 2 * BOX].sum()
        assert inside == pytest.approx(1 - np.mean(shares))
        assert statistics.zones[1][1] == pytest.approx(inside)
        assert np.sum(statistics.zones) + statistics.farther == pytest.approx(1)
    parts = [summary.statistics(label=f"kind {i}").mean for i in range(3)]
    whole = summary.statistics().mean
    assert whole is not None
    np.testing.assert_allclose(np.mean([part for part in parts if part is not None], axis=0), whole)
    assert summary.labels("found") == ["kind 0", "kind 1", "kind 2"]


def test_what_shows_nothing_is_counted_apart(seed: int, tmp_path: Path) -> None:
    """A blank map, a constant one, one that is not finite, a box without area; and a box too small to tell."""
    boxes = torch.tensor([[10.0, 10, 60, 60]] * 4 + [[30.0, 30, 30, 80], [90.0, 40, 94, 44]])
    maps = [torch.zeros(20, 32), torch.full((20, 32), 3.0), torch.full((20, 32), float("nan")), *blobs(3)]
    maps[5] = torch.zeros(20, 32)
    maps[5][2, 3] = 1.0  # far from its tiny box
    save_light(tmp_path, made(random_picture(seed, 120, 160), 6, boxes=boxes, maps=maps))
    (summary,) = summarise(tmp_path)
    assert [item.spread is None for item in summary.objects] == [True, True, True, False, True, False]
    statistics = summary.statistics()
    assert (statistics.objects, statistics.measured, statistics.small) == (6, 2, 1)
    tiny = summary.objects[5]
    assert tiny.spread is not None
    assert (tiny.spread.outside, tiny.mostly_outside) == (1, False)
    assert tiny.spread.cells == pytest.approx(4 * 20 / 120)


def test_settings_are_kept_apart_and_questions_left_out(seed: int, tmp_path: Path) -> None:
    image = random_picture(seed, 60, 80)
    for folder, settings in {
        "a": {}, "b": {"method": "gradcam"}, "c": {"conf": 0.5}, "d": {"prompts": [{"point": [1, 2]}]},
        "e": {"truth": {"wrong_pixels": 0.5}},
    }.items():  # fmt: skip
        save_light(tmp_path / folder, made(image, 2, **settings), "a.jpg")
    summaries = summarise(tmp_path)
    assert [(summary.choices["method"], summary.pictures, len(summary.objects)) for summary in summaries] == [
        ("odam", 1, 2), ("gradcam", 1, 2),
    ]  # fmt: skip
    assert summarise(tmp_path, folders=[tmp_path / "b"])[0].choices["method"] == "gradcam"
    assert summarise(tmp_path, folders=[tmp_path / "d"]) == []


@pytest.mark.nightly
def test_two_thousand_objects_leave_no_maps_behind(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each explanation's maps are read once, and gone when the next but one's are read."""
    reads: list[Path] = []
    alive: Counter[str] = Counter()
    maps = Saved.maps

    def watched(saved: Saved) -> list[np.ndarray]:
        reads.append(saved.folder)
        arrays = maps(saved)
        for array in arrays:
            weakref.finalize(array, alive.subtract, ["now"])
        alive["now"] += len(arrays)
        alive["most"] = max(alive["most"], alive["now"])
        return arrays

    labels = tuple(f"kind {i}" for i in range(20))
    first = made(random_picture(seed, 60, 80), 20, labels, maps=[torch.rand(30, 30) for _ in range(20)])
    for i in range(100):
        save_light(tmp_path / f"{i:02d}", dataclasses.replace(first, image=random_picture(seed + i, 60, 80)), f"{i}")
    monkeypatch.setattr(Saved, "maps", watched)
    (summary,) = summarise(tmp_path)
    assert len(summary.objects) == 2000
    assert sorted(reads) == sorted({item.saved.folder for item in summary.objects})
    assert alive["most"] <= 40
    page, figures = (
        summary_page([summary], tmp_path, lambda saved, number: "", ("", "")),
        summary_json([summary], tmp_path),
    )
    print(f"page {len(page) / 1e6:.2f} MB, figures {len(figures) / 1e6:.2f} MB")
    assert len(page) < 3e6


@pytest.mark.parametrize("blind", [1, 2, 3])
def test_maps_that_cannot_show_heat_around_the_box_say_nothing_of_it(blind: int, seed: int, tmp_path: Path) -> None:
    """A window of a few cells in the box, as at the object's feature level, beside maps over the whole image."""
    wide, narrow = blobs(1)[0] + 0.01, torch.zeros(20, 32)
    narrow[4:8, 4:8] = torch.rand(4, 4)
    maps = [narrow] * blind + [wide] * (4 - blind)
    boxes = torch.tensor([[10.0, 10, 60, 60]] * 4)
    save_light(tmp_path, made(random_picture(seed, 100, 160), 4, boxes=boxes, maps=maps))
    (summary,) = summarise(tmp_path)
    assert [item.sees_around for item in summary.objects] == [False] * blind + [True] * (4 - blind)
    statistics = summary.statistics()
    assert (statistics.measured, statistics.blind) == (4, blind)
    assert statistics.mean is not None
    if blind > 2:
        assert statistics.quartiles is statistics.histogram is statistics.zones is statistics.others is None
    else:
        share = summary.objects[-1].spread
        assert share is not None
        assert statistics.quartiles == pytest.approx([share.outside] * 5)
        assert sum(statistics.histogram or []) == 4 - blind
