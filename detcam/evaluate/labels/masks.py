"""Labels from PNG label maps."""

from pathlib import Path

import cv2
import numpy as np

from detcam.errors import InputError
from detcam.evaluate.labels.base import MAX_BYTES, Label, Labels, is_number
from detcam.files import read_regular
from detcam.images import stored_size, verify_image

UNLABELLED = 255  # in a PNG of class numbers


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
