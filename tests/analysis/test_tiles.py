"""A large image in tiles: maps are those of the tiles alone, at their place; each object counts once."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from support import random_picture, random_yolo
from torch import Tensor, nn

import detcam
from detcam import Explainer, Explanation, InputError, Objects, cli, explain_tiles
from detcam.adapters import CallableAdapter, LogitsAdapter
from detcam.analysis.tiles import distinct, tiles_of
from detcam.geometry import Geometry
from detcam.report import write_report
from detcam.saved import Saved
from detcam.scenes import HELD_OUT_SEED, draw_scene

TILE, CELL = 64, 8
GREY = 90


class Blobs(nn.Module):
    """A detector whose boxes are known: it finds bright blobs, red (class 0) or green (class 1), exactly."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.features, self.head = nn.Conv2d(3, 6, CELL, CELL), nn.Conv2d(6, 1, 3, 1, 1)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        return self.head(self.features(pixels).relu()), pixels


def detect(outputs: tuple[Tensor, Tensor], conf: float) -> list[dict[str, Tensor]]:
    rows = []
    for logits, pixels in zip(*outputs, strict=True):
        bright = (pixels.amax(dim=0) > 0.6).byte().numpy()
        _, _, stats, centres = cv2.connectedComponentsWithStats(bright)
        x, y, width, height = torch.from_numpy(stats[1:, :4]).unbind(1)
        column, row = torch.from_numpy(centres[1:]).long().unbind(1)
        index = row // CELL * logits.shape[2] + column // CELL
        scores = logits.flatten()[index].sigmoid()
        i = scores.argsort(descending=True)
        boxes = torch.stack([x, y, x + width, y + height], dim=1).float()
        classes = (pixels[1] > 0.6)[row, column].long()
        rows.append({"boxes": boxes[i], "scores": scores[i], "class_ids": classes[i], "index": index[i]})
    return rows


def score(outputs: tuple[Tensor, Tensor], objects: list[Objects], target: str) -> Tensor:
    return torch.cat([outputs[0][i].flatten()[o.index] for i, o in enumerate(objects)])


