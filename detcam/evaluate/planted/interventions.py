"""What a model does when the cause of a planted scene is changed: the proof that the cause is one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detcam.boxes import box_iou
from detcam.errors import InputError
from detcam.explainer import Explainer
from detcam.models.load import load_model
from detcam.scenes.planted import CAUSES, PARTS, PlantedScene, draw_planted
from detcam.types import Objects

CONF = 0.25  # the least score of an object that counts
IOU = 0.5  # with the box of the object that it is meant to be
BATCH = 32  # pictures in a forward


@dataclass(frozen=True)
class Found:
    """The objects of a planted scene that the model found and took for what they are.

    Attributes:
        seed: of the scene.
        scene: as it was drawn, unchanged.
        image_objects: all that the model found, in the order of an explanation of the picture.
        positions: [n] int64, those that count, among `image_objects`.
        owners: n numbers, which object of the scene each is.
    """

    seed: int
    scene: PlantedScene
    image_objects: Objects
    positions: Tensor
    owners: tuple[int, ...]

    @property
    def objects(self) -> Objects:
        """The n objects that count."""
        return self.image_objects.select(self.positions)

    def keep(self, chosen: Tensor) -> Found:
        """Only those of the n objects for which `chosen` [n] bool is set."""
        owners = tuple(owner for owner, kept in zip(self.owners, chosen.tolist(), strict=True) if kept)
        return Found(self.seed, self.scene, self.image_objects, self.positions[chosen], owners)


class Witness:
    """Asks a model what it makes of a planted scene, and of changed versions of it.

    Args:
        variant: one of `detcam.scenes.planted.VARIANTS`.
        model: see `Explainer`; None: the model that was trained on the variant and comes with detcam.
        device: see `Explainer`.
    """

    def __init__(self, variant: str, model: Any = None, device: str | torch.device | None = None) -> None:
        self.variant = variant
        self.model = load_model(f"planted_{variant}") if model is None else model  # loaded once, for many explainers
        self.explainer = Explainer(self.model, "noise", conf=CONF, device=device)
        self._adapter = self.explainer.adapter

    def find(self, seed: int) -> Found:
        """The objects of the scene that the model takes for what they are: same class, IoU of the boxes over `IOU`."""
        scene = draw_planted(seed, self.variant)
        explained = self.explainer(scene.image)
        boxes = torch.from_numpy(scene.boxes).to(explained.boxes)
        fit = box_iou(boxes, explained.boxes)
        fit = fit * (torch.from_numpy(scene.class_ids).to(fit.device)[:, None] == explained.class_ids)
        pairs = [(int(row.argmax()), owner) for owner, row in enumerate(fit) if row.numel() and float(row.max()) > IOU]
        positions = torch.tensor([position for position, _ in pairs], dtype=torch.int64, device=fit.device)
        return Found(seed, scene, explained.objects, positions, tuple(owner for _, owner in pairs))

    def scores(self, found: Found, changes: Sequence[str | None], target: str = "class") -> Tensor:
        """[n, len(changes)] float32: each object's scalar where only that object was changed, read at the same anchor.

        Args:
            found: the objects.
            changes: see `draw_planted`.
            target: a scalar of the model, see `Explainer`.
        """
        rows = []
        for i, owner in enumerate(found.owners):
            images = [draw_planted(found.seed, self.variant, change, only=owner).image for change in changes]
            rows.append(
                self._ask(images, found.objects.select(torch.tensor([i], device=found.positions.device)), target)
            )
        return torch.stack(rows) if rows else torch.empty((0, len(changes)), device=found.positions.device)

    @torch.no_grad()
    def _ask(self, images: list[np.ndarray], one: Objects, target: str) -> Tensor:
        answers = []
        for start in range(0, len(images), BATCH):
            batch = torch.stack([self._adapter.prepare(image)[0] for image in images[start : start + BATCH]])
            outputs = self._adapter.forward(batch, max_det=300)
            answers.append(self._adapter.score(outputs, [one] * len(batch), target).float())
        return torch.cat(answers)

    def decided(self, found: Found) -> Tensor:
        """[n] bool: whether the cause decides the object's class by being there.

        The other class wins at the object's anchor once the cause says so, and the lead over it falls by half or more
        once the cause is gone. A model may take objects without a cause for one of the classes; for objects of that
        class what it sees is that the other cause is absent, which no pixel can be blamed for.
        """
        margins = self.scores(found, [None, "swap", f"no {CAUSES[self.variant]}"], "margin")
        return (margins[:, 1] < 0) & (margins[:, 2] < margins[:, 0] / 2)

    def drops(self, found: Found, target: str = "class") -> Tensor:
        """[n, P]: how far each object's scalar falls without each part of `parts`, in that order.

        The scene is drawn again without the part, so what lies behind it shows: nothing is painted over.
        """
        scores = self.scores(found, [None, *(f"no {part}" for part in self.parts)], target)
        return scores[:, :1] - scores[:, 1:]

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts that a scene of the variant is made of: those of `PARTS`, and "background"."""
        return (*PARTS[self.variant], "background")


def part_masks(found: Found) -> Tensor:
    """[n, P, H, W] bool: where each object's parts are, in the order of `Witness.parts`; they cover the picture.

    Other objects, and what belongs to them, count as background.
    """
    parts = found.scene.parts
    own = torch.from_numpy(np.stack([parts[name][list(found.owners)] for name in parts], axis=1))
    return torch.cat([own, ~own.any(dim=1, keepdim=True)], dim=1)


@dataclass(frozen=True)
class Causality:
    """What interventions showed, over all objects.

    Attributes:
        objects: how many the model found in the right class.
        recall: their share of all objects in the scenes.
        flipped: share whose class flips when the cause says the other.
        kept: share that keep their class when the cause is moved but says the same.
        effect: median fall of the class logit when the cause says the other.
        distractor: median over objects of |change of the logit with another distractor| / fall when swapped.
        no_distractor: the same without the distractor.
        mark: in "context", the same for the faint mark on the body saying the other class; else None.
    """

    objects: int
    recall: float
    flipped: float
    kept: float
    effect: float
    distractor: float
    no_distractor: float
    mark: float | None


def causality(witness: Witness, seeds: Iterable[int]) -> Causality:
    """Swap and move the cause, change and remove the distractor, and look at each object's logit and class.

    Raises:
        InputError: if the model finds none of the objects.
    """
    changes = [None, "swap", "move", "distractor", "no distractor"]
    changes += ["swap mark"] if witness.variant == "context" else []
    logits, margins, total = [], [], 0
    for seed in seeds:
        found = witness.find(seed)
        total += len(found.scene.boxes)
        logits.append(witness.scores(found, changes))
        margins.append(witness.scores(found, ["swap", "move"], "margin"))
    logit, margin = torch.cat(logits), torch.cat(margins)
    fall = logit[:, 0] - logit[:, 1]
    if not len(logit):
        raise InputError(
            f"the model found no object of the {witness.variant!r} scenes: give one that was trained on them"
        )
    share = ((logit - logit[:, :1]).abs() / fall.abs().clamp(min=1e-6)[:, None]).quantile(0.5, dim=0).tolist()
    return Causality(
        objects=len(logit),
        recall=len(logit) / max(total, 1),
        flipped=float((margin[:, 0] < 0).float().mean()),
        kept=float((margin[:, 1] > 0).float().mean()),
        effect=float(fall.median()),
        distractor=share[3],
        no_distractor=share[4],
        mark=share[5] if len(share) > 5 else None,
    )
