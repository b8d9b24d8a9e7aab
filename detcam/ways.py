"""From what the model put out to raw maps: a way for each kind of method, all called alike.

The explainer runs the model once, with the layers of the way's plan captured, and asks the way for the maps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from detcam.adapters import Adapter, LayerPlan, Target
from detcam.attended import AttendedMaps
from detcam.engine import Captured, module_name
from detcam.engine.sweeps import Progress
from detcam.errors import LayerError, MethodError, TargetError
from detcam.maps import Maps, WindowedMaps, full_maps, gained_maps, shared_maps
from detcam.methods import AnyMethod, Method, SweepMethod
from detcam.methods.attention import AttentionMethod
from detcam.methods.combination import Combination
from detcam.methods.finer import FinerCAM
from detcam.methods.smoothing import Smoothing
from detcam.smoothed import SmoothedWay
from detcam.swept import SweptMaps, swept_target
from detcam.types import Objects

Layers = str | Sequence[Any]


@dataclass(frozen=True)
class Request:
    """What every way is asked for.

    Attributes:
        adapter: the model.
        target: the scalar that the user chose.
        max_det: see `Explainer`.
        memory: see `Explainer`.
        progress: see `Explainer`.
        run: a forward of pictures [B, C, H, W]: raw outputs and captured tensors.
        plan_of: from a preset, names or modules to the plan behind them.
    """

    adapter: Adapter
    target: Target
    max_det: int
    memory: int
    progress: Progress | None
    run: Callable[[Tensor], tuple[Any, list[Captured]]]
    plan_of: Callable[[Layers], LayerPlan]


class Way(Protocol):
    """How the maps of a batch's objects are made."""

    @property
    def plan(self) -> LayerPlan:
        """The layers to be captured in the forward."""

    @property
    def cut(self) -> bool | frozenset[str]:
        """Where the autograd graph starts, see `Capture`."""

    @property
    def target(self) -> Target:
        """The scalar that is explained."""

    @property
    def differentiable(self) -> bool:
        """Whether the forward must leave a graph."""

    def watching(self) -> AbstractContextManager[Any]:
        """What the forward must run in."""

    def maps(self, pixels: Tensor, outputs: Any, objects: list[Objects], captured: list[Captured]) -> Maps:
        """The maps of the objects of pictures [B, 3, H, W], whose raw outputs and captured tensors are given."""


def way_for(method: AnyMethod, layers: Layers, request: Request) -> Way:
    """The way to the maps of a method.

    Args:
        method: any.
        layers: the explainer's `layers`; "auto" is what the method declares.
        request: what is asked for.

    Raises:
        LayerError: for layers that do not exist, or that a combination was given.
        TargetError: for a target that the method cannot explain.
        MethodError: for a method of no known kind.
    """
    if isinstance(method, Smoothing):
        return SmoothedWay(method, way_for(method.method, layers, request), request.adapter, request.run)
    if isinstance(method, Combination):
        if layers != "auto":
            raise LayerError(f"method {method.name!r} names its own layers: leave layers out")
        return CombinedWay(method, [way_for(part.method, part.layers, request) for part in method.parts], request)
    if isinstance(method, AttentionMethod):
        if layers != "auto":
            raise LayerError(f"method {method.name!r} reads attention, which has its own layers: leave layers out")
        score = partial(scalars_of, request.adapter, request.target)
        return AttendedMaps(request.adapter, method, request.target, score)
    plan = request.plan_of(method.layers if layers == "auto" else layers)
    if isinstance(method, SweepMethod):
        target = swept_target(method, request.target, request.adapter)
        score = partial(scalars_of, request.adapter, target)
        return SweptMaps(
            request.adapter, method, plan, target, score, request.max_det, request.memory, request.progress
        )
    if isinstance(method, FinerCAM):
        if request.target != "class":
            raise TargetError(f"method 'finercam' contrasts class scores: target 'class', got {request.target!r}")
        return GradientWay(method, plan, replace(request, target=finer_target(method, request.adapter)))
    if isinstance(method, Method):
        return GradientWay(method, plan, request)
    raise MethodError(f"method {method.name!r} is of no kind that an explainer knows: derive it from Method")


