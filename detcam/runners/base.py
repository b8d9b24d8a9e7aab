"""Runner: the protocol that turns a model's outputs and captured layers into one raw coarse map per object."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from detcam.adapters import Adapter, LayerPlan, Target, channels_last
from detcam.engine import Capture, Captured, Reached, running
from detcam.engine.sweeps import Progress
from detcam.errors import LayerError, MethodError, TargetError, nearest
from detcam.options import LAYER_PRESETS
from detcam.types import Objects

NO_GRADIENTS = "'rise', 'occlusion' or 'eigencam'"
Layers = str | Sequence[str | nn.Module]  # a preset, or names or modules


@dataclass(frozen=True)
class Maps:
    """Raw coarse maps of N objects."""

    maps: list[Tensor]  # [h, w] float32 each
    zero_gradient: list[bool]  # for each object whether the gradient of its scalar is zero everywhere


class Runner(Protocol):
    """Makes the maps of a batch's objects from the model's outputs and captured layers."""

    @property
    def plan(self) -> LayerPlan:
        """The layers that the forward captures."""

    @property
    def cut(self) -> bool | frozenset[str]:
        """Where the autograd graph starts, see `Capture`."""

    @property
    def target(self) -> Target:
        """The scalar that is explained."""

    @property
    def differentiable(self) -> bool:
        """Whether the forward must record an autograd graph."""

    def watching(self) -> AbstractContextManager[Any]:
        """The context that the forward must run in."""

    def maps(self, pixels: Tensor, outputs: Any, objects: list[Objects], captured: list[Captured]) -> Maps:
        """The maps of all objects of a batch.

        Args:
            pixels: [B, C, H, W] the network's input.
            outputs: the adapter's raw outputs.
            objects: the objects of each image.
            captured: the tensors of the plan's layers.
        """


@dataclass(frozen=True)
class ModelRun:
    """One forward of a model that captures the layers of a runner."""

    adapter: Adapter
    max_det: int  # see `Explainer`

    def __call__(
        self, pixels: Tensor, runner: Runner, given: Mapping[str, Tensor] | None = None
    ) -> tuple[Any, list[Captured]]:
        """The raw outputs for images [B, C, H, W], and the captured tensors of the runner's layers.

        Args:
            pixels: the network's input.
            runner: which layers to capture, and how.
            given: see `detcam.engine.Capture`.

        Raises:
            LayerError: if a layer does not run, or its output is not a map.
        """
        capture = self._capture(pixels, runner, given=given)
        with torch.set_grad_enabled(runner.differentiable), capture, runner.watching():
            outputs = self.forward(pixels)
        for name in capture.missing() + [c.name for c in capture.captured if len(c.tensor) != len(pixels)]:
            raise LayerError(
                f"layer {name!r} did not run or its output is not known to be a map [B,C,h,w]: choose a layer that "
                "`detcam layers` lists, or give reshape=, a function from its output to [B,C,h,w]"
            )
        return outputs, capture.captured

    def forward(self, pixels: Tensor) -> Any:
        """The raw outputs for images [B, C, H, W].

        Raises:
            MethodError: if an int8 module would end a gradient, silently beside a skip.
        """

        def hook(name: str, module: nn.Module, args: Any, output: Any) -> None:
            if args and getattr(args[0], "requires_grad", False):  # the output may claim a gradient
                raise MethodError(
                    f"layer {name!r} computes in int8, where gradients end: explain the float model, name a layer "
                    f"behind it, or use a method without gradients, e.g. {NO_GRADIENTS}"
                )

        named = self.adapter.module.named_modules()
        handles = [m.register_forward_hook(partial(hook, n)) for n, m in named if "quantized" in type(m).__module__]
        try:
            return self.adapter.forward(pixels, self.max_det)
        finally:
            for handle in handles:
                handle.remove()

    @torch.no_grad()
    def layers(self, pixels: Tensor, runner: Runner, names: Sequence[str]) -> dict[str, Tensor]:
        """The outputs of the runner's layers, captured under `names`; the forward stops behind the last of them."""
        capture = self._capture(pixels, runner, until=names)
        with capture, suppress(Reached):
            self.adapter.forward(pixels, self.max_det)
        return {captured.name: captured.tensor.detach() for captured in capture.captured}

    def _capture(self, pixels: Tensor, runner: Runner, **options: Any) -> Capture:
        modules = {name: self.adapter.module.get_submodule(name) for name in runner.plan.names}
        return Capture(modules, runner.cut, **layout_of(self.adapter, pixels), **options)


