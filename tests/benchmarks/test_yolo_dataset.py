from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

from benchmarks.training.yolo_dataset import label_lines, mask_polygon, write_dataset
from detcam.scenes import CLASSES, HELD_OUT_SEED, draw_scene


def iou(polygon: NDArray[np.floating], mask: NDArray[np.bool_]) -> float:
    """Rasterise the polygon and compare it with the mask."""
    canvas = np.zeros(mask.shape, np.uint8)
    cv2.fillPoly(canvas, [np.rint((polygon - 0.5) * 16).astype(np.int32)], 1, shift=4)
    drawn = canvas.astype(bool)
    return float((drawn & mask).sum() / (drawn | mask).sum())


@pytest.mark.parametrize("seed", [0, 5, 8, HELD_OUT_SEED])
def test_label_lines_give_the_masks_and_boxes_back(seed: int) -> None:
    scene = draw_scene(seed)
    lines = label_lines(scene)
    assert len(lines) == len(scene.class_ids)
    for line, class_id, mask, box in zip(lines, scene.class_ids, scene.masks, scene.boxes, strict=True):
        head, *values = line.split()
        polygon = np.array(values, float).reshape(-1, 2)
        assert int(head) == class_id
        assert 0 <= polygon.min() <= polygon.max() <= 1
        polygon *= (640, 480)
        assert iou(polygon, mask) > 0.95
        # A learner takes the box from the polygon; simplifying may cost up to a pixel and a half a side.
        assert np.abs(np.concatenate([polygon.min(axis=0), polygon.max(axis=0)]) - box).max() < 1.5


def test_a_mask_in_parts_and_with_a_hole_is_one_polygon() -> None:
    mask = np.zeros((80, 120), bool)
    mask[10:50, 10:50] = True
    mask[20:30, 20:30] = False
    mask[40:70, 80:110] = True
    polygon = mask_polygon(mask)
    assert polygon.ndim == 2
    assert iou(polygon, mask) > 0.9


@pytest.mark.parametrize("shape", [np.s_[5:6, 5:6], np.s_[5:6, 2:40], np.s_[0:80, 0:120]])
def test_thin_and_full_masks_have_a_polygon(shape: tuple[slice, slice]) -> None:
    mask = np.zeros((80, 120), bool)
    mask[shape] = True
    polygon = mask_polygon(mask)
    assert len(polygon) >= 3
    left, top = polygon.min(axis=0)
    right, bottom = polygon.max(axis=0)
    assert abs(left - shape[1].start) < 0.5
    assert abs(bottom - shape[0].stop) < 0.5
    assert abs(right - shape[1].stop) < 0.5
    assert abs(top - shape[0].start) < 0.5


def test_an_empty_mask_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        mask_polygon(np.zeros((8, 8), bool))


def test_write_dataset(tmp_path: Path) -> None:
    train, val = range(2), range(HELD_OUT_SEED, HELD_OUT_SEED + 1)
    data = yaml.safe_load(write_dataset(tmp_path / "set", train, val, size=(120, 160), workers=1).read_text())
    assert data["names"] == dict(enumerate(CLASSES))
    stems = {}
    for split, seeds in (("train", train), ("val", val)):
        pictures = Path(data["path"]) / data[split]
        labels = Path(data["path"]) / "labels" / split
        stems[split] = {path.stem for path in pictures.iterdir()}
        assert stems[split] == {path.stem for path in labels.iterdir()} == {str(seed) for seed in seeds}
        for seed in seeds:
            scene = draw_scene(seed, (120, 160))
            picture = cv2.imread(str(pictures / f"{seed}.jpg"))
            assert picture is not None
            assert np.abs(picture[..., ::-1].astype(int) - scene.image).mean() < 6
            assert (labels / f"{seed}.txt").read_text().splitlines() == label_lines(scene)
    assert not stems["train"] & stems["val"]
