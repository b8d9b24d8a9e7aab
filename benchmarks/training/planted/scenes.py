"""Training data of the planted scenes' models: the same scene with other distractors and without its causes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from detcam.scenes.planted import CAUSES, SIZE, draw_planted

SCENES = 8  # of a batch
DISTRACTORS = (None, "distractor", "no distractor")  # changes that leave the cause as it is


@dataclass(frozen=True)
class Data:
    """Drawn scenes.

    Attributes:
        images: uint8 [S, 4, SIZE, SIZE, 3]: each scene after the changes `DISTRACTORS`, and without its causes.
        labels: uint8 [S, SIZE, SIZE]: 0 for the background, 1 + its class on an object.
        causes: uint8 [S, SIZE, SIZE]: the same on the cause of a class.
        boxes: for each scene float32 [n, 4] xyxy in pixels.
        class_ids: for each scene int64 [n].
    """

    images: np.ndarray
    labels: np.ndarray
    causes: np.ndarray
    boxes: list[Tensor]
    class_ids: list[Tensor]


@dataclass(frozen=True)
class Batch:
    """Images of S scenes: all of them, all again with other distractors, and the first few without their causes.

    Attributes:
        scenes: S.
        images: float32 [2 S + W, 3, SIZE, SIZE] in [0, 1], in the order above.
        labels: int64 [2 S + W, SIZE, SIZE]: 0 for the background, 1 + its class on an object.
        causes: int64 [2 S + W, SIZE, SIZE]: the same on the cause of a class.
        boxes: for each image float32 [n, 4] xyxy in pixels.
        class_ids: for each image int64 [n]; drawn at random without the causes.
    """

    scenes: int
    images: Tensor
    labels: Tensor
    causes: Tensor
    boxes: list[Tensor]
    class_ids: list[Tensor]


def drawn(variant: str, scenes: int, work: Path) -> Data:
    """The training scenes with the seeds 0, 1, ..., kept in a file under `work`."""
    path = work / f"{variant}_{scenes}.npz"
    if not path.exists():
        _draw(variant, scenes, path)
    with np.load(path) as file:
        counts = np.cumsum(file["counts"])[:-1]
        boxes = [torch.from_numpy(own) for own in np.split(file["boxes"], counts)]
        class_ids = [torch.from_numpy(own) for own in np.split(file["class_ids"], counts)]
        return Data(file["images"], file["labels"], file["causes"], boxes, class_ids)


def _draw(variant: str, scenes: int, path: Path) -> None:
    changes = (*DISTRACTORS, f"no {CAUSES[variant]}")
    images = np.zeros((scenes, len(changes), SIZE, SIZE, 3), np.uint8)
    labels, causes = np.zeros((2, scenes, SIZE, SIZE), np.uint8)
    boxes, class_ids = [], []
    for seed in range(scenes):
        versions = [draw_planted(seed, variant, change) for change in changes]
        images[seed] = [version.image for version in versions]
        scene = versions[0]
        for mask, cause, class_id in zip(scene.masks, scene.causes, scene.class_ids, strict=True):
            labels[seed][mask] = causes[seed][cause] = 1 + class_id
        boxes.append(scene.boxes)
        class_ids.append(scene.class_ids)
    counts = [len(own) for own in boxes]
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        path,
        images=images,
        labels=labels,
        causes=causes,
        counts=counts,
        boxes=np.concatenate(boxes),
        class_ids=np.concatenate(class_ids),
    )


def batch_of(data: Data, without: int, rng: np.random.Generator) -> Batch:
    """A random batch, in random light and colours, perhaps mirrored; `without` images show no causes."""
    chosen = rng.choice(len(data.boxes), SCENES, replace=False)
    versions = np.stack([rng.permutation(len(DISTRACTORS))[:2] for _ in chosen], axis=1)
    scenes = np.concatenate([chosen, chosen, chosen[:without]])
    version = np.concatenate([*versions, np.full(without, len(DISTRACTORS))])
    images = torch.from_numpy(data.images[scenes, version]).permute(0, 3, 1, 2).float() / 255
    labels, causes = (torch.from_numpy(maps[scenes]).long() for maps in (data.labels, data.causes))
    causes[len(causes) - without :] = 0
    boxes = [data.boxes[i].clone() for i in scenes]
    class_ids = [data.class_ids[i] for i in chosen] * 2
    light = torch.from_numpy(rng.uniform(0.7, 1.3, (SCENES, 3, 1, 1)).astype(np.float32))
    images = (images * torch.cat([light, light, light[:without]])).clamp(0, 1)
    images = images[:, torch.from_numpy(rng.permutation(3))]
    for axis in (0, 1):  # all of a batch at once; both symbols look the same in a mirror
        if rng.random() < 0.5:
            images, labels, causes = images.flip(3 - axis), labels.flip(2 - axis), causes.flip(2 - axis)
            for own in boxes:
                own[:, [axis, axis + 2]] = SIZE - own[:, [axis + 2, axis]]
    for i in range(len(images) - without, len(images)):
        guessed = torch.from_numpy(rng.integers(0, 2, len(boxes[i])))
        for class_id, (x1, y1, x2, y2) in zip(guessed, boxes[i].round().long().tolist(), strict=True):
            region = labels[i, y1:y2, x1:x2]
            region[region > 0] = 1 + class_id
        class_ids.append(guessed)
    images = images.contiguous(memory_format=torch.channels_last)
    return Batch(SCENES, images, labels, causes, boxes, class_ids)
