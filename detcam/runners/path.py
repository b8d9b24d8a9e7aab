"""Path runner: gradients at activations between those of a baseline image and those of the image."""

import warnings
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from detcam.adapters import LayerPlan
from detcam.engine import Captured
from detcam.engine.frozen_topk import RecordTopk, ReplayTopk
from detcam.methods.path import PathMethod
from detcam.runners.base import Maps, Request, scalars_of
from detcam.runners.gradient import GradientRunner
from detcam.types import Objects


class PathRunner:
    """Maps of a `PathMethod`: the objects are those of the image, and so is the model's selection of queries.

    The forward that detects records no graph. The baseline's forward stops behind the layers. On the way the model
    continues with activations in between, and each object's scalar is read where it was read in the image.

    Args:
        method: where gradients are taken, and how maps are made of them.
        plan: the layers; the graph is cut at each.
        request: the model and the target.
        complete: whether all evidence should pass through the layers: the first image shows whether it does.
    """

    def __init__(self, method: PathMethod, plan: LayerPlan, request: Request, complete: bool = False) -> None:
        self.plan, self.cut, self.differentiable = replace(plan, cut_all=True), True, False
        self._method, self._model_run, self._adapter = method, request.model_run, request.adapter
        self._inner = GradientRunner(method, self.plan, request)
        self.target = self._inner.target
        self._selected = RecordTopk()
        self._unchecked = complete

    def watching(self) -> AbstractContextManager[Any]:
        """See `Runner.watching`: records which queries the model selects."""
        if self._adapter.stable:
            return nullcontext()
        self._selected = RecordTopk()
        return self._selected

    def maps(self, pixels: Tensor, outputs: Any, objects: list[Objects], captured: list[Captured]) -> Maps:
        """See `Runner.maps`."""
        if not sum(len(of_image) for of_image in objects):
            return Maps([], [])
        blank = self._method.baseline_of(pixels).contiguous(memory_format=torch.channels_last)  # as `pixels`, for speed
        baseline = self._model_run.layers(blank, self, [c.name for c in captured])
        differences = {c.name: c.tensor.detach() - baseline[c.name] for c in captured}
        results = []
        for share in self._method.shares(self._adapter):
            between = {name: torch.add(baseline[name], d, alpha=share) for name, d in differences.items()}
            outputs, layers = self._forward_at(pixels, between)
            layers = [replace(layer, difference=differences[layer.name]) for layer in layers]
            results.append(self._inner.maps(pixels, outputs, objects, layers))  # raises without any gradient
            if self._unchecked:
                self._check(pixels, between, outputs, objects)
        rows = zip(*(result.maps for result in results), strict=True)
        maps = [self._method.finished(torch.stack(versions).mean(dim=0)) for versions in rows]
        return Maps(maps, [all(flags) for flags in zip(*(result.zero_gradient for result in results), strict=True)])

    def _forward_at(self, pixels: Tensor, between: dict[str, Tensor]) -> tuple[Any, list[Captured]]:
        """The outputs with these activations, for the queries that were selected in the image, and their graph."""
        with nullcontext() if self._adapter.stable else ReplayTopk(self._selected.indices):
            return self._model_run(pixels, self._inner, between)

    def _check(self, pixels: Tensor, between: dict[str, Tensor], outputs: Any, objects: list[Objects]) -> None:
        """Warn if scores depend on the image also around the layers: on another image before them."""
        self._unchecked = False
        scalars = scalars_of(self._adapter, self.target, outputs, objects).detach()
        other, _ = self._forward_at(-pixels, between)
        elsewhere = scalars_of(self._adapter, self.target, other, objects).detach()
        if not torch.allclose(scalars, elsewhere, rtol=1e-3, atol=1e-3, equal_nan=True):
            warnings.warn(
                f"scores depend on the image also around layer {self.plan.names[0]!r}, and what they see there is "
                "missing in the maps: name all layers through which it enters, see `detcam layers`",
                stacklevel=2,
            )
