"""Scenes as a data set in the YOLO segmentation format: pictures, polygons, data.yaml."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import yaml
from numpy.typing import NDArray

from detcam.errors import InputError, OutputError
from detcam.scenes.compose import CLASSES, Scene, draw_scene

_ZOOM = 4  # contours run through pixel centres; tracing an enlarged mask brings them to the pixels' borders
_TOLERANCE = 0.6  # px; how far a polygon may stray from the mask


def write_dataset(
    folder: Path,
    train: Iterable[int],
    val: Iterable[int],
    size: tuple[int, int] = (480, 640),
    workers: int | None = None,
) -> Path:
    """Write the scenes of the given seeds under `folder` and return the path of its data.yaml.

    Layout: images/{train,val}/SEED.jpg, labels/{train,val}/SEED.txt. `workers` processes draw (None: one a
    CPU). Files that exist are overwritten. Raises OSError where a file cannot be written.
    """
    with ProcessPoolExecutor(workers) as pool:
        for split, seeds in (("train", train), ("val", val)):
            for kind in ("images", "labels"):
                (folder / kind / split).mkdir(parents=True, exist_ok=True)
            list(pool.map(partial(_write_scene, folder, split, size), seeds, chunksize=8))
    description = {
        "path": str(folder.resolve()),
        "train": "images/train",
        "val": "images/val",
        "names": dict(enumerate(CLASSES)),
    }
    data = folder / "data.yaml"
    data.write_text(yaml.safe_dump(description, sort_keys=False), encoding="utf-8")
    return data


def label_lines(scene: Scene) -> list[str]:
    """Return one line per object, "class x y x y ...": its outline as fractions of width and height."""
    height, width = scene.image.shape[:2]
    lines = []
    for class_id, mask in zip(scene.class_ids, scene.masks, strict=True):
        outline = mask_polygon(mask) / (width, height)
        lines.append(f"{class_id} " + " ".join(f"{value:.5f}" for value in outline.ravel()))
    return lines


def mask_polygon(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return one polygon, float64 [K,2] in pixels, for a mask that may have several parts and holes.

    The format allows one polygon per object, so the parts are joined by seams without width. Raises
    ValueError for an empty mask.
    """
    if not mask.any():
        raise InputError("mask_polygon: the mask is empty: drop objects without visible pixels first")
    large = cv2.resize(mask.astype(np.uint8), None, fx=_ZOOM, fy=_ZOOM, interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(large, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    parts = [_simplified(contour) for contour in contours]
    parts.sort(key=lambda part: -float(cv2.contourArea(part)))
    polygon = parts[0]
    for part in parts[1:]:
        polygon = _joined(polygon, part)
    return (polygon + 0.5) / _ZOOM


def _simplified(contour: NDArray[np.integer | np.floating]) -> NDArray[np.int32]:
    """Drop the points of a cv2 contour [K,1,2] that the tolerance allows, but never a whole thin part."""
    fewer = cv2.approxPolyDP(contour, _TOLERANCE * _ZOOM, True)
    return np.asarray(fewer if len(fewer) > 2 else contour, np.int32)[:, 0]


def _joined(polygon: NDArray[np.int32], part: NDArray[np.int32]) -> NDArray[np.int32]:
    """Walk `polygon` to where it is nearest to `part`, go round `part`, and come back the same way."""
    distance = ((polygon[:, None].astype(np.int64) - part[None]) ** 2).sum(axis=2)
    leave, land = np.unravel_index(distance.argmin(), distance.shape)
    detour = np.concatenate([np.roll(part, -land, axis=0), part[land : land + 1]])
    return np.concatenate([polygon[: leave + 1], detour, polygon[leave:]])


def _write_scene(folder: Path, split: str, size: tuple[int, int], seed: int) -> None:
    scene = draw_scene(seed, size)
    picture = folder / "images" / split / f"{seed}.jpg"
    if not cv2.imwrite(str(picture), scene.image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95]):
        raise OutputError(f"{picture} cannot be written: choose another folder")
    label = folder / "labels" / split / f"{seed}.txt"
    label.write_text("\n".join(label_lines(scene)) + "\n", encoding="utf-8")