def layout_of(adapter: Adapter, pixels: Tensor) -> dict[str, Any]:
    """The arguments of `Capture` that say where maps lie in outputs, for inputs [B, C, H, W]."""
    size = (pixels.shape[2], pixels.shape[3])
    last = partial(channels_last, size)
    return {"grids": partial(adapter.grids, size=size), "channels_last": last, "reshape": adapter.reshape}


@dataclass(frozen=True)
class Request:
    """The arguments that every runner takes, apart from its method."""

    model_run: ModelRun
    target: Target  # the scalar to explain, as the user chose it
    memory: int  # see `Explainer`
    progress: Progress | None  # see `Explainer`
    plan_of: Callable[[Layers], LayerPlan]  # from a preset, names or modules to a plan

    @property
    def adapter(self) -> Adapter:
        """The model's adapter."""
        return self.model_run.adapter


def layer_plan(adapter: Adapter, module: nn.Module, layers: Layers) -> LayerPlan:
    """The layers to capture: those of a preset, or the user's by name or as modules of their own model.

    Args:
        adapter: the model.
        module: the user's module, before the private view was made.
        layers: a preset, or names or modules.

    Raises:
        LayerError: for a layer that does not exist.
    """
    if isinstance(layers, str) and layers in LAYER_PRESETS:
        with running(adapter.module):
            return adapter.stem() if layers == "stem" else adapter.layers(layers)
    chosen = [layers] if isinstance(layers, (str, nn.Module)) else list(layers)
    if not chosen:
        presets = ", ".join(map(repr, ("auto", *LAYER_PRESETS)))
        raise LayerError(f"layers is empty: give {presets} or names of modules")
    named = {name: m for name, m in module.named_modules() if name}
    names = []
    for layer in chosen:
        if isinstance(layer, nn.Module):
            layer = next((name for name, m in named.items() if m is layer), f"<{type(layer).__name__}>")
        if layer not in named:
            raise LayerError(f"layer {layer!r} does not exist: {nearest(layer, ['auto', *LAYER_PRESETS, *named])}")
        names.append(layer)
    return LayerPlan(tuple(dict.fromkeys(names)), cut_all=False, fuse="sum")


def add_maps(maps: list[Tensor]) -> Tensor:
    """The sum [n, h, w] of maps [n, h_l, w_l] at the finest resolution among them.

    Signed: what one layer holds against the score cancels what another holds for it.
    """
    finest = max((m.shape[1:] for m in maps), key=lambda shape: shape[0] * shape[1])
    resized = [m if m.shape[1:] == finest else interpolate(m[:, None], finest, mode="bilinear")[:, 0] for m in maps]
    return torch.stack(resized).sum(dim=0)


def by_name(captured: list[Captured], plan: LayerPlan) -> list[Captured]:
    """The captured tensors in the order of the plan, which may differ from the order in which the layers ran."""
    named = {layer.name: layer for layer in captured}
    return [named[name] for name in plan.names]


def scalars_of(adapter: Adapter, target: Target, outputs: Any, objects: list[Objects]) -> Tensor:
    """The objects' differentiable scalars, [sum N, K]; K is 1 except for targets that combine several scalars.

    Raises:
        TargetError: if a user's target does not return one number per object.
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


def target_name(target: Target) -> str:
    """A target's name, for display."""
    return target if isinstance(target, str) else getattr(target, "__name__", "callable")
