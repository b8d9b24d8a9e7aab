"""Mutated labels of every kind give objects or an error."""

import json
import random
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from fuzzing import fuzz, mutated

from detcam.evaluate.labels.base import Label
from detcam.evaluate.labels.read import read_labels

HEIGHT, WIDTH = 20, 30
PICTURE = Path("street.jpg")
YOLO = [b"0 0.5 0.5 0.2 0.4\n3 0.1 0.1 0.4 0.2 0.3 0.9\n", b"12 0.25 0.75 0.5 0.5\n"]
VALUES = (
    None, True, -1, 0, 0.5, 7, 2**31, 2**63, -(2**70), 1e308, -1e308, float("nan"), float("inf"), "", "x", "\x1b[2J", "../..",
    "²", [], [[]], [1], [1e300] * 6, [[1, 2, 3]], [[0, 0, 9, 0, 9, 9]], {}, {"size": [HEIGHT, WIDTH], "counts": "0"},
    {"size": [2**31, 2**31], "counts": [2**62]}, {"size": [HEIGHT, WIDTH], "counts": [-1, 601]}, "street.jpg", 1,
)  # fmt: skip


def coco(random: random.Random) -> dict[str, Any]:
    """A valid document with one object of each kind."""
    runs = [40, 10, HEIGHT * WIDTH - 50]
    shapes: list[Any] = [[[1, 1, 20, 2, 15.5, 12]], {"size": [HEIGHT, WIDTH], "counts": runs}, None]
    shapes.append({"size": [HEIGHT, WIDTH], "counts": compressed(runs)})
    objects = [
        {"id": i, "image_id": 1, "category_id": 5, "bbox": [1, 2, 10, 9.5], "iscrowd": 0, "segmentation": shape}
        for i, shape in enumerate(shapes)
    ]
    random.shuffle(objects)
    return {
        "images": [{"id": 1, "file_name": PICTURE.name, "height": HEIGHT, "width": WIDTH}],
        "categories": [{"id": 5, "name": "bicycle"}],
        "annotations": objects,
    }


def compressed(runs: list[int]) -> str:
    from pycocotools import mask

    pixels = np.repeat(np.arange(len(runs)) % 2, runs).astype(np.uint8).reshape(WIDTH, HEIGHT).T
    counts: bytes = mask.encode(np.asfortranarray(pixels))["counts"]
    return counts.decode()


def changed(value: Any, random: random.Random) -> Any:
    """A copy of the document with one value replaced, removed, or mutated as text."""
    if isinstance(value, dict) and value and random.random() < 0.85:
        key = random.choice(list(value))
        if random.random() < 0.1:
            return {k: v for k, v in value.items() if k != key}
        return {k: changed(v, random) if k == key else v for k, v in value.items()}
    if isinstance(value, list) and value and random.random() < 0.85:
        place = random.randrange(len(value))
        return [changed(v, random) if i == place else v for i, v in enumerate(value)]
    if isinstance(value, str) and random.random() < 0.5:
        return mutated(value.encode("utf-8", "surrogatepass"), random).decode("utf-8", "surrogateescape")
    return random.choice(VALUES)


def check(labels: object) -> None:
    assert isinstance(labels, list)
    for label in labels:
        assert isinstance(label, Label)
        assert np.isfinite(label.box).all()
        assert label.mask is None or (label.mask.shape == (HEIGHT, WIDTH) and label.mask.dtype == bool)


def test_mutated_yolo_text(seed: int, tmp_path: Path) -> None:
    path = tmp_path / "street.txt"

    def read(data: bytes) -> object:
        path.write_bytes(data)
        return read_labels(tmp_path).of(PICTURE, HEIGHT, WIDTH)

    fuzz("YOLO labels", seed, 150, lambda r: mutated(r.choice(YOLO), r, YOLO), read, check)


def test_mutated_coco(seed: int, tmp_path: Path) -> None:
    path = tmp_path / "instances.json"

    def made(random: random.Random) -> bytes:
        document = coco(random)
        for _ in range(random.randrange(4)):
            document = changed(document, random)
        data = json.dumps(document).encode("utf-8", "surrogatepass")
        return mutated(data, random) if random.random() < 0.3 else data

    def read(data: bytes) -> object:
        path.write_bytes(data)
        return read_labels(path).of(PICTURE, HEIGHT, WIDTH)

    fuzz("COCO labels", seed, 150, made, read, check)


def test_mutated_masks(seed: int, tmp_path: Path) -> None:
    path = tmp_path / "street.png"
    pixels = np.random.default_rng(seed).integers(0, 4, (HEIGHT, WIDTH)).astype(np.uint8)
    files = [cv2.imencode(".png", p)[1].tobytes() for p in (pixels, pixels.astype(np.uint16), pixels[:5])]

    def read(data: bytes) -> object:
        path.write_bytes(data)
        return read_labels(tmp_path).of(PICTURE, HEIGHT, WIDTH)

    def made(random: random.Random) -> bytes:
        from test_fuzz_pictures import repaired

        data = mutated(random.choice(files), random, files)
        return repaired(data) if random.random() < 0.7 else data

    fuzz("mask labels", seed, 100, made, read, check)
