"""Perturbation runner: one sweep of forwards per image, shared by all its objects."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from detcam.adapters import Adapter, LayerPlan, Target
from detcam.engine import Captured
from detcam.engine.sweeps import Probe
from detcam.errors import LayerError, TargetError
from detcam.methods import SweepMethod
from detcam.methods.similarity import class_distributions, similarity
from detcam.runners.base import Maps, Request, Runner, add_maps, layout_of, scalars_of
from detcam.types import Objects


def perturbation_target(method: SweepMethod, target: Target, adapter: Adapter) -> Target:
    """The scalar that each forward of a sweep returns, given the user's target.

    Where a model chooses its queries from the image, the kept query is a different one in a changed image: the scalar
    is then the similarity of the most similar query to the object.

    Raises:
        TargetError: for a scalar of the kept query alone, where that query cannot be found again.
    """
    listed = adapter.lists_candidates
    if method.scalar == "similarity" or (method.scalar == "match" and listed):
        return "similarity"
    if not adapter.stable and isinstance(target, str) and "forwards" in method.reads:
        if target not in ("class", "prob"):
            raise TargetError(
                f"target {target!r} with method {method.name!r}: {adapter.family} models choose other queries for a "
                "changed image: use target 'class', or a method that reads gradients, e.g. 'odam'"
            )
        return "similarity"
    likely = method.scalar in ("prob", "match") and target == "class" and "prob" in adapter.available
    return "prob" if likely else target


class PerturbationRunner:
    """Maps of a method that sweeps; each image of a batch has its own sweep.

    Args:
        method: how maps are made of forwards.
        plan: the layers, for methods that read activations.
        request: the model, the target, and the memory and progress of the forwards.
        start: makes the maps that the sweep starts from, after a forward of its own.
    """

    def __init__(self, method: SweepMethod, plan: LayerPlan, request: Request, start: Runner | None = None) -> None:
        self._reads_layers, self._start = "activations" in method.reads, start
        self.plan = plan if self._reads_layers else LayerPlan((), plan.cut_all, plan.fuse)
        self.cut, self.differentiable = plan.cut_all, False
        self.target = perturbation_target(method, request.target, request.adapter)
        self._method, self._request, self._adapter = method, request, request.adapter

    def watching(self) -> AbstractContextManager[Any]:
        """See `Runner.watching`."""
        return nullcontext()

    def maps(self, pixels: Tensor, outputs: Any, objects: list[Objects], captured: list[Captured]) -> Maps:
        """See `Runner.maps`."""
        starts = self._starts(pixels, objects)
        with torch.no_grad():
            return self._swept(pixels, outputs, objects, captured, starts)

    def _starts(self, pixels: Tensor, objects: list[Objects]) -> list[Tensor]:
        """The maps that the sweep starts from, of all objects; none for a model without gradients at the layers."""
        if self._start is None or not any(map(len, objects)):
            return []
        try:
            outputs, captured = self._request.model_run(pixels, self._start)
            return self._start.maps(pixels, outputs, objects, captured).maps
        except (LayerError, TargetError):
            return []

    def _swept(
        self, pixels: Tensor, outputs: Any, objects: list[Objects], captured: list[Captured], starts: list[Tensor]
    ) -> Maps:
        maps: list[Tensor] = []
        for image, of_image in enumerate(objects):
            if not len(of_image):
                continue
            probe = Probe(
                module=self._adapter.module,
                forward=self._request.model_run.forward,
                score=self._scorer(outputs, image, of_image),
                image=pixels[image],
                objects=of_image,
                layers={c.name: c.tensor[image].float() for c in captured} if self._reads_layers else {},
                cut_all=self.plan.cut_all,
                layout=layout_of(self._adapter, pixels),
                memory=self._request.memory,
                progress=self._request.progress,
                starts=starts[len(maps) : len(maps) + len(of_image)],
            )
            maps += self._image_maps(probe)
        return Maps(maps, [False] * len(maps))

    def _scorer(self, outputs: Any, image: int, objects: Objects) -> Callable[[Any, int], Tensor]:
        """A function from the raw outputs for b versions of an image to scores [b, N * K] of its objects."""
        if self.target != "similarity":
            score = partial(scalars_of, self._adapter, self.target)
            return lambda changed, count: score(changed, [objects] * count).reshape(count, -1)
        boxes, probabilities, _ = (part[image] for part in self._adapter.candidates(outputs))
        distributions = class_distributions(objects.network_boxes, objects.class_ids, boxes, probabilities)

        def similarities(changed: Any, count: int) -> Tensor:
            rows = zip(*self._adapter.candidates(changed), strict=True)
            return torch.stack([similarity(objects.network_boxes, distributions, *row) for row in rows])

        return similarities

    def _image_maps(self, probe: Probe) -> list[Tensor]:
        """One map [h, w] for each object of an image."""
        n = len(probe.objects)
        if not self._reads_layers:
            return list(_strongest(self._method.sweep(probe, ""), n))
        if self.plan.fuse == "sum":
            return list(_strongest(add_maps([self._method.sweep(probe, layer) for layer in probe.layers]), n))
        levels = probe.objects.level.tolist()
        per_level = {i: _strongest(self._method.sweep(probe, self.plan.names[i]), n) for i in sorted(set(levels))}
        return [per_level[level][i] for i, level in enumerate(levels)]


def _strongest(maps: Tensor, n: int) -> Tensor:
    """[n, h, w] from [n * K, h, w]: the element-wise maximum over each object's K scalars."""
    return maps.unflatten(0, (n, -1)).amax(dim=1)
