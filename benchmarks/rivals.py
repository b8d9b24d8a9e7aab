"""Contenders that are no method of detcam's own, and tries at a better default, for `benchmarks/evaluate.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from detcam import Explainer, Explanation
from detcam.engine import Capture
from detcam.evaluate.contenders import Contender
from detcam.evaluate.metrics.frozen_topk import frozen_topk
from detcam.evaluate.metrics.stability import held, randomised
from detcam.methods.combination import Combination, Part, blurred
from detcam.methods.gradient import ODAM

TAIL = 0.05  # heat of a tail, as a share of the sharp map's
BLUR = 1.5  # deviation in cells of the object's level, as METHODS["fused"] has it


class LibraryLayerCAM:
    """Ultralytics' own: ReLU(sum_k ReLU(g_k) A_k) at every head input, each over its maximum, the largest of them.

    As its `predict(visualize=True)` makes it, but one map per object.
    """

    def __init__(self, model: Any, **options: Any) -> None:
        self._base = Explainer(model, "box", **options)
        self._names = self._base.adapter.layers("level").names

    def __call__(self, image: Any) -> Explanation:
        found = self._base(image)
        adapter = self._base.adapter
        capture = Capture({name: adapter.module.get_submodule(name) for name in self._names}, cut_all=False)
        with torch.enable_grad(), capture:
            outputs = adapter.forward(adapter.prepare(found.image)[0][None], self._base.max_det)
            scores = adapter.score(outputs, [found.objects], "class")
        tensors = [layer.tensor for layer in capture.captured]
        return replace(found, maps=[self._map(score, tensors, found.geometry.network) for score in scores])

    def _map(self, score: Tensor, tensors: list[Tensor], size: tuple[int, int]) -> Tensor:
        levels = []
        for acts, grads in zip(tensors, torch.autograd.grad(score, tensors, retain_graph=True), strict=True):
            level = (grads.clamp(min=0) * acts.detach()).sum(dim=1, keepdim=True).clamp(min=0)
            level = interpolate(level, size, mode="bilinear")[0, 0]
            levels.append(level / level.amax().clamp(min=1e-7))
        return torch.stack(levels).amax(dim=0)


class BlurredLevel:
    """ODAM's map at the level, blurred: does a fused map owe its figures to the blur alone?"""

    def __init__(self, model: Any, **options: Any) -> None:
        self._level = Explainer(model, "odam", "level", **options)

    def __call__(self, image: Any) -> Explanation:
        level = self._level(image)
        return replace(level, maps=[blurred(one.clamp(min=0)[None], BLUR)[0] for one in level.maps])


class Rectified(ODAM):
    """ODAM with each layer's map under ReLU before several layers' maps are added, so that none cancels another."""

    name = "rectified"

    def maps(self, acts: Tensor, grads: Tensor | None) -> Tensor:
        """See `Method.maps`."""
        return super().maps(acts, grads).clamp(min=0)


class Tailed(Combination):
    """ODAM's map at the level, and under it a twentieth as much heat of something broad.

    Most cells of a sharp map hold no heat, and curves that hide or show hot pixels first take those in any order. How
    much of a curve is owed to that order, and how little heat buys it?

    Args:
        broad: what the rest of the heat is spread by, blurred; negative values put their cells last.
        deviations: of the Gaussians that it is blurred with, in its own cells; their peaks count the same.
    """

    def __init__(self, broad: Part, deviations: tuple[float, ...]) -> None:
        super().__init__([Part(ODAM(), "level"), broad], "mean")
        self._deviations = deviations

    def join(self, maps: list[Tensor]) -> Tensor:
        """See `Combination.join`."""
        size = max((one.shape[1:] for one in maps), key=lambda shape: shape[0] * shape[1])
        sharp, *tails = (
            one if one.shape[1:] == size else interpolate(one[:, None], size, mode="bilinear")[:, 0]
            for one in (maps[0].clamp(min=0), *(blurred(maps[1], deviation) for deviation in self._deviations))
        )
        tail = torch.stack([one / one.abs().amax(dim=(1, 2), keepdim=True).clamp(min=1e-30) for one in tails]).sum(
            dim=0
        )
        heat = (sharp.sum(dim=(1, 2)) / tail.clamp(min=0).sum(dim=(1, 2)).clamp(min=1e-30))[:, None, None]
        return sharp + TAIL * heat * tail


class Shuffled:
    """The maps of a model with shuffled weights, for the real one's objects: what their shape alone is worth."""

    def __init__(self, explainer: Explainer) -> None:
        self._explainer = explainer

    def __call__(self, image: Any) -> Explanation:
        found, adapter = self._explainer(image), self._explainer.adapter

        def again() -> Explanation:
            with held(adapter, found.objects):
                return self._explainer(image)

        same_queries = frozen_topk(adapter, again)
        with randomised(adapter.module, 1.0, 1), same_queries():
            changed = again()
        return replace(found, maps=changed.maps)


def rivals(model: Any, found: Sequence[Contender], shuffled: Sequence[str], **options: Any) -> list[Contender]:
    """The tries, Ultralytics' LayerCAM where the model is its detector, and shuffled twins.

    Args:
        model: see `Explainer`.
        found: the methods that take part.
        shuffled: the names of those, and of the tries, that have a twin with shuffled weights.
        options: of `Explainer`.
    """
    rectified = Explainer(model, Rectified(), "evidence", **options)
    narrowed = Combination([Part(Rectified(), "evidence"), Part(ODAM(), "level", BLUR)])
    tries = [
        Contender("level blurred", BlurredLevel(model, **options)),
        Contender("rectified @ evidence", rectified),
        Contender("rectified x level", Explainer(model, narrowed, **options)),
        Contender("level + 5 % around", Explainer(model, Tailed(Part(Rectified(), "level"), (1.5, 4.0)), **options)),
        Contender("level + 5 % evidence", Explainer(model, Tailed(Part(ODAM(), "evidence"), (2.0, 6.0)), **options)),
    ]
    if type(rectified.adapter).__module__.endswith(".yolo"):
        tries.append(Contender("ultralytics layercam", LibraryLayerCAM(model, **options)))
    twins = [
        Contender(f"shuffled {one.name}", Shuffled(one.explain))
        for one in (*found, *tries)
        if one.name in shuffled and isinstance(one.explain, Explainer)
    ]
    return [*tries, *twins]
