"""Labels from COCO's .json files."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from detcam.errors import InputError, needing
from detcam.evaluate.labels.base import MAX_BYTES, Label, Labels
from detcam.files import read_regular


class CocoLabels(Labels):
    """See `read_labels`. Crowds (`iscrowd`) are left out: they are not single objects."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            document = json.loads(read_regular(path, MAX_BYTES).decode("utf-8"))
        except json.JSONDecodeError as error:
            raise InputError(f"{path}, line {error.lineno}: not valid JSON ({error.msg}): export it again") from None
        except (OSError, ValueError, RecursionError) as error:  # also text that is not UTF-8, and endless digits
            raise InputError(f"{path}: cannot be read ({error}): check the file") from None
        try:
            self._names = {int(c["id"]): str(c["name"]) for c in document["categories"]}
            numbers = {int(entry["id"]): Path(str(entry["file_name"])).name for entry in document["images"]}
            self._annotations: defaultdict[str, list[tuple[int, dict[str, Any]]]] = defaultdict(list)
            for place, annotation in enumerate(document["annotations"]):
                self._annotations[numbers[int(annotation["image_id"])]].append((place, annotation))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise InputError(
                f"{path}: not in COCO's format ({type(error).__name__}: {error}): expected images, annotations and "
                "categories that refer to each other by id"
            ) from None

    def of(self, image: Path, height: int, width: int) -> list[Label]:
        return [
            self._label(annotation, f"{self._path}, annotations[{place}]", height, width)
            for place, annotation in self._annotations.get(image.name, [])
            if not annotation.get("iscrowd")
        ]

    def _label(self, annotation: dict[str, Any], place: str, height: int, width: int) -> Label:
        try:
            name = self._names[int(annotation["category_id"])]
            x, y, w, h = (float(v) for v in annotation["bbox"])
            if not (np.isfinite([x, y, x + w, y + h]).all() and w >= 0 and h >= 0):
                raise ValueError(f"bbox {[x, y, w, h]}")
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise InputError(
                f"{place}: {type(error).__name__}: {error}: needs a category_id of categories and a bbox [x, y, w, h]"
            ) from None
        shape = annotation.get("segmentation")
        mask = None if not shape else _coco_mask(shape, place, height, width)
        return Label(name, np.array([x, y, x + w, y + h]), mask)


def _coco_mask(shape: Any, place: str, height: int, width: int) -> np.ndarray:
    """[H, W] bool from polygons, rasterised by pycocotools, or from RLE."""
    try:
        if isinstance(shape, list):
            return _polygons(shape, height, width)
        size, counts = [int(side) for side in shape["size"]], shape["counts"]
        runs = [int(n) for n in counts] if isinstance(counts, list) else _runs(str(counts))
        valid = len(size) == 2 and min(size) > 0 and min(runs, default=-1) >= 0 and sum(runs) == size[0] * size[1]
        if not valid:
            raise ValueError(f"the runs do not add up to {size}")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{place}: segmentation is not a polygon list or RLE ({error}): export it again") from None
    if size != [height, width]:
        raise InputError(
            f"{place}: an RLE of {size[1]} x {size[0]} pixels for an image of {width} x {height}: these "
            "labels are of another version of the image"
        )
    inside = np.arange(len(runs)) % 2 == 1
    return np.repeat(inside, runs).reshape(width, height).T  # RLE is column-major


def _runs(text: str) -> list[int]:
    """Run lengths of COCO's compressed RLE: five bits per character from 48, as differences to the run before last."""
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 30:
            raise ValueError(f"character {character!r} in the counts")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (1 << shift) if bits & 16 else 0  # negative numbers
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("the counts are incomplete")
    return runs


def _polygons(shape: list[Any], height: int, width: int) -> np.ndarray:
    with needing('COCO\'s masks need pycocotools: pip install "detcam[evaluate]"'):
        from pycocotools import mask as coco
    far = 2 * max(height, width)  # the C code takes time and memory for every pixel of an outline
    for polygon in shape:
        corners = np.asarray(polygon, dtype=np.float64)
        if corners.ndim != 1 or len(corners) < 4 or len(corners) % 2 or not (np.abs(corners) <= far).all():
            raise ValueError("a polygon is not a list x1, y1, x2, y2, ... near the image")
    runs = coco.merge(coco.frPyObjects([[float(v) for v in polygon] for polygon in shape], height, width))
    return np.asarray(coco.decode(runs), dtype=bool)
