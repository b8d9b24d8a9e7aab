"""Scenes as plain arrays for training loops of one's own: drawn once, kept in a file."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from detcam.scenes.compose import draw_scene

MOST = 8  # objects of a scene


@dataclass(frozen=True)
class SceneArrays:
    """S scenes, reduced to one size.

    images: uint8 [S,H,W,3] RGB. topmost: uint8 [S,H,W], 0 for the background, else 1 + the topmost object's number.
    boxes: float32 [S,8,4] xyxy as shares of width and height. class_ids: int64 [S,8], -1 where there is no object.
    """

    images: NDArray[np.uint8]
    topmost: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    class_ids: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.images)

    def labels(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """[N,H,W] of some scenes: 0 for the background, else 1 + the class of the topmost object."""
        classes = np.pad(self.class_ids[ids] + 1, ((0, 0), (1, 0)))
        return np.stack([row[scene] for row, scene in zip(classes, self.topmost[ids], strict=True)])

    def targets(self, ids: NDArray[np.int64], flipped: NDArray[np.bool_]) -> dict[str, NDArray[Any]]:
        """The M objects of some scenes, those of `flipped` ones (bool, as long as `ids`) mirrored left to right.

        Named as Ultralytics' losses ask for them: cls int64 [M], bboxes float32 [M,4] (cx, cy, w, h) as shares of the
        picture, batch_idx int64 [M], the position in `ids`.
        """
        left, top, right, bottom = np.moveaxis(self.boxes[ids], 2, 0)
        x = np.where(flipped[:, None], 2 - left - right, left + right) / 2
        boxes = np.stack([x, (top + bottom) / 2, right - left, bottom - top], axis=2)
        there = self.class_ids[ids] >= 0
        return {"cls": self.class_ids[ids][there], "bboxes": boxes[there], "batch_idx": np.nonzero(there)[0]}


def scene_arrays(file: Path, seeds: Sequence[int], size: tuple[int, int], workers: int | None = None) -> SceneArrays:
    """The scenes of some seeds, drawn at 480 x 640 and reduced to `size` (height, width).

    They are read from `file`, an .npz, if it exists; else `workers` processes draw (None: one a CPU) and write it.
    """
    if not file.exists():
        with ProcessPoolExecutor(workers) as pool:
            scenes = list(pool.map(partial(_reduced, size=size), seeds, chunksize=8))
        columns = zip(*scenes, strict=True)
        arrays = SceneArrays(*(np.stack(column) for column in columns))
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(file, **asdict(arrays))
    with np.load(file) as stored:
        return SceneArrays(**stored)


def _reduced(
    seed: int, size: tuple[int, int]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float32], NDArray[np.int64]]:
    scene = draw_scene(seed)
    height, width = scene.image.shape[:2]
    topmost = np.zeros((height, width), np.uint8)
    for i, mask in enumerate(scene.masks):
        topmost[mask] = 1 + i
    boxes, class_ids = np.zeros((MOST, 4), np.float32), np.full(MOST, -1)
    boxes[: len(scene.boxes)] = scene.boxes / (width, height, width, height)
    class_ids[: len(scene.boxes)] = scene.class_ids
    image = cv2.resize(scene.image, size[::-1], interpolation=cv2.INTER_AREA)
    small = cv2.resize(topmost, size[::-1], interpolation=cv2.INTER_NEAREST)
    return np.asarray(image, np.uint8), np.asarray(small, np.uint8), boxes, class_ids
