"""Labels from YOLO's .txt files."""

import reprlib
from pathlib import Path

import cv2
import numpy as np

from detcam.errors import InputError
from detcam.evaluate.labels.base import MAX_BYTES, Label, Labels, is_number
from detcam.evaluate.labels.names import names_beside
from detcam.files import read_regular

SLACK = 1e-3  # tolerance for coordinates outside the image, as a share: exporters round


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