def scalars_of(adapter: Adapter, target: Target, outputs: Any, objects: list[Objects]) -> Tensor:
    """[sum N, K] differentiable scalars; K is 1 but for targets that combine several.

    Raises:
        TargetError: if the user's own target gives anything but one number for each object.
    """
    if isinstance(target, str):
        scalars = adapter.score(outputs, objects, target)
        return scalars if scalars.ndim == 2 else scalars[:, None]
    total = sum(len(o) for o in objects)
    with torch.enable_grad():
        scalars = target(outputs, objects)
    if not isinstance(scalars, Tensor) or scalars.shape != (total,):
        actual = list(scalars.shape) if isinstance(scalars, Tensor) else type(scalars).__name__
        raise TargetError(f"target callable: expected a tensor of shape [{total}], got {actual}")
    return scalars[:, None]


def finer_target(method: FinerCAM, adapter: Adapter) -> Target:
    """The contrast between classes that Finer-CAM explains."""

    def finer(outputs: Any, objects: list[Objects]) -> Tensor:
        count = adapter.candidates(outputs)[1].shape[2]
        score = partial(adapter.score, target="class")
        return method.difference(score, count)(outputs, objects)

    return finer


def target_name(target: Target) -> str:
    """A target's name, for people to read."""
    return target if isinstance(target, str) else getattr(target, "__name__", "callable")


class GradientWay:
    """Maps of a method that reads activations, and gradients unless it does not look at the object.

    Attributes:
        windowed: the cheap way for all objects at once, or None where it is not to be tried.
    """

    def __init__(self, method: Method, plan: LayerPlan, request: Request) -> None:
        self.plan, self.cut, self.target = plan, plan.cut_all, request.target
        self.differentiable = method.object_specific
        self._method, self._adapter, self._memory = method, request.adapter, request.memory
        self.windowed: WindowedMaps | None = None
        if isinstance(self.target, str) and method.object_specific:
            self.windowed = WindowedMaps(method, plan, request.memory)

    def watching(self) -> AbstractContextManager[Any]:
        """See `Way.watching`."""
        return nullcontext()

    def maps(self, pixels: Tensor, outputs: Any, objects: list[Objects], captured: list[Captured]) -> Maps:
        """See `Way.maps`."""
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
        if self.windowed is None:
            return None
        if self.windowed.exact:
            readouts = self._adapter.readouts(outputs, objects, target)
            made = None if readouts is None else self.windowed.maps(captured, objects, readouts)
            if made is not None:
                return made
        if self._method.product and self.plan == self._adapter.layers("level"):
            return gained_maps(self._adapter, captured, outputs, objects, target, self._memory)
        return None


class CombinedWay:
    """One map of each object from those of several ways, after one forward for all of them."""

    def __init__(self, method: Combination, parts: list[Way], request: Request) -> None:
        self._method, self._parts = method, parts
        names = dict.fromkeys(name for part in parts for name in part.plan.names)
        self.plan = LayerPlan(tuple(names), cut_all=False, fuse="sum")
        self.target = request.target
        self.differentiable = any(part.differentiable for part in parts)
        # Where the evidence enters the neck all of it is cut; what is captured behind keeps the way back to it.
        plans, evidence = [part.plan for part in parts], request.adapter.layers("evidence")
        same = all(plan == plans[0] for plan in plans) and plans[0].cut_all
        first = evidence if evidence in plans else plans[0] if same else None
        self.cut = frozenset(first.names if first is not None else ())

    @contextmanager
    def watching(self) -> Iterator[None]:
        """See `Way.watching`."""
        with ExitStack() as stack:
            for part in self._parts:
                stack.enter_context(part.watching())
            yield

    def maps(self, pixels: Tensor, outputs: Any, objects: list[Objects], captured: list[Captured]) -> Maps:
        """See `Way.maps`."""
        made = []
        for part in self._parts:
            own = [c for c in captured if module_name(c.name) in part.plan.names]
            made.append(part.maps(pixels, outputs, objects, own))
        together: dict[tuple[torch.Size, ...], list[int]] = {}
        for i, versions in enumerate(zip(*(m.maps for m in made), strict=True)):
            together.setdefault(tuple(one.shape for one in versions), []).append(i)
        maps: list[Tensor] = [torch.empty(0)] * len(made[0].maps)
        for members in together.values():
            joined = self._method.join([torch.stack([m.maps[i] for i in members]) for m in made])
            for i, one in zip(members, joined, strict=True):
                maps[i] = one
        return Maps(maps, [all(flags) for flags in zip(*(m.silent for m in made), strict=True)])
