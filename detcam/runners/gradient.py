"""Gradient runner: maps from activations and gradients, by the cheapest exact computation that the model allows.

Gradients in windows (`windowed`) come first, then gains (`gain`), then one backward per object through everything after
the cut, which works for any scalar.
"""

import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from detcam.adapters import LayerPlan
from detcam.engine import Captured, NoRule
from detcam.errors import LayerError, MethodError
from detcam.methods import Method
from detcam.runners.base import NO_GRADIENTS, Maps, Request, add_maps, by_name, scalars_of, target_name
from detcam.runners.gain import gain_maps
from detcam.runners.windowed import WindowedMaps
from detcam.types import Objects, image_index


def shared_maps(method: Method, plan: LayerPlan, captured: list[Captured], objects: list[Objects]) -> Maps:
    """Maps of a method that reads activations only: one per image and layer, shared by the image's objects."""
    by_level = plan.fuse == "level"
    layers = by_name(captured, plan) if by_level else captured
    used = set(torch.cat([of_image.level for of_image in objects]).tolist()) if by_level else set(range(len(layers)))
    per_layer = {i: method.maps(layers[i].tensor.detach().float(), None) for i in sorted(used)}
    fused = None if by_level else add_maps(list(per_layer.values()))
    maps = []
    for image, of_image in enumerate(objects):
        for level in of_image.level.tolist():
            maps.append(per_layer[level][image] if fused is None else fused[image])
    return Maps(maps, [False] * len(maps))


def full_maps(
    method: Method, plan: LayerPlan, captured: list[Captured], scalars: Tensor, objects: list[Objects], target: str
) -> Maps:
    """Maps from one backward per object through everything after the cut.

    Args:
        method: how maps are made of activations and gradients.
        plan: the layers, and how their maps are fused.
        captured: the captured tensors, with the graph to the scalars.
        scalars: [N, K] scalars; the maps of an object's K scalars combine by element-wise maximum, as in ODAM for the
            four sides of a box.
        objects: the objects of each image.
        target: name of the scalars, for the error.

    Raises:
        LayerError: if no object's scalar depends on one of the layers.
    """
    columns = [_full_column(method, plan, captured, column, objects, target) for column in scalars.unbind(1)]
    maps = [torch.stack(versions).amax(dim=0) for versions in zip(*(c.maps for c in columns), strict=True)]
    return Maps(maps, [all(flags) for flags in zip(*(c.zero_gradient for c in columns), strict=True)])


def _full_column(
    method: Method, plan: LayerPlan, captured: list[Captured], scalars: Tensor, objects: list[Objects], target: str
) -> Maps:
    images = image_index(objects, scalars.device)
    maps: list[Tensor] = [torch.empty(0)] * len(scalars)
    zero_gradient = torch.ones(len(scalars), dtype=torch.bool, device=scalars.device)
    groups = [(torch.arange(len(scalars), device=scalars.device), captured)]
    if plan.fuse == "level":  # each object needs the gradient at its level only
        levels = torch.cat([o.level for o in objects])
        groups = [((levels == i).nonzero().flatten(), [layer]) for i, layer in enumerate(by_name(captured, plan))]
    for members, layers in groups:
        reached: set[str] = set()
        for chunk, gradients in method.gradients(scalars[members], images[members], [x.tensor for x in layers]):
            places = members[chunk]
            parts = []
            for layer, gradient in zip(layers, gradients, strict=True):
                if gradient is None:
                    continue
                reached.add(layer.name)
                zero_gradient[places] &= ~gradient.flatten(1).any(dim=1)
                parts.append(method.maps(layer.acts[images[places]].float(), gradient.float()))
            if parts:
                for place, fused in zip(places.tolist(), add_maps(parts), strict=True):
                    maps[place] = fused
        unreached = [layer.name for layer in layers if layer.name not in reached]
        if len(members) and unreached:
            raise LayerError(
                f"layer {unreached[0]!r}: the {target} score does not depend on it, or a checkpoint surrounds it: "
                "choose a layer between the input and the head's outputs, see `detcam layers`"
            )
    return Maps(maps, zero_gradient.tolist())


