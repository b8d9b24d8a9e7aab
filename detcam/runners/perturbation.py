"""Perturbation runner: one sweep of forwards per image, shared by all its objects."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from detcam.adapters import Adapter, LayerPlan, Target
from detcam.engine import Captured
from detcam.engine.sweeps import Probe
from detcam.errors import TargetError
from detcam.methods import SweepMethod
from detcam.methods.similarity import own_distributions, similarity
from detcam.runners.base import Maps, Request, add_maps
from detcam.types import Objects


def perturbation_target(method: SweepMethod, target: Target, adapter: Adapter) -> Target:
    """What a method's forwards are asked for, given the scalar that the user chose.

    Where the model chooses its queries from the picture, the kept one is another in a changed picture; so what is
    asked for is how like the object the most similar query is.

    Raises:
        TargetError: for a scalar that only the kept query has, where it cannot be found again.
    """
    if method.scalar == "similarity":
        return "similarity"
    if not adapter.stable and isinstance(target, str) and "forwards" in method.reads:
        if target not in ("class", "prob"):
            raise TargetError(
                f"target {target!r} with method {method.name!r}: {adapter.family} models choose other queries for a "
                "changed picture: use target 'class', or a method that reads gradients, e.g. 'odam'"
            )
        return "similarity"
    return "prob" if (method.scalar, target) == ("prob", "class") and "prob" in adapter.available else target


class PerturbationRunner:
    """Maps of a method that sweeps, for all objects of a batch; each image has a sweep of its own.

    Args:
        method: how maps are made of forwards.
        plan: the layers, for methods that read activations.
        target: what `perturbation_target` gave.
        score: from raw outputs and the objects of each image to scalars [sum N, K].
        request: the model, and the memory and progress of its forwards.
    """

    def __init__(
        self,
        method: SweepMethod,
        plan: LayerPlan,
        target: Target,
        score: Callable[[Any, list[Objects]], Tensor],
        request: Request,
    ) -> None:
        self._reads_layers = "activations" in method.reads
        self.plan = plan if self._reads_layers else LayerPlan((), plan.cut_all, plan.fuse)
        self.cut, self.target, self.differentiable = plan.cut_all, target, False
        self._adapter, self._max_det = request.adapter, request.model_run.max_det
        self._method, self._score = method, score
        self._memory, self._progress = request.memory, request.progress

    def watching(self) -> AbstractContextManager[Any]:
        """See `Runner.watching`."""
        return nullcontext()

    @torch.no_grad()
    def maps(self, pixels: Tensor, outputs: Any, objects: list[Objects], captured: list[Captured]) -> Maps:
        """The maps of the objects of pictures [B, 3, H, W], whose raw outputs and captured tensors are given."""
        size = (pixels.shape[2], pixels.shape[3])
        maps: list[Tensor] = []
        for image, found in enumerate(objects):
            if not len(found):
                continue
            probe = Probe(
                module=self._adapter.module,
                forward=lambda pictures: self._adapter.forward(pictures, self._max_det),
                score=self._scorer(outputs, image, found),
                picture=pixels[image],
                objects=found,
                layers={c.name: c.tensor[image].float() for c in captured} if self._reads_layers else {},
                cut_all=self.plan.cut_all,
                grids=lambda tokens: self._adapter.grids(tokens, size),
                memory=self._memory,
                progress=self._progress,
            )
            maps += self._picture(probe)
        return Maps(maps, [False] * len(maps))

    def _scorer(self, outputs: Any, image: int, found: Objects) -> Callable[[Any, int], Tensor]:
        """From raw outputs of b changed versions of a picture to scores [b, N * K] of its objects."""
        if self.target != "similarity":
            return lambda changed, count: self._score(changed, [found] * count).reshape(count, -1)
        boxes, probabilities, _ = self._adapter.candidates(outputs)
        own = own_distributions(found.network_boxes, found.class_ids, boxes[image], probabilities[image])

        def similarities(changed: Any, count: int) -> Tensor:
            rows = zip(*self._adapter.candidates(changed), strict=True)
            return torch.stack([similarity(found.network_boxes, own, *row) for row in rows])

        return similarities

    def _picture(self, probe: Probe) -> list[Tensor]:
        """One map [h, w] for each object of a picture."""
        n = len(probe.objects)
        if not self._reads_layers:
            return list(_strongest(self._method.sweep(probe, ""), n))
        if self.plan.fuse == "sum":
            return list(_strongest(add_maps([self._method.sweep(probe, layer) for layer in probe.layers]), n))
        levels = probe.objects.level.tolist()
        swept = {i: _strongest(self._method.sweep(probe, self.plan.names[i]), n) for i in sorted(set(levels))}
        return [swept[level][i] for i, level in enumerate(levels)]


def _strongest(maps: Tensor, n: int) -> Tensor:
    """[n, h, w] from [n * K, h, w]: the element-wise maximum over each object's K scalars."""
    return maps.unflatten(0, (n, -1)).amax(dim=1)
