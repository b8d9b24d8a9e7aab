"""Ground truth: COCO JSON, YOLO and YOLO-seg text, and masks as PNG, each read as objects with boxes and masks."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from detcam.errors import DependencyError, InputError
from detcam.evaluate.naming import names_beside
from detcam.images import stored_size, verify_image
from detcam.reading import read_regular

UNLABELLED = 255  # in a PNG of class numbers
SLACK = 1e-3  # how far beyond the picture a coordinate may lie, as a share: rounding of exporters
MAX_BYTES = 2**31  # of a file: COCO's own largest has 450 MB
DIGITS = 9  # of a class


@dataclass(frozen=True)
class Label:
    """One labelled object in source pixels.

    Attributes:
        kind: its class, by number or by name.
        box: [4] float64 xyxy.
        mask: [H, W] bool; None if the labels give its box only.
    """

    kind: int | str
    box: np.ndarray
    mask: np.ndarray | None

    def is_of(self, class_id: int, name: str) -> bool:
        """Whether it is of the model's class with that number and name."""
        return self.kind == (name if isinstance(self.kind, str) else class_id)


class Labels(ABC):
    """The labels of a set of pictures.

    Attributes:
        names: what the data set calls its classes, by number; None if it does not say.
    """

    names: dict[int, str] | None = None

    @abstractmethod
    def of(self, picture: Path, height: int, width: int) -> list[Label]:
        """The objects of one picture, without crowds; [] if it has none.

        Raises:
            InputError: for what cannot be read, with the file, the place in it and what to do.
        """


def read_labels(path: Path) -> Labels:
    """The labels at `path`.

    - a `.json` file: COCO's instances, with polygons, RLE or boxes; pictures by file name, classes by category name.
    - a folder of `STEM.txt`: YOLO (`class x y w h`) or YOLO-seg (`class x1 y1 x2 y2 ...`), shares of the picture.
    - a folder of `STEM.png`: a class number per pixel, 255 for none; every class is one object.
    - a folder of folders `STEM/CLASS.png`, `STEM/CLASS_1.png`, ...: a mask per object, where it is not black; CLASS is
      a number or a name.

    Raises:
        InputError: if there are no labels of these kinds.
    """
    try:
        if path.suffix.lower() == ".json" and not path.is_dir() and path.exists():
            return CocoLabels(path)
        if path.is_dir():
            if next(path.glob("*.txt"), None) is not None:
                return YoloLabels(path)
            if next(path.glob("*.png"), None) is not None or next(path.glob("*/*.png"), None) is not None:
                return MaskLabels(path)
        found = "does not exist" if not path.exists() else "holds no labels"
    except OSError as error:
        raise InputError(f"labels {path} cannot be read ({error.strerror or error}): check the path") from None
    raise InputError(f"labels {path} {found}: give COCO's .json, or a folder of YOLO's .txt or of .png masks")


class YoloLabels(Labels):
    """See `read_labels`. A picture without a file has no objects. Names are those of a data.yaml nearby."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.names = names_beside(folder)

    def of(self, picture: Path, height: int, width: int) -> list[Label]:
        """See `Labels.of`."""
        path = self._folder / f"{picture.stem}.txt"
        try:
            lines = read_regular(path, MAX_BYTES).decode("utf-8").splitlines()
        except FileNotFoundError:
            return []
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: cannot be read as text ({error}): check the file") from None
        return [
            _yolo_label(line, f"{path}, line {number}", height, width)
            for number, line in enumerate(lines, start=1)
            if line.strip()
        ]


def _yolo_label(line: str, place: str, height: int, width: int) -> Label:
    kind, *coordinates = line.split()
    try:
        numbers = np.array([float(value) for value in coordinates])
    except ValueError:
        raise InputError(f"{place}: {_short(line)} holds what is no number: expected `class x y w h`") from None
    if not _is_number(kind):
        raise InputError(f"{place}: class {_short(kind)} is no whole number from 0 on: write its number in the model")
    if len(numbers) != 4 and (len(numbers) < 6 or len(numbers) % 2):
        raise InputError(
            f"{place}: {len(numbers)} numbers after the class: expected 4 (x y w h) or pairs of at least 3 corners"
        )
    if not ((numbers >= -SLACK) & (numbers <= 1 + SLACK)).all():  # NaN is not either
        raise InputError(
            f"{place}: coordinate {numbers[~((numbers >= -SLACK) & (numbers <= 1 + SLACK))][0]:g} is no share of the "
            "picture in [0, 1]: divide pixels by width and height"
        )
    size = np.array([width, height])
    if len(numbers) == 4:
        centre, sides = numbers[:2] * size, numbers[2:] * size
        return Label(int(kind), np.concatenate([centre - sides / 2, centre + sides / 2]), None)
    polygon = numbers.reshape(-1, 2) * size
    mask = np.zeros((height, width), np.uint8)
    # A pixel belongs to the polygon by its centre, at half-integers; fillPoly counts centres from 0.
    cv2.fillPoly(mask, [np.round(polygon - 0.5).astype(np.int32)], 1)
    return Label(int(kind), np.concatenate([polygon.min(axis=0), polygon.max(axis=0)]), mask > 0)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= DIGITS


def _short(line: str) -> str:
    return repr(line if len(line) <= 40 else line[:37] + "...")


class MaskLabels(Labels):
    """See `read_labels`. A picture without a file has no objects."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def of(self, picture: Path, height: int, width: int) -> list[Label]:
        """See `Labels.of`."""
        whole = self._folder / f"{picture.stem}.png"
        if whole.exists():
            numbers = self._pixels(whole, height, width)
            present = [int(v) for v in np.unique(numbers) if v != UNLABELLED]
            return [_masked(number, numbers == number) for number in present]
        labels = []
        for path in sorted((self._folder / picture.stem).glob("*.png")):
            name, _, count = path.stem.rpartition("_")
            name = name if name and count.isdecimal() else path.stem
            mask = self._pixels(path, height, width) > 0
            if not mask.any():
                raise InputError(f"{path}: the mask is black all over: delete the file, or paint the object white")
            labels.append(_masked(int(name) if _is_number(name) else name, mask))
        return labels

    def _pixels(self, path: Path, height: int, width: int) -> np.ndarray:
        try:
            data = read_regular(path, MAX_BYTES)
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror or error}): check the file") from None
        stored = stored_size(data)
        if stored is None:
            raise InputError(f"{path}: no PNG that can be decoded: save it again")
        if stored != (height, width):  # said before a large one is decoded
            raise InputError(
                f"{path}: {stored[1]} x {stored[0]} pixels for a picture of {width} x {height}: a mask is as large as "
                "its picture"
            )
        verify_image(data, path)
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        if pixels is None:
            raise InputError(f"{path}: no PNG that can be decoded: convert it")
        if pixels.ndim == 3:
            if pixels.shape[2] == 3 and (pixels[..., :1] == pixels).all():
                pixels = pixels[..., 0]
            else:
                raise InputError(f"{path}: {pixels.shape[2]} channels: save the numbers as one channel (mode L)")
        if pixels.shape != (height, width):
            raise InputError(f"{path}: its size is ambiguous: save it again")
        return pixels