class GradientRunner:
    """Maps of a method that reads activations, and gradients where its maps differ between objects."""

    def __init__(self, method: Method, plan: LayerPlan, request: Request) -> None:
        self.plan, self.cut = plan, plan.cut_all
        self.target = method.target(request.adapter, request.target)
        self.differentiable = method.object_specific
        self._method, self._adapter, self._memory = method, request.adapter, request.memory
        self._model_run = request.model_run
        self._windowed: WindowedMaps | None = None
        if isinstance(self.target, str) and method.object_specific and not method.second_order:
            self._windowed = WindowedMaps(method, plan, request.memory)

    def watching(self) -> AbstractContextManager[Any]:
        """See `Runner.watching`: fused attention has no second derivative."""
        return sdpa_kernel(SDPBackend.MATH) if self._method.second_order else nullcontext()

    def maps(self, pixels: Tensor, outputs: Any, objects: list[Objects], captured: list[Captured]) -> Maps:
        """See `Runner.maps`."""
        if not sum(len(o) for o in objects):
            return Maps([], [])
        if not self._method.object_specific:
            return shared_maps(self._method, self.plan, captured, objects)
        maps = self._shared_backward(outputs, objects, captured)
        if maps is not None:
            return maps
        scalars = scalars_of(self._adapter, self.target, outputs, objects)
        if not scalars.requires_grad:
            self._require_gradient(pixels, objects)
        return full_maps(self._method, self.plan, captured, scalars, objects, target_name(self.target))

    def _require_gradient(self, pixels: Tensor, objects: list[Objects]) -> None:
        """Raise MethodError if the scores have no gradient at the image either."""
        with torch.enable_grad():
            outputs = self._model_run.adapter.forward(pixels.detach().requires_grad_(), self._model_run.max_det)
        if not scalars_of(self._adapter, self.target, outputs, objects).requires_grad:
            culprit = "the function that scores objects" if _has_graph(outputs) else "the model's forward"
            raise MethodError(
                f"the {target_name(self.target)} score has no gradient at all: no_grad, inference_mode, detach or int8 "
                f"in {culprit} end it: remove them, or use a method without gradients, e.g. {NO_GRADIENTS}"
            )

    def _shared_backward(self, outputs: Any, objects: list[Objects], captured: list[Captured]) -> Maps | None:
        """The maps from windows or gains; None where every object needs its own backward."""
        if not isinstance(self.target, str):
            return None
        readouts = None if self._windowed is None else self._adapter.readouts(outputs, objects, self.target)
        if readouts is not None and self._windowed is not None:
            scalars = partial(scalars_of, self._adapter, self.target, outputs, objects)
            try:
                maps = self._windowed.maps(captured, objects, readouts, scalars)
            except NoRule as reason:
                maps = self._windowed = None
                warnings.warn(
                    f"gradients in windows {reason}: from now on every object gets its own backward, which is exact "
                    "and slower",
                    stacklevel=2,
                )
            if maps is not None:
                return maps
        if self._method.gradient_times_activation and self.plan == self._adapter.layers("level"):
            with suppress(RuntimeError):  # vmap cannot batch each operation: then every object gets its own backward
                return gain_maps(self._adapter, captured, outputs, objects, self.target, self._memory)
        return None


def _has_graph(outputs: Any) -> bool:
    """Whether a tensor in outputs of any type carries a graph."""
    if isinstance(outputs, Tensor):
        return outputs.requires_grad
    parts = outputs.values() if isinstance(outputs, Mapping) else getattr(outputs, "__dict__", {}).values()
    return any(map(_has_graph, outputs if isinstance(outputs, (tuple, list)) else parts))
