"""Selects the label reader for a path."""

from pathlib import Path

from detcam.errors import InputError
from detcam.evaluate.labels.base import Labels
from detcam.evaluate.labels.coco import CocoLabels
from detcam.evaluate.labels.masks import MaskLabels
from detcam.evaluate.labels.yolo import YoloLabels


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
