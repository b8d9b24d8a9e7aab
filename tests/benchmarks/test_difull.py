from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("ultralytics")

from benchmarks.difull import (
    Tiled,
    difull,
    difull_maps,
    same_class_grid,
    same_class_tiles,
    side_by_side,
    tile_mask,
)
from detcam import Explainer
from detcam.methods import get_method
from detcam.scenes import HELD_OUT_SEED
from detcam.scenes.planted import draw_planted

ELEMENTWISE = ("odam", "hirescam", "layercam", "elementwise")
POOLED = ("gradcam", "gradcam++", "xgradcam")


@pytest.fixture(scope="module")
def explainer() -> Any:
    return Explainer("planted_mark", "odam", conf=0.25)


@pytest.fixture(scope="module")
def tiles() -> list[np.ndarray]:
    return next(same_class_tiles("mark", 1, 3))[1]


def test_tile_masks_are_the_four_quarters() -> None:
    masks = torch.stack([tile_mask(tile, (6, 8)) for tile in range(4)])
    assert (masks.sum(dim=0) == 1).all()
    assert masks[1, :3, 4:].all()
    assert masks[2, 3:, :4].all()


def test_side_by_side_lays_tiles_by_row(seed: int) -> None:
    tensors = torch.randn(4, 5, 3, 2)
    whole = side_by_side(tensors)
    assert whole.shape == (1, 5, 6, 4)
    for tile in range(4):
        part = whole[:, :, tile_mask(tile, (6, 4))].view(5, 3, 2)
        assert torch.equal(part, tensors[tile])


def test_share_inside_by_hand() -> None:
    heat = torch.zeros(4, 4)
    heat[0, 0], heat[3, 3], heat[1, 3] = 3.0, 1.0, -9.0
    assert Tiled(0, heat).inside == 0.75
    assert Tiled(1, heat).inside == 0.0
    assert Tiled(0, torch.zeros(4, 4)).inside == 0.0


def test_tiles_hold_an_object_of_the_class() -> None:
    for class_id, tiles in same_class_tiles("mark", 3, 1):
        assert len(tiles) == 4
        assert class_id in (0, 1)


@pytest.mark.parametrize("layers", ["level", "evidence"])
def test_elementwise_maps_keep_to_their_tile_at_the_cut(explainer: Any, tiles: list[np.ndarray], layers: str) -> None:
    plan = explainer.adapter.layers(layers)
    for name in ELEMENTWISE:
        maps = difull_maps(explainer.adapter, get_method(name), plan, tiles, "class")
        assert len(maps) >= 3
        for tiled in maps:
            outside = tiled.map[~tile_mask(tiled.tile, tuple(tiled.map.shape))]
            assert not outside.any(), f"{name}: no score depends on another tile"
            assert tiled.inside == pytest.approx(1)


def test_pooled_maps_leak(explainer: Any, tiles: list[np.ndarray]) -> None:
    for name in POOLED:
        maps = difull_maps(explainer.adapter, get_method(name), explainer.adapter.layers("level"), tiles, "class")
        assert min(tiled.inside for tiled in maps) < 0.9, f"{name} weighs channels, which all tiles share"


def test_maps_are_those_of_the_tile_by_itself(explainer: Any, tiles: list[np.ndarray]) -> None:
    """What lies in the other tiles changes nothing in the own one, and the own one is the explainer's map."""
    plan, method = explainer.adapter.layers("level"), get_method("odam")
    levelled = Explainer("planted_mark", "odam", layers="level", conf=0.25)
    for tiled in difull_maps(explainer.adapter, method, plan, tiles, "class"):
        alone = levelled(tiles[tiled.tile])
        own = tiled.map[tile_mask(tiled.tile, tuple(tiled.map.shape))].view(alone.maps[0].shape)
        torch.testing.assert_close(own, alone.maps[0], rtol=1e-3, atol=1e-4)


def test_a_tile_without_objects_has_no_map(explainer: Any, tiles: list[np.ndarray]) -> None:
    blank = np.full_like(tiles[0], 114)
    plan = explainer.adapter.layers("level")
    maps = difull_maps(explainer.adapter, get_method("odam"), plan, [blank, *tiles[1:]], "class")
    assert 0 not in [tiled.tile for tiled in maps]


@pytest.mark.nightly
def test_rows_of_both_games() -> None:
    rows = {
        row["name"]: row for row in difull(["odam", "gradcam", "cam", "rise", "layerig", "fused"], ["level"], 2, seed=5)
    }
    assert set(rows) == {"odam @ level", "gradcam @ level", "fused"}, "the others do not apply: cam, rise, layerig"
    assert rows["odam @ level"]["inside"]["mean"] == pytest.approx(1)
    assert rows["gradcam @ level"]["inside"]["mean"] < 0.9
    assert rows["fused"]["inside"]["mean"] > 0.99, (
        "a blur reaches over the border, a product with what is inside does not"
    )
    steps: list[tuple[int, int]] = []
    rows = {
        row["name"]: row
        for row in same_class_grid(["odam"], ["level"], 3, seed=5, progress=lambda *step: steps.append(step))
    }
    assert steps == [(1, 3), (2, 3), (3, 3)]
    assert rows["box"]["inside"]["mean"] > 0.97
    assert 0.2 < rows["noise"]["inside"]["mean"] < 0.3
    assert rows["odam @ level"]["inside"]["mean"] > 0.9
    assert rows["odam @ level"]["objects"] >= 9


def test_scenes_are_held_out() -> None:
    """The first tile of seed 0 is a scene that no model was trained on."""
    from detcam.evaluate.planted.judge import seeds_of

    assert min(seeds_of(50, 0)) >= HELD_OUT_SEED
    first = next(same_class_tiles("mark", 1, 0))[1][0]
    drawn = [draw_planted(number, "mark").image for number in seeds_of(56, 0)[:6]]
    assert any(np.array_equal(first, image) for image in drawn)
