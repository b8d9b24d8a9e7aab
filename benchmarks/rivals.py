"""Contenders of `benchmarks/evaluate.py` that detcam does not ship: a peer, experiments, and shuffled models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from detcam import Explainer, Explanation
from detcam.engine import Capture
from detcam.engine.randomised import randomised
from detcam.evaluate.contenders import Contender
from detcam.methods.combination import Combination, Part, blurred
from detcam.methods.gradient import ODAM
from detcam.runners.twin import frozen_topk, held

TAIL = 0.05  # heat of a tail, as a share of the sharp map's
BLUR = 1.5  # deviation in cells of the object's level, as METHODS["fused"] has it


class LibraryLayerCAM:
    """LayerCAM of Ultralytics: ReLU(sum_k ReLU(g_k) A_k) at every head input, each over its maximum; the largest value.

    The same as `predict(visualize=True)`, but with a map per object.
    """

    def __init__(self, model: Any, **options: Any) -> None:
        self._base = Explainer(model, "box", **options)
        self._names = self._base.adapter.layers("level").names

    def __call__(self, image: Any) -> Explanation:
        explanation = self._base(image)
        adapter = self._base.adapter
        capture = Capture({name: adapter.module.get_submodule(name) for name in self._names}, cut_all=False)
        with torch.enable_grad(), capture:
            outputs = adapter.forward(adapter.prepare(explanation.image)[0][None], self._base.max_det)
            scores = adapter.score(outputs, [explanation.objects], "class")
        tensors = [layer.tensor for layer in capture.captured]
        maps = [self._map(score, tensors, explanation.geometry.network) for score in scores]
        return replace(explanation, maps=maps)

    def _map(self, score: Tensor, tensors: list[Tensor], size: tuple[int, int]) -> Tensor:
        levels = []
        for acts, grads in zip(tensors, torch.autograd.grad(score, tensors, retain_graph=True), strict=True):
            level = (grads.clamp(min=0) * acts.detach()).sum(dim=1, keepdim=True).clamp(min=0)
            level = interpolate(level, size, mode="bilinear")[0, 0]
            levels.append(level / level.amax().clamp(min=1e-7))
        return torch.stack(levels).amax(dim=0)


class BlurredLevel:
    """ODAM at the level with a blur: measures the effect of the blur in a fused map."""

    def __init__(self, model: Any, **options: Any) -> None:
        self._level = Explainer(model, "odam", "level", **options)

    def __call__(self, image: Any) -> Explanation:
        level = self._level(image)
        return replace(level, maps=[blurred(heat.clamp(min=0)[None], BLUR)[0] for heat in level.maps])


class Rectified(ODAM):
    """ODAM with a ReLU on each layer's map before the sum over layers: no layer cancels another."""

    name = "rectified"

    def maps(self, acts: Tensor, grads: Tensor | None) -> Tensor:
        """See `Method.maps`."""
        return super().maps(acts, grads).clamp(min=0)


class Tailed(Combination):
    """ODAM at the level with a tail: a twentieth as much heat, from a broad map.

    Most cells of a sharp map have no heat, and deletion and insertion take them in arbitrary order. Measures how much
    of a curve depends on that order.

    Args:
        broad: the map of the tail, which is blurred; cells with negative values come last.
        deviations: standard deviations of the Gaussian blurs, in cells; their peaks have the same weight.
    """

    def __init__(self, broad: Part, deviations: tuple[float, ...]) -> None:
        super().__init__([Part(ODAM(), "level"), broad], "mean")
        self._deviations = deviations

    def join(self, maps: list[Tensor]) -> Tensor:
        """See `Combination.join`."""
        size = max((part.shape[1:] for part in maps), key=lambda shape: shape[0] * shape[1])
        sharp, *tails = (
            part if part.shape[1:] == size else interpolate(part[:, None], size, mode="bilinear")[:, 0]
            for part in (maps[0].clamp(min=0), *(blurred(maps[1], deviation) for deviation in self._deviations))
        )
        peaks = [part / part.abs().amax(dim=(1, 2), keepdim=True).clamp(min=1e-30) for part in tails]
        tail = torch.stack(peaks).sum(dim=0)
        heat = (sharp.sum(dim=(1, 2)) / tail.clamp(min=0).sum(dim=(1, 2)).clamp(min=1e-30))[:, None, None]
        return sharp + TAIL * heat * tail


class Shuffled:
    """The maps of a model with shuffled weights for the objects of the real model: the value of the shape alone."""

    def __init__(self, explainer: Explainer) -> None:
        self._explainer = explainer

    def __call__(self, image: Any) -> Explanation:
        plain, adapter = self._explainer(image), self._explainer.adapter

        def again() -> Explanation:
            with held(adapter, plain.objects):
                return self._explainer(image)

        same_queries = frozen_topk(adapter, again)
        with randomised(adapter.module, 1.0, 1), same_queries():
            changed = again()
        return replace(plain, maps=changed.maps)


def rivals(model: Any, ours: Sequence[Contender], shuffled: Sequence[str], **options: Any) -> list[Contender]:
    """The experiments, LayerCAM of Ultralytics for its detectors, and contenders with shuffled weights.

    Args:
        model: see `Explainer`.
        ours: the methods that take part.
        shuffled: names of methods and experiments to repeat with shuffled weights.
        options: of `Explainer`.
    """
    rectified = Explainer(model, Rectified(), "evidence", **options)
    narrowed = Combination([Part(Rectified(), "evidence"), Part(ODAM(), "level", BLUR)])
    experiments = [
        Contender("level blurred", BlurredLevel(model, **options)),
        Contender("rectified @ evidence", rectified),
        Contender("rectified x level", Explainer(model, narrowed, **options)),
        Contender("level + 5 % around", Explainer(model, Tailed(Part(Rectified(), "level"), (1.5, 4.0)), **options)),
        Contender("level + 5 % evidence", Explainer(model, Tailed(Part(ODAM(), "evidence"), (2.0, 6.0)), **options)),
    ]
    if type(rectified.adapter).__module__.endswith(".yolo"):
        experiments.append(Contender("ultralytics layercam", LibraryLayerCAM(model, **options)))
    twins = [
        Contender(f"shuffled {c.name}", Shuffled(c.explain))
        for c in (*ours, *experiments)
        if c.name in shuffled and isinstance(c.explain, Explainer)
    ]
    return [*experiments, *twins]
