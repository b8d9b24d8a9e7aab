"""Scenes as arrays: what was drawn, reduced, and mirrored where it is asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.training.scene_arrays import SceneArrays, scene_arrays
from detcam.scenes import draw_scene

SEEDS = (3, 8)


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> SceneArrays:
    return scene_arrays(tmp_path_factory.mktemp("scenes") / "deep" / "some.npz", SEEDS, (120, 160), workers=1)


def test_pictures_labels_and_boxes_are_those_of_the_scenes(arrays: SceneArrays) -> None:
    assert len(arrays) == len(SEEDS)
    assert arrays.images.shape == (2, 120, 160, 3)
    labels = arrays.labels(np.arange(len(SEEDS)))
    for i, seed in enumerate(SEEDS):
        scene = draw_scene(seed)
        n = len(scene.boxes)
        blocks = scene.image.reshape(120, 4, 160, 4, 3).mean(axis=(1, 3))
        assert np.abs(arrays.images[i] - blocks).max() <= 1
        np.testing.assert_allclose(arrays.boxes[i, :n] * (640, 480, 640, 480), scene.boxes, rtol=1e-5)
        assert arrays.class_ids[i].tolist() == [*scene.class_ids.tolist(), *[-1] * (8 - n)]
        for number, (class_id, mask) in enumerate(zip(scene.class_ids, scene.masks, strict=True), 1):
            whole = mask.reshape(120, 4, 160, 4).all(axis=(1, 3))  # cells that the object fills
            assert (labels[i][whole] == class_id + 1).all()
            assert (arrays.topmost[i][whole] == number).all()
        bare = ~scene.masks.any(axis=0).reshape(120, 4, 160, 4).any(axis=(1, 3))
        assert not labels[i][bare].any()


def test_targets_of_mirrored_scenes_are_mirrored(arrays: SceneArrays) -> None:
    plain, mirrored = (arrays.targets(np.array([1, 0]), np.array([flip, False])) for flip in (False, True))
    first = plain["batch_idx"] == 0
    counts = [len(draw_scene(seed).boxes) for seed in reversed(SEEDS)]
    assert np.bincount(plain["batch_idx"]).tolist() == counts
    x, y, width, height = plain["bboxes"][first].T
    np.testing.assert_allclose(mirrored["bboxes"][first], np.stack([1 - x, y, width, height], axis=1), atol=1e-6)
    np.testing.assert_array_equal(mirrored["bboxes"][~first], plain["bboxes"][~first])
    np.testing.assert_array_equal(mirrored["cls"], plain["cls"])
    boxes = draw_scene(SEEDS[1]).boxes / (640, 480, 640, 480)
    np.testing.assert_allclose((boxes[:, 0] + boxes[:, 2]) / 2, x, atol=1e-6)
    np.testing.assert_allclose(boxes[:, 3] - boxes[:, 1], height, atol=1e-6)


def test_what_is_in_the_file_is_read_and_not_drawn_again(tmp_path: Path) -> None:
    file = tmp_path / "some.npz"
    np.savez(file, images=np.zeros((1, 2, 2, 3), np.uint8), topmost=1, boxes=2, class_ids=3)
    assert scene_arrays(file, (5,), (120, 160)).images.shape == (1, 2, 2, 3)
