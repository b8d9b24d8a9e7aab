"""Interventions on planted scenes: the model's scores while parts of the scene are changed."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detcam.boxes import box_iou
from detcam.engine.frozen_topk import RecordTopk, ReplayTopk
from detcam.explainer import Explainer
from detcam.models.load import load_model
from detcam.scenes.planted import CAUSES, PARTS, PlantedScene, draw_planted
from detcam.types import Objects

CONF = 0.25  # confidence threshold
IOU = 0.5  # least IoU of a detection with the drawn object
BATCH = 32  # images in a forward


@dataclass(frozen=True)
class Family:
    """How the models of a family are explained on planted scenes."""

    suffix: str  # of the names of the family's own models
    first: int = 0  # the number of the first of `detcam.scenes.planted_parts.SYMBOLS` among the family's classes
    options: dict[str, Any] = field(default_factory=dict)  # of `Explainer`

    def model(self, variant: str) -> str:
        """The name of the model that was trained on a variant of the scenes."""
        return f"planted_{variant}{self.suffix}"


FAMILIES = {
    "yolo": Family(""),
    "detr": Family("_detr"),
    "rcnn": Family("_rcnn", first=1),  # class 0 is the background
    "semantic": Family("_semantic", first=1, options={"segments": "component"}),
}


@dataclass(frozen=True)
class Found:
    """The correct detections in a planted scene."""

    seed: int  # of the scene
    scene: PlantedScene  # as drawn, unchanged
    image_objects: Objects  # all detections, in the order of an explanation of the image
    positions: Tensor  # [n] int64, the correct ones among `image_objects`
    owners: tuple[int, ...]  # n numbers, the drawn object that each detection matches

    @property
    def objects(self) -> Objects:
        """The n correct detections."""
        return self.image_objects.select(self.positions)

    def keep(self, selected: Tensor) -> Found:
        """Only those of the n objects for which `selected` [n] bool is set."""
        owners = tuple(owner for owner, kept in zip(self.owners, selected.tolist(), strict=True) if kept)
        return replace(self, positions=self.positions[selected], owners=owners)


class Witness:
    """Reads the scores of a family's model for a planted scene of a variant, and for changed versions of it."""

    def __init__(self, variant: str, family: str = "yolo") -> None:
        self.variant, self.family = variant, FAMILIES[family]
        self.model = load_model(self.family.model(variant))  # once, for many explainers
        self.options = {"conf": CONF, **self.family.options}
        self.explainer = Explainer(self.model, "noise", **self.options)
        self._adapter = self.explainer.adapter

    def find(self, seed: int) -> Found:
        """The correct detections in a scene: same class, IoU of the boxes over `IOU`."""
        scene = draw_planted(seed, self.variant)
        explained = self.explainer(scene.image)
        boxes = torch.from_numpy(scene.boxes).to(explained.boxes)
        iou = box_iou(boxes, explained.boxes)
        class_ids = torch.from_numpy(scene.class_ids).to(iou.device) + self.family.first
        iou = iou * (class_ids[:, None] == explained.class_ids)
        pairs = [(int(row.argmax()), owner) for owner, row in enumerate(iou) if row.numel() and float(row.max()) > IOU]
        positions = torch.tensor([position for position, _ in pairs], dtype=torch.int64, device=iou.device)
        return Found(seed, scene, explained.objects, positions, tuple(owner for _, owner in pairs))

    def scores(self, found: Found, changes: Sequence[str | None], target: str = "class") -> Tensor:
        """[n, len(changes)] float32: the scalar of each object when only that object is changed, at the same anchor.

        For `changes` see `draw_planted`, for `target` see `Explainer`.
        """
        selected = self._selected(found)
        rows = []
        for i, owner in enumerate(found.owners):
            images = [draw_planted(found.seed, self.variant, change, only=owner).image for change in changes]
            objects = found.objects.select(torch.tensor([i], device=found.positions.device))
            rows.append(self._score(images, objects, target, selected))
        return torch.stack(rows) if rows else torch.empty((0, len(changes)), device=found.positions.device)

    @torch.no_grad()
    def _selected(self, found: Found) -> list[Tensor]:
        """The queries that the model selects in the unchanged image, if it selects any: [1, Q] of each selection."""
        recorded = RecordTopk()
        if not self._adapter.stable:
            with recorded:
                self._adapter.forward(self._adapter.prepare(found.scene.image)[0][None], max_det=300)
        return recorded.indices

    @torch.no_grad()
    def _score(self, images: list[np.ndarray], objects: Objects, target: str, selected: list[Tensor]) -> Tensor:
        """[len(images)] scalars of a single object in each image, read by the queries `selected`."""
        scalars = []
        for start in range(0, len(images), BATCH):
            batch = torch.stack([self._adapter.prepare(image)[0] for image in images[start : start + BATCH]])
            with ReplayTopk([indices.expand(len(batch), -1) for indices in selected]) if selected else nullcontext():
                outputs = self._adapter.forward(batch, max_det=300)
            scalars.append(self._adapter.score(outputs, [objects] * len(batch), target).float())
        return torch.cat(scalars)

    def decided(self, found: Found) -> Tensor:
        """[n] bool: whether the presence of the cause decides the class of the object.

        The other class must win at the object's anchor when the cause is swapped, and the margin over it must fall by
        half or more when the cause is removed. A model may use one class as the default for objects without a cause;
        the evidence for that class is then the absence of the other cause, which no pixel shows.
        """
        margins = self.scores(found, [None, "swap", f"no {CAUSES[self.variant]}"], "margin")
        return (margins[:, 1] < 0) & (margins[:, 2] < margins[:, 0] / 2)

    def drops(self, found: Found, target: str = "class") -> Tensor:
        """[n, P]: the fall of each object's scalar without each part of `parts`, in that order.

        The scene is drawn again without the part, so the pixels behind it show: nothing is painted over.
        """
        scores = self.scores(found, [None, *(f"no {part}" for part in self.parts)], target)
        return scores[:, :1] - scores[:, 1:]

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts of the variant's scenes: those of `PARTS`, and "background"."""
        return (*PARTS[self.variant], "background")


def part_masks(found: Found) -> Tensor:
    """[n, P, H, W] bool: the pixels of each object's parts, in the order of `Witness.parts`; they cover the image.

    Other objects and their parts count as background.
    """
    parts = found.scene.parts
    masks = torch.from_numpy(np.stack([parts[name][list(found.owners)] for name in parts], axis=1))
    return torch.cat([masks, ~masks.any(dim=1, keepdim=True)], dim=1)
