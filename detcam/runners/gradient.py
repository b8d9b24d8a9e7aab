"""Gradient runner: maps from activations and gradients, by the cheapest exact way that the model allows.

Windows first (`windowed`), then gains (`gain`), then one backward for each object through everything after the cut,
which works for any scalar.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from detcam.adapters import LayerPlan
from detcam.engine import Captured
from detcam.errors import LayerError
from detcam.methods import Method
from detcam.runners.base import Maps, Request, add_maps, by_name, scalars_of, target_name
from detcam.runners.gain import gain_maps
from detcam.runners.windowed import WindowedMaps
from detcam.types import Objects, image_index


def shared_maps(method: Method, plan: LayerPlan, captured: list[Captured], objects: list[Objects]) -> Maps:
    """Maps of a method that reads activations only: made once per picture and layer, the same for all its objects."""
    own = plan.fuse == "level"
    layers = by_name(captured, plan) if own else captured
    used = set(torch.cat([found.level for found in objects]).tolist()) if own else set(range(len(layers)))
    per_layer = {i: method.maps(layers[i].tensor.detach().float(), None) for i in sorted(used)}
    fused = None if own else add_maps(list(per_layer.values()))
    maps = []
    for image, found in enumerate(objects):
        for level in found.level.tolist():
            maps.append(per_layer[level][image] if fused is None else fused[image])
    return Maps(maps, [False] * len(maps))


def full_maps(
    method: Method, plan: LayerPlan, captured: list[Captured], scalars: Tensor, objects: list[Objects], target: str
) -> Maps:
    """Maps from a backward per object through everything that follows the cut.

    Args:
        method: how maps are made of activations and gradients.
        plan: the layers, and how their maps are fused.
        captured: the captured tensors, with the graph to the scalars.
        scalars: [N, K] one or more scalars per object; the maps of several combine by element-wise maximum, as ODAM
            does with the four sides of a box.
        objects: the objects of each picture.
        target: the scalars' name, for the error.

    Raises:
        LayerError: if no object's scalar depends on one of the layers.
    """
    columns = [_full_column(method, plan, captured, column, objects, target) for column in scalars.unbind(1)]
    maps = [torch.stack(versions).amax(dim=0) for versions in zip(*(c.maps for c in columns), strict=True)]
    return Maps(maps, [all(flags) for flags in zip(*(c.silent for c in columns), strict=True)])


def _full_column(
    method: Method, plan: LayerPlan, captured: list[Captured], scalars: Tensor, objects: list[Objects], target: str
) -> Maps:
    images = image_index(objects, scalars.device)
    maps: list[Tensor] = [torch.empty(0)] * len(scalars)
    silent = torch.ones(len(scalars), dtype=torch.bool, device=scalars.device)
    groups = [(torch.arange(len(scalars), device=scalars.device), captured)]
    if plan.fuse == "level":  # ask for the gradient at the object's own level only
        levels = torch.cat([o.level for o in objects])
        groups = [((levels == i).nonzero().flatten(), [layer]) for i, layer in enumerate(by_name(captured, plan))]
    for members, layers in groups:
        reached: set[str] = set()
        for turn, gradients in method.gradients(scalars[members], images[members], [x.tensor for x in layers]):
            places = members[turn]
            parts = []
            for layer, gradient in zip(layers, gradients, strict=True):
                if gradient is None:
                    continue
                reached.add(layer.name)
                silent[places] &= ~gradient.flatten(1).any(dim=1)
                parts.append(method.maps(layer.tensor.detach()[images[places]].float(), gradient.float()))
            if parts:
                for place, fused in zip(places.tolist(), add_maps(parts), strict=True):
                    maps[place] = fused
        unreached = [layer.name for layer in layers if layer.name not in reached]
        if len(members) and unreached:
            raise LayerError(
                f"layer {unreached[0]!r}: the {target} score does not depend on it: choose a layer between the input "
                "and the head's outputs, see `detcam layers`"
            )
    return Maps(maps, silent.tolist())


class GradientRunner:
    """Maps of a method that reads activations, and gradients where its maps differ between objects."""

    def __init__(self, method: Method, plan: LayerPlan, request: Request) -> None:
        self.plan, self.cut = plan, plan.cut_all
        self.target = method.target(request.adapter, request.target)
        self.differentiable = method.object_specific
        self._method, self._adapter, self._memory = method, request.adapter, request.memory
        self._windowed: WindowedMaps | None = None
        if isinstance(self.target, str) and method.object_specific:
            self._windowed = WindowedMaps(method, plan, request.memory)

    def watching(self) -> AbstractContextManager[Any]:
        """See `Runner.watching`."""
        return nullcontext()

    def maps(self, pixels: Tensor, outputs: Any, objects: list[Objects], captured: list[Captured]) -> Maps:
        """See `Runner.maps`."""
        if not sum(len(o) for o in objects):
            return Maps([], [])
        if not self._method.object_specific:
            return shared_maps(self._method, self.plan, captured, objects)
        if isinstance(self.target, str):
            made = self._cheap(outputs, objects, captured, self.target)
            if made is not None:
                return made
        scalars = scalars_of(self._adapter, self.target, outputs, objects)
        return full_maps(self._method, self.plan, captured, scalars, objects, target_name(self.target))

    def _cheap(self, outputs: Any, objects: list[Objects], captured: list[Captured], target: str) -> Maps | None:
        if self._windowed is None:
            return None
        if self._windowed.exact:
            readouts = self._adapter.readouts(outputs, objects, target)
            made = None if readouts is None else self._windowed.maps(captured, objects, readouts)
            if made is not None:
                return made
        if self._method.gradient_times_activation and self.plan == self._adapter.layers("level"):
            return gain_maps(self._adapter, captured, outputs, objects, target, self._memory)
        return None
