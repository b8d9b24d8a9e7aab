"""Finer-CAM: the contrast between the object's class and the classes with the nearest logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from detcam.errors import TargetError
from detcam.methods.base import parameter
from detcam.methods.gradient import GradCAM
from detcam.types import Objects

if TYPE_CHECKING:
    from detcam.adapters import Adapter, Target

Score = Callable[[Any, list[Objects]], Tensor]


@dataclass(frozen=True)
class FinerCAM(GradCAM):
    """Finer-CAM: Grad-CAM of the object's logit less those of the most similar classes.

    Zhang et al. 2025, "Finer-CAM: Spotting the Difference Reveals Finer Details for Visual Explanation". The similar
    classes are the `classes` whose logits at the object's anchor are nearest to the object's logit; the differences to
    these logits times `strength` are averaged with the softmax over all classes as weights, as in
    pytorch-grad-cam. With one class and strength 1 it is Grad-CAM with target "margin" wherever the nearest logit is
    the best other logit.
    """

    classes: int = parameter(3, 1, 10_000)
    strength: float = parameter(1.0, 0.0, 100.0)

    name = "finercam"
    formula = "Grad-CAM of sum_c p_c (S - strength S_c) / sum_c p_c, c the classes with the nearest logits"
    source = "Zhang et al. 2025, CVPR, arXiv:2501.11309, as in pytorch-grad-cam"

    def target(self, adapter: Adapter, target: Target) -> Target:
        """The contrast between classes; see `Method.target`."""
        if target != "class":
            raise TargetError(f"method 'finercam' contrasts class scores: target 'class', got {target!r}")

        def finer(outputs: Any, objects: list[Objects]) -> Tensor:
            count = adapter.candidates(outputs)[1].shape[2]
            score = partial(adapter.score, target="class")
            return self.difference(score, count)(outputs, objects)

        return finer

    def difference(self, score: Score, count: int) -> Score:
        """The scalar: from raw outputs and the objects of each image to [N].

        Args:
            score: from raw outputs and objects to their class logits [N].
            count: the number of classes.
        """

        def finer(outputs: Any, objects: list[Objects]) -> Tensor:
            others = [
                [replace(found, class_ids=torch.full_like(found.class_ids, number)) for found in objects]
                for number in range(count)
            ]
            logits = torch.stack([score(outputs, found) for found in others], dim=1)  # [N, classes]
            classes = torch.cat([found.class_ids for found in objects])[:, None]
            logit = logits.gather(1, classes)
            apart = (logits - logit).detach().abs().scatter(1, classes, -1.0)
            near = apart.argsort(dim=1, stable=True)[:, 1 : 1 + self.classes]  # the first is the class itself
            if not near.shape[1]:
                return logit[:, 0]
            weights = logits.softmax(dim=1).gather(1, near)
            return (weights * (logit - self.strength * logits.gather(1, near))).sum(1) / (weights.sum(1) + 1e-9)

        return finer
