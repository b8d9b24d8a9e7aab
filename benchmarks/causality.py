"""Proof that the cause of a planted scene is a cause: what the model does when it is swapped, moved or left alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from detcam.errors import InputError
from detcam.evaluate.planted.interventions import Witness
from detcam.scenes.planted import CAUSES


@dataclass(frozen=True)
class Causality:
    """Results of the interventions over all objects.

    Attributes:
        objects: objects that the model detects with the right class.
        recall: their share of all objects in the scenes.
        decided: share of them whose class the presence of the cause decides, see `Witness.decided`.
        flipped: share whose class flips when the cause is that of the other class.
        kept: share that keep their class when the cause moves but stays that of their class.
        effect: median fall of the class logit when the cause is swapped.
        removal: median over objects of (margin over the other class without the cause) / (margin with it): 0 if
            the model then has no preference.
        distractor: median over objects of |change of the logit with another distractor| / fall when swapped.
        no_distractor: the same without the distractor.
        mark: in "context", the same for the faint mark of the other class on the body; else None.
    """

    objects: int
    recall: float
    decided: float
    flipped: float
    kept: float
    effect: float
    removal: float
    distractor: float
    no_distractor: float
    mark: float | None


def causality(witness: Witness, seeds: Iterable[int]) -> Causality:
    """Swap and move the cause, change and remove the distractor, and read each object's logit and class.

    Raises:
        InputError: if the model detects none of the objects.
    """
    changes = [None, "swap", "move", "distractor", "no distractor"]
    changes += ["swap mark"] if witness.variant == "context" else []
    logits, margins, decided, total = [], [], [], 0
    for seed in seeds:
        detected = witness.find(seed)
        total += len(detected.scene.boxes)
        logits.append(witness.scores(detected, changes))
        margins.append(witness.scores(detected, ["swap", "move", None, f"no {CAUSES[witness.variant]}"], "margin"))
        decided.append(witness.decided(detected))
    logit, margin = torch.cat(logits), torch.cat(margins)
    fall = logit[:, 0] - logit[:, 1]
    if not len(logit):
        raise InputError(
            f"the model detects no object of the {witness.variant!r} scenes: give one that was trained on them"
        )
    share = ((logit - logit[:, :1]).abs() / fall.abs().clamp(min=1e-6)[:, None]).quantile(0.5, dim=0).tolist()
    return Causality(
        objects=len(logit),
        recall=len(logit) / max(total, 1),
        decided=float(torch.cat(decided).float().mean()),
        flipped=float((margin[:, 0] < 0).float().mean()),
        kept=float((margin[:, 1] > 0).float().mean()),
        effect=float(fall.median()),
        removal=float((margin[:, 3] / margin[:, 2]).median()),
        distractor=share[3],
        no_distractor=share[4],
        mark=share[5] if len(share) > 5 else None,
    )
