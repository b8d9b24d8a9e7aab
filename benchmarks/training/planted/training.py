"""Training of a planted scene's model of any family: the losses that make it go by the cause, and the schedule."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate, smooth_l1_loss

from benchmarks.training.common import SEED
from benchmarks.training.planted.scenes import Batch, Data, batch_of
from detcam.scenes.planted import VARIANTS
from detcam.scenes.planted_parts import SYMBOLS

PAIR_WEIGHT = 0.3  # of the squared change of a logit, beside the family's own loss
NEUTRAL_WEIGHT = 0.3  # of the distance between the logits of both classes
GRADIENT_NORM = 0.625  # at most
CALIBRATIONS = 40  # batches
STARTS_FROM = {"beacon": "mark"}  # a badge is learnt where it is easy to find, before one must look for it elsewhere


@dataclass(frozen=True)
class Losses:
    """What a family makes of a batch.

    Attributes:
        own: the loss that the family is trained with, for an image.
        logits: [P, K] class logits at places in the objects of all images; the last two columns are the two classes.
            Images of the same scene have the same places in the same order.
        image: [P] int64 the image of each place.
        features: [images, C, h, w] a map of the model that is taught what to show; None: it is not.
        shown: [images, SIZE, SIZE] int64, what it is taught to show: 1 + the class, 0 elsewhere.
    """

    own: Tensor
    logits: Tensor
    image: Tensor
    features: Tensor | None = None
    shown: Tensor | None = None


@dataclass(frozen=True)
class Start:
    """Weights that a model starts from; those without a value are random.

    Attributes:
        name: where the weights come from, in words.
        weights: by name.
    """

    name: str
    weights: dict[str, Tensor]


class Family(ABC):
    """A model family of the planted scenes."""

    name: ClassVar[str]
    library: ClassVar[str]  # that its models run on
    steps: ClassVar[dict[str, int]]  # of training, for each variant of the scenes
    rate: ClassVar[float]  # of learning, at its highest; half of it for a model that starts from another
    without: ClassVar[int] = 4  # images of a batch that show no causes
    channels: ClassVar[int] = 1  # of `Losses.features`

    @abstractmethod
    def build(self) -> nn.Module:
        """A model with random weights."""

    def start(self, variant: str, work: Path) -> Start:
        """The weights to start from, of checkpoints in the folder `work`."""
        if variant not in STARTS_FROM:
            return Start("random weights", {})
        first = STARTS_FROM[variant]
        return Start(first, torch.load(work / f"{first}_{self.name}.pt", weights_only=True))

    @abstractmethod
    def losses(self, model: Any, batch: Batch) -> Losses:
        """The losses of a model in training mode."""

    @abstractmethod
    def save(self, name: str, weights: dict[str, Tensor]) -> dict[str, Any]:
        """Write the weights to where `detcam.zoo` finds them, and return their description."""


def train(family: Family, variant: str, data: Data, start: Start) -> nn.Module:
    """Train a model; return the running average of its weights."""
    torch.manual_seed(SEED)
    rng = np.random.default_rng(SEED)
    began, steps = time.perf_counter(), family.steps[variant]
    model = family.build()
    model.load_state_dict(start.weights, strict=False)
    model.to(memory_format=torch.channels_last)
    reader = nn.Conv2d(family.channels, 1 + len(SYMBOLS), 1)  # of the features, in training only
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(1 - 8 / steps), use_buffers=True
    )
    rate = family.rate / 2 if start.name in VARIANTS else family.rate
    optimizer = torch.optim.AdamW([*model.parameters(), *reader.parameters()], lr=rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.08)
    model.train()
    for step in range(steps):
        batch = batch_of(data, family.without, rng)
        losses = family.losses(model, batch)
        pair, neutral = distractor_loss(losses, batch), neutral_loss(losses, batch)
        hint = hint_loss(losses, reader)
        ramp = min(1.0, step / (0.3 * steps))
        optimizer.zero_grad(set_to_none=True)
        (losses.own + hint + ramp * (PAIR_WEIGHT * pair + NEUTRAL_WEIGHT * neutral)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_NORM)
        optimizer.step()
        schedule.step()
        average.update_parameters(model)
        if step % 50 == 0 or step == steps - 1:
            parts = {"own": losses.own, "pair": pair, "neutral": neutral, "hint": hint}
            figures = " ".join(f"{name} {float(value.detach()):.4f}" for name, value in parts.items())
            print(f"{family.name} {variant} step {step} {figures} {time.perf_counter() - began:.0f} s", flush=True)
    return calibrated(family, average.module, data, rng)


def distractor_loss(losses: Losses, batch: Batch) -> Tensor:
    """Mean over places of the squared change of the logits, between two versions of a scene with other distractors."""
    first = losses.logits[losses.image < batch.scenes]
    second = losses.logits[(losses.image >= batch.scenes) & (losses.image < 2 * batch.scenes)]
    return (first - second).square().sum(dim=1).mean()


def neutral_loss(losses: Losses, batch: Batch) -> Tensor:
    """Mean over places without their cause of the distance between the logits of both classes; 0 without such places.

    Else a model may learn the cause of one class only and take the other for granted.
    """
    logits = losses.logits[losses.image >= 2 * batch.scenes]
    return smooth_l1_loss(logits[:, -2], logits[:, -1]) if len(logits) else losses.logits.new_zeros(())


def hint_loss(losses: Losses, reader: nn.Module) -> Tensor:
    """How badly the features show what they are to show; 0 without features.

    Finding a cause and using it where the object lies are learnt together slowly, and one after the other quickly.
    """
    if losses.features is None or losses.shown is None:
        return losses.own.new_zeros(())
    shown = interpolate(losses.shown[:, None].float(), losses.features.shape[2:], mode="nearest-exact")[:, 0].long()
    return cross_entropy(reader(losses.features), shown, torch.tensor([0.1, 1.0, 1.0]))


def packed(weights: dict[str, Tensor]) -> bytes:
    """A file with all weights in half precision."""
    small = {name: value.half() if value.is_floating_point() else value for name, value in weights.items()}
    return save({name: value.contiguous() for name, value in small.items()})


@torch.no_grad()
def calibrated(family: Family, model: nn.Module, data: Data, rng: np.random.Generator) -> nn.Module:
    """Set batch norm's statistics to those that the averaged weights give: their own average lags behind."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momentum = norms[0].momentum
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over all batches that follow
    model.train()
    for _ in range(CALIBRATIONS):
        family.losses(model, batch_of(data, family.without, rng))
    for norm in norms:
        norm.momentum = momentum
    return model.eval()