def candidates(outputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    logits = outputs[0].flatten(1).sigmoid()[:, :, None].expand(-1, -1, 2)
    side = int(logits.shape[1] ** 0.5)
    corner = torch.stack([torch.arange(side**2) % side, torch.arange(side**2) // side], dim=1) * float(CELL)
    return torch.cat([corner, corner + CELL], dim=1).expand(len(logits), -1, -1), logits


@pytest.fixture
def explainer(seed: int) -> Explainer:
    adapter = CallableAdapter(
        lambda module, batch: module(batch), detect, score, layers=["features"], names=["red", "green"],
        candidates=candidates,
    )  # fmt: skip
    return Explainer(Blobs(seed), "odam", adapter=adapter, imgsz=TILE, conf=0.0)


def drawn(size: tuple[int, int], *blobs: tuple[int, int, int, int, int]) -> np.ndarray:
    """A grey picture with blobs (x, y, width, height, class)."""
    picture = np.full((*size, 3), GREY, np.uint8)
    for x, y, width, height, kind in blobs:
        picture[y : y + height, x : x + width, kind] = 255
    return picture


# 100 x 150 in tiles of 64 that overlap by a quarter: rows begin at 0 and 36, columns at 0, 48 and 86.
SIZE = (100, 150)
BLOBS = (
    (4, 5, 10, 9, 0),  # in the first tile alone
    (50, 40, 10, 12, 0),  # where four tiles overlap: seen whole four times
    (52, 4, 8, 10, 1),  # seen whole twice
    (70, 70, 12, 11, 1),  # whole in one tile, inside
    (80, 8, 14, 9, 0),  # whole in one tile, cut by the edge at 86 in another
    (130, 75, 11, 13, 1),
)


@pytest.fixture
def tiled(explainer: Explainer) -> Explanation:
    return explain_tiles(explainer, drawn(SIZE, *BLOBS), tile=TILE, overlap=0.25)


def test_an_objects_map_is_that_of_its_tile_alone(tiled: Explanation, explainer: Explainer) -> None:
    picture = drawn(SIZE, *BLOBS)
    assert sorted(tiled.boxes.tolist()) == sorted([float(x), y, x + w, y + h] for x, y, w, h, _ in BLOBS)
    assert tiled.scores.tolist() == sorted(tiled.scores.tolist(), reverse=True)
    for i in range(len(tiled)):
        crop = tiled.placement(i).crop
        assert crop is not None
        top, left, height, width = crop
        assert (height, width) == (TILE, TILE)
        alone = explainer(picture[top : top + height, left : left + width])
        shift = torch.tensor([left, top] * 2)
        (k,) = (alone.boxes + shift == tiled.boxes[i]).all(dim=1).nonzero().flatten().tolist()
        assert torch.equal(tiled.maps[i], alone.maps[k])
        assert (tiled.labels[i], tiled.scores[i]) == (alone.labels[k], alone.scores[k])
        inside = tiled.heatmaps[i, top : top + height, left : left + width]
        assert bool(inside.any())
        torch.testing.assert_close(inside, alone.heatmaps[k], rtol=0, atol=1e-6)
        assert float(tiled.heatmaps[i].double().sum()) == pytest.approx(float(inside.double().sum()))
        assert tiled.energy_in_box[i] == pytest.approx(alone.energy_in_box[k], abs=1e-6)


def test_of_the_tiles_that_saw_an_object_whole_the_best_score_stays(tiled: Explanation, explainer: Explainer) -> None:
    picture = drawn(SIZE, *BLOBS)
    places = tiles_of(SIZE, TILE, 0.25)
    assert len(places) == 6
    for x, y, width, height, _ in BLOBS:
        scores = []
        for top, left, rows, columns in places:
            if left <= x and top <= y and x + width <= left + columns and y + height <= top + rows:
                alone = explainer(picture[top : top + rows, left : left + columns])
                whole = (alone.boxes == torch.tensor([x - left, y - top, x - left + width, y - top + height])).all(1)
                scores += alone.scores[whole].tolist()
        found = (tiled.boxes == torch.tensor([x, y, x + width, y + height])).all(dim=1)
        assert tiled.scores[found].tolist() == [max(scores)]


def test_what_is_larger_than_a_tile_is_not_lost(explainer: Explainer) -> None:
    found = explain_tiles(explainer, drawn((64, 150), (10, 20, 130, 20, 0)), tile=TILE, overlap=0.25)
    low, high = found.boxes[:, 0].min(), found.boxes[:, 2].max()
    assert (float(low), float(high)) == (10, 140)


def objects_of(rows: list[tuple[tuple[float, ...], float, int]]) -> Objects:
    n = len(rows)
    boxes = torch.tensor([row[0] for row in rows], dtype=torch.float32).view(n, 4)
    zero = torch.zeros(n, dtype=torch.int64)
    kinds = torch.tensor([row[2] for row in rows])
    scores = torch.tensor([row[1] for row in rows])
    return Objects(boxes, scores, kinds, ("thing",) * n, zero, zero, torch.zeros(n, 2, dtype=torch.int64), boxes)


WHOLE, SHIFTED, PART, OTHER = (0, 0, 100, 100), (5, 0, 105, 100), (0, 0, 40, 100), (300, 0, 400, 100)
# Tiles of 800 pixels: two that hold these whole, and two whose right edges cut PART and WHOLE.
A, B, CUTS_PART, CUTS_WHOLE = ((x, -300, x + 800, 500) for x in (-300, -200, -760, -701))


@pytest.mark.parametrize(
    ("rows", "tiles", "kept"),
    [
        ([(WHOLE, 0.5, 0), (SHIFTED, 0.6, 0)], [A, B], [1]),
        ([(WHOLE, 0.5, 0), (SHIFTED, 0.6, 1)], [A, B], [1, 0]),  # of another class
        ([(WHOLE, 0.5, 0), (SHIFTED, 0.6, 0)], [A, A], [1, 0]),  # the model's choice in one tile
        ([(PART, 0.9, 0), (WHOLE, 0.5, 0)], [CUTS_PART, A], [1]),  # a fragment, however well it scores
        ([(PART, 0.9, 0), (WHOLE, 0.5, 0)], [A, B], [0, 1]),  # an object before a larger one
        ([(PART, 0.4, 0), (WHOLE, 0.5, 0)], [CUTS_PART, CUTS_WHOLE], [1]),
        ([(PART, 0.9, 0), (OTHER, 0.5, 0)], [CUTS_PART, A], [0, 1]),
        ([(PART, 0.9, 0), (WHOLE, 0.5, 0), (SHIFTED, 0.6, 0)], [CUTS_PART, A, B], [2]),
        (2 * [((7, 7, 7, 9), 0.5, 0)], [A, B], [0, 1]),  # without area nothing overlaps
        ([], [], []),
    ],
)
def test_which_duplicates_stay(
    rows: list[tuple[tuple[float, ...], float, int]], tiles: list[tuple[int, ...]], kept: list[int]
) -> None:
    found = distinct(objects_of(rows), torch.tensor(tiles, dtype=torch.int64).view(-1, 4), (2000, 2000), 0.7)
    assert found.tolist() == kept


def test_the_edge_of_the_image_cuts_nothing() -> None:
    """A box at the image's left edge is whole: it does not lose to a better-scoring one around it."""
    rows = [((0, 0, 40, 100), 0.4, 0), ((0, 0, 100, 100), 0.5, 0)]
    tiles = torch.tensor([[0, 0, 640, 640], [0, 0, 630, 630]])
    assert distinct(objects_of(rows), tiles, (1000, 1000), 0.7).tolist() == [1, 0]


def test_an_image_within_a_tile_is_explained_as_it_is(explainer: Explainer) -> None:
    picture = drawn((60, 64), (30, 20, 10, 9, 0), (10, 40, 10, 9, 1))
    tiled, plain = explain_tiles(explainer, picture, tile=TILE), explainer(picture)
    assert (tiled.settings, tiled.geometry, tiled.tiles) == (plain.settings, plain.geometry, None)
    assert all(torch.equal(a, b) for a, b in zip(tiled.maps, plain.maps, strict=True))


def test_no_objects(explainer: Explainer, tmp_path: Path) -> None:
    nothing = explain_tiles(explainer, drawn(SIZE), tile=TILE)
    assert (len(nothing), nothing.image.shape, nothing.checks) == (0, (*SIZE, 3), [])
    assert nothing.heatmaps.shape == (0, *SIZE)
    assert np.array_equal(nothing.overlay(), nothing.image)
    nothing.save(tmp_path)


@pytest.mark.parametrize("size", [(64, 64), (65, 64), (10, 300), (101, 999), (128, 128), (129, 130)])
@pytest.mark.parametrize("overlap", [0, 0.2, 0.5, 0.99])
def test_tiles_cover_the_image_and_overlap_enough(size: tuple[int, int], overlap: float) -> None:
    seen = np.zeros(size, int)
    places = tiles_of(size, TILE, overlap)
    for top, left, height, width in places:
        assert (height, width) == (min(TILE, size[0]), min(TILE, size[1]))
        assert 0 <= top <= size[0] - height
        assert 0 <= left <= size[1] - width
        seen[top : top + height, left : left + width] += 1
    assert seen.min() == 1 or overlap > 0.5
    assert len(set(places)) == len(places)
    lefts = sorted({left for _, left, *_ in places})
    assert all(b - a <= max(TILE * (1 - overlap), 1) for a, b in itertools.pairwise(lefts))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile": 16}, r"tile: expected pixels, at least 32 \(the network's stride\), got 16"),
        ({"tile": 0}, "at least 32"),
        ({"tile": 64.5}, "got 64.5"),
        ({"tile": "large"}, "got 'large'"),
        ({"tile": 64, "overlap": 1}, "overlap: expected a share of the tile, at least 0 and below 1, got 1"),
        ({"tile": 64, "overlap": -0.1}, "got -0.1"),
        ({"tile": 64, "overlap": float("nan")}, "got nan"),
        ({"tile": 64, "overlap": "half"}, "got 'half'"),
    ],
    ids=str,
)
def test_wrong_tiles(options: dict[str, Any], message: str, explainer: Explainer) -> None:
    with pytest.raises(InputError, match=message) as caught:
        explain_tiles(explainer, drawn(SIZE), **options)
    assert "\n" not in str(caught.value)


def test_a_check_is_that_of_the_tile(tiled: Explanation, explainer: Explainer) -> None:
    picture = drawn(SIZE, *BLOBS)
    for i in range(len(tiled)):
        top, left, height, width = tiled.placement(i).crop or ()
        alone = explainer(picture[top : top + height, left : left + width])
        (k,) = (alone.boxes + torch.tensor([left, top] * 2) == tiled.boxes[i]).all(dim=1).nonzero().flatten().tolist()
        ours, theirs = tiled.check(i), alone.check(k)
        assert (ours.share, ours.score) == (theirs.share, theirs.score)
        assert ours.hottest == pytest.approx(theirs.hottest, abs=1e-6)


def test_files_and_pages(tiled: Explanation, tmp_path: Path) -> None:
    tiled.save(tmp_path / "out")
    saved = Saved.read(tmp_path / "out")
    assert saved.document["settings"] | {"tile": 64, "overlap": 0.25} == saved.document["settings"]
    assert saved.geometry == Geometry(SIZE, (TILE, TILE), (0, 0), (TILE, TILE))
    assert [saved.placement(i) for i in range(len(tiled))] == [tiled.placement(i) for i in range(len(tiled))]
    assert [item["tile"] for item in saved.objects] == [list(tile) for tile in tiled.tiles or ()]
    with np.load(tmp_path / "out" / "heatmaps.npz") as arrays:
        np.testing.assert_array_equal(arrays["heatmaps"], tiled.heatmaps.numpy())
    write_report(tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    (top, left, height, width), (rows, columns) = (tiled.tiles or [])[0], SIZE
    shares = [left / columns, top / rows, (left + width) / columns, (top + height) / rows]
    shares = json.dumps([round(share, 9) for share in shares], separators=(",", ":"))
    assert f'"crop":{shares}' in page.replace(", ", ",").replace(": ", ":")


def test_an_overlay_is_heated_in_the_tile_only(tiled: Explanation) -> None:
    i = int(tiled.boxes[:, 0].argmin())  # of the first tile
    (top, bottom, *_), (left, right, *_) = tiled.placement(i).axes
    changed = (tiled.overlay(i) != tiled.overlay(i, alpha=0)).any(axis=2)
    assert changed[top:bottom, left:right].any()
    changed[top:bottom, left:right] = False
    assert not changed.any()


def test_tiles_are_scaled_and_padded_as_images_of_their_own(explainer: Explainer, seed: int) -> None:
    """A tile of 50 x 96 in an input of 64: the padding shows on no neighbour, and the geometry returns boxes."""
    picture = random_picture(seed, 50, 200) // 4 + drawn((50, 200), (20, 10, 12, 14, 0), (150, 30, 12, 12, 1)) // 2
    picture[10:24, 20:32, 0] = picture[30:42, 150:162, 1] = 255
    found = explain_tiles(explainer, picture, tile=96, overlap=0.25)
    assert len(found) == 2
    for i in range(2):
        place = found.placement(i)
        assert place.network == (64, 64)
        torch.testing.assert_close(place.to_source(found.objects.network_boxes[i : i + 1])[0], found.boxes[i])
        torch.testing.assert_close(
            place.to_network(found.boxes[i : i + 1])[0], found.objects.network_boxes[i], atol=1e-3, rtol=0
        )
        (top, bottom, *_), (left, right, *_) = place.axes
        alone = explainer(picture[top:bottom, left:right])
        (k,) = [k for k in range(len(alone)) if torch.equal(alone.maps[k], found.maps[i])]
        for size in ((50, 200), (25, 100), (20, 67)):
            heat = found.render([i], size=size, dtype=torch.float32)[0]
            rows, columns = place.seen(size)
            assert float(heat.sum()) == pytest.approx(float(heat[rows, columns].sum()))
        whole = alone.render([k], dtype=torch.float32)[0]
        torch.testing.assert_close(found.heatmaps[i, top:bottom, left:right], whole, rtol=0, atol=1e-5)


def test_masks_of_segmenters_lie_at_their_tiles(seed: int) -> None:
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Conv2d(3, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, 3, 1)).eval()
    picture = random_picture(seed, 64, 100)
    explainer = Explainer(network, adapter=LogitsAdapter(), method="odam", layers=["1"])
    found = explain_tiles(explainer, picture, tile=64)
    assert found.masks is not None
    assert found.masks.shape == (len(found), 64, 100)
    for left in (0, 36):
        alone = explainer(picture[:, left : left + 64])
        assert alone.masks is not None
        ours = [i for i in range(len(found)) if (found.placement(i).crop or ())[1] == left]
        assert [found.labels[i] for i in ours] == alone.labels
        assert torch.equal(found.masks[ours][:, :, left : left + 64], alone.masks)
        assert int(found.masks[ours].sum()) == int(alone.masks.sum())


@pytest.mark.parametrize("config", ["yolov8n-seg.yaml"])
def test_a_yolos_masks(config: str, seed: int) -> None:
    picture = random_picture(seed, 96, 150)
    model = random_yolo(config, seed, picture[:, :96], 96)
    explainer = Explainer(model, "odam", imgsz=96, max_det=4)
    found = explain_tiles(explainer, picture, tile=96)
    assert found.masks is not None
    for i in range(len(found)):
        (top, bottom, *_), (left, right, *_) = found.placement(i).axes
        alone = explainer(picture[top:bottom, left:right])
        assert alone.masks is not None
        (k,) = [k for k in range(len(alone)) if torch.equal(alone.maps[k], found.maps[i])]
        assert torch.equal(found.masks[i, top:bottom, left:right], alone.masks[k])


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "large.png", tmp_path / "out"
    cv2.imwrite(str(path), draw_scene(HELD_OUT_SEED, (160, 400)).image[:, :, ::-1])
    given = ["explain", str(path), "--model", "scenes-yolo", "--method", "odam", "--out", str(out)]
    assert cli.run([*given, "--tile", "160", "--overlap", "0.3", "--json"]) == 0
    (document,) = json.loads(capsys.readouterr().out)
    explainer = detcam.Explainer("scenes-yolo", "odam")
    expected = explain_tiles(explainer, str(path), 160, 0.3).to_dict()
    assert document["objects"] == expected["objects"]
    assert {tuple(item["tile"]) for item in document["objects"]} <= set(tiles_of((160, 400), 160, 0.3))
    assert cli.run([*given, "--tile", "160", "--ask", "1,1,9,9:ball"]) == 2
    assert "--tile: --ask and --prompt are about a whole image" in capsys.readouterr().err
    assert cli.run([*given, "--tile", "8"]) == 2
    assert "error: tile: expected pixels, at least 32" in capsys.readouterr().err
