from __future__ import annotations

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
from support import NIGHTLY

from detcam.scenes import CLASSES, HELD_OUT_SEED, Scene, draw_scene
from detcam.scenes.compose import MIN_SIDE, MIN_VISIBLE, Plan, paint, plan
from detcam.scenes.planted import draw_planted

EACH = 8 if NIGHTLY else 3  # seeds for training, and held-out seeds
SEEDS = [*range(EACH), *range(HELD_OUT_SEED, HELD_OUT_SEED + EACH)]


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [draw_scene(seed) for seed in SEEDS]


def digest(scene: Scene) -> str:
    parts = (scene.image, scene.boxes, scene.class_ids, scene.masks)
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()


OTHER_PROCESS = """
import hashlib, json, sys
import detcam.zoo
from detcam.scenes import draw_scene
from detcam.scenes.planted import draw_planted
s = draw_scene(7)
parts = b"".join(part.tobytes() for part in (s.image, s.boxes, s.class_ids, s.masks))
planted = draw_planted(5, "beacon", "swap").image.tobytes()
heavy = sorted({"ultralytics", "transformers", "matplotlib"} & set(sys.modules))
print(json.dumps([hashlib.sha256(parts).hexdigest(), hashlib.sha256(planted).hexdigest(), heavy]))
"""


@pytest.mark.nightly
def test_same_seed_gives_the_same_bits_in_another_process() -> None:
    """And neither scenes nor the zoo import a model library or matplotlib."""
    other = subprocess.run([sys.executable, "-c", OTHER_PROCESS], capture_output=True, text=True, check=True)
    scene, planted, heavy = json.loads(other.stdout)
    assert scene == digest(draw_scene(7)) == digest(draw_scene(7))
    assert planted == hashlib.sha256(draw_planted(5, "beacon", "swap").image.tobytes()).hexdigest()
    assert not np.array_equal(draw_planted(5, "beacon").image, draw_planted(6, "beacon").image)
    assert heavy == []


def test_every_seed_gives_another_picture(scenes: list[Scene]) -> None:
    assert len({digest(scene) for scene in scenes}) == len(SEEDS)


def test_shapes_dtypes_and_counts(scenes: list[Scene]) -> None:
    for scene in scenes:
        count = len(scene.class_ids)
        assert 3 <= count <= 8
        assert (scene.image.shape, scene.image.dtype) == ((480, 640, 3), np.uint8)
        assert (scene.boxes.shape, scene.boxes.dtype) == ((count, 4), np.float32)
        assert (scene.class_ids.shape, scene.class_ids.dtype) == ((count,), np.int64)
        assert (scene.masks.shape, scene.masks.dtype) == ((count, 480, 640), np.bool_)


def test_boxes_are_tight_around_the_masks(scenes: list[Scene]) -> None:
    for scene in scenes:
        for (left, top, right, bottom), mask in zip(scene.boxes.astype(int), scene.masks, strict=True):
            assert mask[top:bottom, left:right].sum() == mask.sum()
            inside = mask[top:bottom, left:right]
            assert inside[0].any()
            assert inside[-1].any()
            assert inside[:, 0].any()
            assert inside[:, -1].any()


def test_no_pixel_belongs_to_two_objects(scenes: list[Scene]) -> None:
    assert max(int(scene.masks.sum(axis=0).max()) for scene in scenes) == 1


@pytest.mark.parametrize("seed", SEEDS[::3])
def test_enough_of_each_object_is_visible_and_masks_match_objects_painted_alone(seed: int) -> None:
    what = plan(seed)
    scene = paint(what)
    overlapped = 0
    for i, placed in enumerate(what.objects):
        outline = int((placed.sprite.alpha >= 0.5).sum())
        alone = paint(Plan(what.background, (placed,))).masks[0]
        above = [paint(Plan(what.background, (other,))).masks[0] for other in what.objects[i + 1 :]]
        covered = np.any(above, axis=0) if above else np.zeros_like(alone)
        assert np.array_equal(scene.masks[i], alone & ~covered)
        assert scene.masks[i].sum() >= MIN_VISIBLE * outline
        overlapped += bool((alone & covered).any())
    assert len(what.objects) - overlapped >= 1  # the topmost is whole


def test_objects_overlap_often(scenes: list[Scene]) -> None:
    """A box shared by two objects is what makes per-object maps interesting."""
    shared = 0
    for scene in scenes:
        left, top, right, bottom = scene.boxes.T
        wide = np.minimum(right[:, None], right) - np.maximum(left[:, None], left)
        high = np.minimum(bottom[:, None], bottom) - np.maximum(top[:, None], top)
        shared += bool(np.triu((wide > 0) & (high > 0), 1).any())
    assert shared >= len(scenes) * 0.6


def test_pixels_outside_objects_and_shadows_are_the_background() -> None:
    what = plan(3)
    scene = paint(what)
    far = ~np.any(scene.masks, axis=0)
    assert (scene.image[far] != what.background[far]).any(axis=1).mean() < 0.25  # shadows and soft edges only
    assert (scene.image[~far] != what.background[~far]).any(axis=1).mean() > 0.9


@pytest.mark.nightly
def test_classes_are_balanced() -> None:
    counts = np.bincount(
        np.concatenate([draw_scene(seed, (96, 128)).class_ids for seed in range(150)]), minlength=len(CLASSES)
    )
    assert len(counts) == len(CLASSES) >= 8
    assert counts.min() >= 0.65 * counts.mean()
    assert counts.max() <= 1.45 * counts.mean()


@pytest.mark.nightly
def test_colour_does_not_tell_the_class() -> None:
    """The mean hue of a class, over many objects, points nowhere: the colour wheel is used evenly."""
    directions: dict[int, list[complex]] = {index: [] for index in range(len(CLASSES))}
    for seed in range(90):
        scene = draw_scene(seed, (120, 160))
        for class_id, mask in zip(scene.class_ids, scene.masks, strict=True):
            red, green, blue = scene.image[mask].mean(axis=0)
            directions[int(class_id)].append(complex(red - (green + blue) / 2, 0.866 * (green - blue)))
    for turns in directions.values():
        hues = np.array(turns) / np.abs(turns)
        assert abs(hues.mean()) < 0.4, "one hue prevails"


@pytest.mark.parametrize("size", [(480, 640), (333, 517), (MIN_SIDE, MIN_SIDE), (97, 401), (720, 300)])
def test_size_is_honoured(size: tuple[int, int]) -> None:
    for seed in range(3 if NIGHTLY else 1):
        scene = draw_scene(seed, size)
        assert scene.image.shape == (*size, 3)
        assert scene.masks.shape[1:] == size
        assert len(scene.class_ids) >= 3
        assert scene.masks.any(axis=(1, 2)).all()
        assert (scene.boxes[:, 2:] <= size[::-1]).all()


@pytest.mark.parametrize(("seed", "size"), [(-1, (480, 640)), (0, (MIN_SIDE - 1, 640)), (0, (480, 0))])
def test_what_cannot_be_drawn_is_refused(seed: int, size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="draw_scene"):
        draw_scene(seed, size)