def _masked(kind: int | str, mask: np.ndarray) -> Label:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=float)
    return Label(kind, box, mask)


class CocoLabels(Labels):
    """See `read_labels`. Annotations of crowds (`iscrowd`) are no single objects and are left out."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            document = json.loads(read_regular(path, MAX_BYTES).decode("utf-8"))
        except json.JSONDecodeError as error:
            raise InputError(f"{path}, line {error.lineno}: no JSON ({error.msg}): export it again") from None
        except (OSError, ValueError, RecursionError) as error:  # also text that is no UTF-8, and endless digits
            raise InputError(f"{path}: cannot be read ({error}): check the file") from None
        try:
            self._names = {int(c["id"]): str(c["name"]) for c in document["categories"]}
            numbers = {int(image["id"]): Path(str(image["file_name"])).name for image in document["images"]}
            self._found: defaultdict[str, list[tuple[int, dict[str, Any]]]] = defaultdict(list)
            for place, annotation in enumerate(document["annotations"]):
                self._found[numbers[int(annotation["image_id"])]].append((place, annotation))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise InputError(
                f"{path}: not in COCO's form ({type(error).__name__}: {error}): expected images, annotations and "
                "categories that refer to each other by id"
            ) from None

    def of(self, picture: Path, height: int, width: int) -> list[Label]:
        """See `Labels.of`."""
        return [
            self._label(annotation, f"{self._path}, annotations[{place}]", height, width)
            for place, annotation in self._found.get(picture.name, [])
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
    """[H, W] bool from polygons, by COCO's own code, or from RLE."""
    try:
        if isinstance(shape, list):
            return _polygons(shape, height, width)
        size, counts = [int(side) for side in shape["size"]], shape["counts"]
        runs = [int(n) for n in counts] if isinstance(counts, list) else _runs(str(counts))
        whole = len(size) == 2 and min(size) > 0 and min(runs, default=-1) >= 0 and sum(runs) == size[0] * size[1]
        if not whole:
            raise ValueError(f"its runs do not add up to {size}")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{place}: segmentation is no polygon list or RLE ({error}): export it again") from None
    if size != [height, width]:
        raise InputError(
            f"{place}: an RLE of {size[1]} x {size[0]} pixels for a picture of {width} x {height}: these "
            "labels are of another version of the picture"
        )
    inside = np.arange(len(runs)) % 2 == 1
    return np.repeat(inside, runs).reshape(width, height).T  # RLE goes down the columns


def _runs(text: str) -> list[int]:
    """The lengths in COCO's compressed RLE: five bits a character, from 48 on, differences to the last but one."""
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 30:
            raise ValueError(f"character {character!r} in its counts")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (1 << shift) if bits & 16 else 0  # negative numbers
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("its counts break off")
    return runs


def _polygons(shape: list[Any], height: int, width: int) -> np.ndarray:
    try:
        from pycocotools import mask as coco
    except ImportError:
        raise DependencyError('COCO\'s masks need pycocotools: pip install "detcam[evaluate]"') from None
    far = 2 * max(height, width)  # its C code takes time and memory for every pixel of an outline
    for polygon in shape:
        corners = np.asarray(polygon, dtype=np.float64)
        if corners.ndim != 1 or len(corners) < 4 or len(corners) % 2 or not (np.abs(corners) <= far).all():
            raise ValueError("a polygon that is no list x1, y1, x2, y2, ... near the picture")
    runs = coco.merge(coco.frPyObjects([[float(v) for v in polygon] for polygon in shape], height, width))
    mask: np.ndarray = coco.decode(runs).astype(bool)
    return mask
