"""Readers of YOLO's .txt files and of PNG label maps, and the choice of a reader for a path."""

import reprlib
from pathlib import Path

import cv2
import numpy as np

from detcam.errors import InputError
from detcam.evaluate.labels.base import MAX_BYTES, Label, Labels, is_number
from detcam.evaluate.labels.coco import CocoLabels
from detcam.evaluate.labels.names import names_beside
from detcam.files import read_regular
from detcam.images import stored_size, verify_image

SLACK = 1e-3  # tolerance for coordinates outside the image, as a share: exporters round
UNLABELLED = 255  # in a PNG of class numbers


def read_labels(path: Path) -> Labels:
    """The labels at `path`.

    - a `.json` file: COCO's instances, with polygons, RLE or boxes; images by file name, classes by category name.
    - a folder of `STEM.txt`: YOLO (`class x y w h`) or YOLO-seg (`class x1 y1 x2 y2 ...`), as shares of the image.
    - a folder of `STEM.png`: a class number per pixel, 255 for none; every class is an object.
    - a folder of folders `STEM/CLASS.png`, `STEM/CLASS_1.png`, ...: a mask per object, of all non-black pixels; CLASS
      is a number or a name.

    Raises:
        InputError: without labels of these kinds.
    """
    try:
        if path.suffix.lower() == ".json" and not path.is_dir() and path.exists():
            return CocoLabels(path)
        if path.is_dir():
            if next(path.glob("*.txt"), None) is not None:
                return YoloLabels(path)
            if next(path.glob("*.png"), None) is not None or next(path.glob("*/*.png"), None) is not None:
                return MaskLabels(path)
        state = "does not exist" if not path.exists() else "holds no labels"
    except OSError as error:
        raise InputError(f"labels {path} cannot be read ({error.strerror or error}): check the path") from None
    raise InputError(f"labels {path} {state}: give COCO's .json, or a folder of YOLO's .txt or of .png masks")


class YoloLabels(Labels):
    """See `read_labels`. An image without a file has no objects. Class names are those of a data.yaml nearby."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.names = names_beside(folder)

    def of(self, image: Path, height: int, width: int) -> list[Label]:
        path = self._folder / f"{image.stem}.txt"
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
        raise InputError(f"{place}: {reprlib.repr(line)} is not all numbers: expected `class x y w h`") from None
    if not is_number(kind):
        raise InputError(
            f"{place}: class {reprlib.repr(kind)} is not a whole number from 0: write its number in the model"
        )
    if len(numbers) != 4 and (len(numbers) < 6 or len(numbers) % 2):
        raise InputError(
            f"{place}: {len(numbers)} numbers after the class: expected 4 (x y w h) or pairs of at least 3 corners"
        )
    if not ((numbers >= -SLACK) & (numbers <= 1 + SLACK)).all():  # False for NaN
        raise InputError(
            f"{place}: coordinate {numbers[~((numbers >= -SLACK) & (numbers <= 1 + SLACK))][0]:g} is not a share of "
            "the image in [0, 1]: divide pixels by width and height"
        )
    size = np.array([width, height])
    if len(numbers) == 4:
        centre, sides = numbers[:2] * size, numbers[2:] * size
        return Label(int(kind), np.concatenate([centre - sides / 2, centre + sides / 2]), None)
    polygon = numbers.reshape(-1, 2) * size
    mask = np.zeros((height, width), np.uint8)
    # Pixels belong to the polygon by their centres, at half-integers; fillPoly has centres at integers.
    cv2.fillPoly(mask, [np.round(polygon - 0.5).astype(np.int32)], 1)
    return Label(int(kind), np.concatenate([polygon.min(axis=0), polygon.max(axis=0)]), mask > 0)


class MaskLabels(Labels):
    """See `read_labels`. An image without a file has no objects."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def of(self, image: Path, height: int, width: int) -> list[Label]:
        label_map = self._folder / f"{image.stem}.png"
        if label_map.exists():
            numbers = self._pixels(label_map, height, width)
            present = [int(v) for v in np.unique(numbers) if v != UNLABELLED]
            return [_masked(number, numbers == number) for number in present]
        labels = []
        for path in sorted((self._folder / image.stem).glob("*.png")):
            name, _, count = path.stem.rpartition("_")
            name = name if name and count.isdecimal() else path.stem
            mask = self._pixels(path, height, width) > 0
            if not mask.any():
                raise InputError(f"{path}: the mask is empty: delete the file, or paint the object white")
            labels.append(_masked(int(name) if is_number(name) else name, mask))
        return labels

    def _pixels(self, path: Path, height: int, width: int) -> np.ndarray:
        try:
            data = read_regular(path, MAX_BYTES)
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror or error}): check the file") from None
        stored = stored_size(data)
        if stored is None:
            raise InputError(f"{path}: not a PNG that can be decoded: save it again")
        if stored != (height, width):  # checked before a large file is decoded
            raise InputError(
                f"{path}: {stored[1]} x {stored[0]} pixels for an image of {width} x {height}: a mask must be as large "
                "as its image"
            )
        verify_image(data, path)
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        if pixels is None:
            raise InputError(f"{path}: not a PNG that can be decoded: convert it")
        if pixels.ndim == 3 and pixels.shape[2] == 3 and (pixels[..., :1] == pixels).all():
            pixels = pixels[..., 0]
        if pixels.ndim == 3:
            raise InputError(f"{path}: {pixels.shape[2]} channels: save the numbers as one channel (mode L)")
        if pixels.shape != (height, width):
            raise InputError(f"{path}: its size is ambiguous: save it again")
        return pixels


def _masked(kind: int | str, mask: np.ndarray) -> Label:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=float)
    return Label(kind, box, mask)
