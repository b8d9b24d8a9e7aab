"""Ground truth of every kind against COCO's own reader and by hand, and one clear error for each bad line."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from support import explanation_of

from detcam.errors import InputError
from detcam.evaluate.labels.base import Label
from detcam.evaluate.labels.read import read_labels
from detcam.evaluate.matching import match

coco = pytest.importorskip("pycocotools.coco")
HEIGHT, WIDTH = 60, 80
PICTURE = Path("street.jpg")


def polygon(seed: int, corners: int = 9) -> np.ndarray:
    """[corners, 2] x, y of a star-shaped polygon in the picture."""
    generator = np.random.default_rng(seed)
    angles = np.sort(generator.uniform(0, 2 * np.pi, corners))
    radii = generator.uniform(14, 26, corners)
    centre = np.array([WIDTH / 2, HEIGHT / 2])
    return centre + np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii[:, None]


def coco_document(seed: int) -> dict[str, Any]:
    shape = polygon(seed)
    blob = np.zeros((HEIGHT, WIDTH), np.uint8)
    cv2.circle(blob, (30, 25), 12, 1, -1)
    from pycocotools import mask

    compressed = mask.encode(np.asfortranarray(blob))
    compressed["counts"] = compressed["counts"].decode()
    runs = np.flatnonzero(np.diff(np.concatenate([[0], blob.T.ravel(), [1 - blob[-1, -1]]]))) + 0
    counts = np.diff(np.concatenate([[0], runs, [blob.size]])).tolist()
    low, high = shape.min(axis=0), shape.max(axis=0)
    box = [*low.tolist(), *(high - low).tolist()]
    common = {"image_id": 7, "bbox": box, "area": 1.0}
    return {
        "images": [{"id": 7, "file_name": "street.jpg", "width": WIDTH, "height": HEIGHT}],
        "categories": [{"id": 3, "name": "car"}, {"id": 90, "name": "toothbrush"}],
        "annotations": [
            {**common, "id": 1, "category_id": 3, "iscrowd": 0, "segmentation": [shape.ravel().tolist()]},
            {**common, "id": 2, "category_id": 90, "iscrowd": 0, "segmentation": compressed},
            {**common, "id": 3, "category_id": 3, "iscrowd": 1, "segmentation": {"size": [HEIGHT, WIDTH], "counts": counts}},
            {**common, "id": 4, "category_id": 3, "iscrowd": 0, "segmentation": {"size": [HEIGHT, WIDTH], "counts": counts}},
            {**common, "id": 5, "category_id": 3, "iscrowd": 0, "segmentation": [[2, 2, 9, 2, 9, 9], [20, 20, 30, 20, 30, 30]]},
        ],
    }  # fmt: skip


def test_coco_is_read_as_coco_reads_it(seed: int, tmp_path: Path) -> None:
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(coco_document(seed)))
    labels = read_labels(path).of(PICTURE, HEIGHT, WIDTH)
    reference = coco.COCO(str(path))
    singles = [reference.anns[i] for i in (1, 2, 4, 5)]  # 3 is a crowd
    assert [label.kind for label in labels] == ["car", "toothbrush", "car", "car"]
    for label, annotation in zip(labels, singles, strict=True):
        assert label.mask is not None
        np.testing.assert_array_equal(label.mask, reference.annToMask(annotation).astype(bool))
        x, y, w, h = annotation["bbox"]
        np.testing.assert_allclose(label.box, [x, y, x + w, y + h])
    assert read_labels(path).of(Path("other.jpg"), HEIGHT, WIDTH) == []


def test_yolo_polygons_lie_where_they_are_drawn(seed: int, tmp_path: Path) -> None:
    shape = polygon(seed)
    numbers = (shape / (WIDTH, HEIGHT)).ravel()
    (tmp_path / "street.txt").write_text("2 " + " ".join(f"{v:.6f}" for v in numbers) + "\n\n4 0.5 0.25 0.2 0.1\n")
    outlined, boxed = read_labels(tmp_path).of(PICTURE, HEIGHT, WIDTH)
    assert outlined.mask is not None
    assert outlined.kind == 2
    contour = shape.astype(np.float32)[:, None]
    depth = np.array(
        [[cv2.pointPolygonTest(contour, (x + 0.5, y + 0.5), True) for x in range(WIDTH)] for y in range(HEIGHT)]
    )
    assert outlined.mask[depth > 1.5].all()  # corners are rounded to pixels
    assert not outlined.mask[depth < -1.5].any()
    np.testing.assert_allclose(outlined.box, [*shape.min(axis=0), *shape.max(axis=0)], atol=1e-3)
    assert (boxed.kind, boxed.mask) == (4, None)
    np.testing.assert_allclose(boxed.box, [32, 12, 48, 18])
    assert read_labels(tmp_path).of(Path("other.jpg"), HEIGHT, WIDTH) == []


def test_masks_of_class_numbers(tmp_path: Path) -> None:
    numbers = np.full((HEIGHT, WIDTH), 255, np.uint8)
    numbers[10:20, 30:50] = 3
    numbers[40:, :5] = 0
    cv2.imwrite(str(tmp_path / "street.png"), numbers)
    zero, three = read_labels(tmp_path).of(PICTURE, HEIGHT, WIDTH)
    assert (zero.kind, three.kind) == (0, 3)
    assert three.mask is not None
    np.testing.assert_array_equal(three.mask, numbers == 3)
    assert three.box.tolist() == [30, 10, 50, 20]


def test_a_mask_per_object(tmp_path: Path) -> None:
    (tmp_path / "street").mkdir()
    for name, rows in (("person_1", 10), ("person_2", 20), ("17", 30), ("traffic_light", 5)):
        blank = np.zeros((HEIGHT, WIDTH), np.uint8)
        blank[:rows, 3:8] = 255
        cv2.imwrite(str(tmp_path / "street" / f"{name}.png"), blank)
    found = {(label.kind, int(label.box[3])) for label in read_labels(tmp_path).of(PICTURE, HEIGHT, WIDTH)}
    assert found == {("person", 10), ("person", 20), (17, 30), ("traffic_light", 5)}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("1 0.5 0.5 0.1", "3 numbers after the class: expected 4"),
        ("1 0.1 0.1 0.5 0.5 0.9", "5 numbers after the class"),
        ("1 0.5 0.5 0.1 0.1x", "is not all numbers"),
        ("person 0.5 0.5 0.1 0.1", "class 'person' is not a whole number"),
        ("-1 0.5 0.5 0.1 0.1", "class '-1'"),
        ("1 320 0.5 0.1 0.1", "coordinate 320 is not a share"),
        ("1 nan 0.5 0.1 0.1", "coordinate nan"),
    ],
)
def test_a_bad_line_is_named(line: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "street.txt").write_text("0 0.5 0.5 0.1 0.1\n" + line + "\n")
    with pytest.raises(InputError) as caught:
        read_labels(tmp_path).of(PICTURE, HEIGHT, WIDTH)
    message = str(caught.value)
    assert "street.txt, line 2:" in message
    assert reason in message
    assert "\n" not in message


def broken(**changes: Any) -> dict[str, Any]:
    document = coco_document(0)
    document["annotations"][0].update(changes)
    return document


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ("{", "line 1: not valid JSON"),
        (json.dumps([1, 2]), "not in COCO's format"),
        (json.dumps({"images": [], "categories": []}), "'annotations'"),
        (json.dumps(broken(image_id=99)), "KeyError: 99"),
        (json.dumps(broken(category_id=5)), "annotations[0]: KeyError: 5"),
        (json.dumps(broken(bbox=[1, 2, 3])), "annotations[0]: ValueError"),
        (json.dumps(broken(segmentation={"size": [HEIGHT, WIDTH]})), "annotations[0]: segmentation"),
        (json.dumps(broken(segmentation={"size": [10, 10], "counts": [50, 50]})), "an RLE of 10 x 10"),
    ],
)
def test_bad_json_is_named(document: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "instances.json"
    path.write_text(document)
    with pytest.raises(InputError) as caught:
        read_labels(path).of(PICTURE, HEIGHT, WIDTH)
    assert str(path) in str(caught.value)
    assert reason in str(caught.value)


def test_bad_masks_are_named(tmp_path: Path) -> None:
    path = tmp_path / "street.png"
    for pixels, reason in (
        (np.zeros((5, 5), np.uint8), "5 x 5 pixels for an image of 80 x 60"),
        (np.arange(HEIGHT * WIDTH * 3).reshape(HEIGHT, WIDTH, 3).astype(np.uint8), "3 channels"),
    ):
        cv2.imwrite(str(path), pixels)
        with pytest.raises(InputError, match=reason):
            read_labels(tmp_path).of(PICTURE, HEIGHT, WIDTH)
    path.write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"street.png: not a PNG"):
        read_labels(tmp_path).of(PICTURE, HEIGHT, WIDTH)


def test_no_labels_at_all(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "nowhere", "does not exist"), (tmp_path, "holds no labels")):
        with pytest.raises(InputError, match=reason):
            read_labels(path)


def test_each_label_is_matched_once_and_best_first() -> None:
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 11, 11], [40, 40, 60, 60], [0, 30, 10, 40]])
    explanation = explanation_of(image, [torch.ones(3, 3)] * 4, boxes=boxes, labels=("thing",) * 4)
    masks = [np.zeros((HEIGHT, WIDTH), bool) for _ in range(3)]
    masks[0][0:10, 0:10] = masks[1][40:60, 40:60] = masks[2][45:60, 45:70] = True
    labels = [
        Label(1, np.array([1.0, 1, 11, 11]), masks[0]),  # class ids are 0, 1, 2, 3: only object 1 is of this class
        Label("thing", np.array([40.0, 40, 60, 60]), masks[1]),
        Label(3, np.array([45.0, 45, 70, 60]), masks[2]),  # of object 3's class, and far from it
    ]
    found = match(explanation, labels)
    assert found.objects == [1, 2]
    assert found.iou == [1.0, 1.0]
    assert found.masks is not None
    assert found.others is not None
    np.testing.assert_array_equal(found.masks[1].numpy(), masks[1])
    np.testing.assert_array_equal(found.others[1].numpy(), (masks[0] | masks[2]) & ~masks[1])
    boxed = match(explanation, [*labels, Label(9, np.array([0.0, 0, 1, 1]), None)])
    assert boxed.objects == [1, 2]
    assert boxed.masks is None
    assert match(explanation, []).objects == []
