"""Layers of a model that can carry a heatmap: their outputs, the share of objects that reach them, and the presets."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from detcam.adapters import Adapter, channels_last
from detcam.engine import Capture, object_gradients, running
from detcam.explainer import Explainer
from detcam.options import LAYER_PRESETS
from detcam.runners.base import layer_plan, layout_of
from detcam.scenes import HELD_OUT_SEED, draw_scene
from detcam.types import Objects, image_index

OBJECTS = 10  # of an image that are followed back, at most
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class Layer:
    """A map [channels, height, width] in the output of a module.

    Attributes:
        name: the name for `Explainer(layers=[...])`.
        output: which of the module's outputs, e.g. "[0]"; "" for a single output.
        kind: the module's class.
        stride: pixels of the network's input for each cell.
        gradient: share of the image's objects whose score has a gradient there; None without objects.
        presets: the presets that use it, of `LAYER_PRESETS`.
    """

    name: str
    output: str
    kind: str
    channels: int
    height: int
    width: int
    stride: float
    gradient: float | None
    presets: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values."""
        return asdict(self)


@dataclass(frozen=True)
class _Output:
    """A map in a module's output, as a tensor [B, C, h, w] or inside a sequence of tokens."""

    name: str
    suffix: str  # of the name in `detcam.engine.Capture`
    tensor: Tensor
    shape: tuple[int, int, int]
    grid: int  # which of the maps in a sequence
    alone: bool  # whether it is the module's only output


def candidate_layers(explainer: Explainer, image: Any = None) -> list[Layer]:
    """The layers of the explainer's model that can carry a heatmap, in the order they run.

    These are the layers of the presets and the steps of the model's trunk: children of the model and of its lists of
    modules that output maps of several sizes or are blocks of a transformer, up to where objects are read. `Explainer`
    also takes the names of modules inside them.

    Args:
        explainer: the model and its target.
        image: as for `Explainer`; default a drawn scene. Without objects above the explainer's `conf`, the best
            candidates are followed back.

    Raises:
        ImageError: if the image cannot be read.
    """
    from detcam.images import read_image

    adapter = explainer.adapter
    scene = draw_scene(HELD_OUT_SEED).image[:, :, np.arange(adapter.channels) % 3]
    source = read_image(scene if image is None else image, *adapter.reading)
    plans = {preset: layer_plan(adapter, adapter.module, preset).names for preset in LAYER_PRESETS}
    with running(adapter.module):
        pixels, geometry = adapter.prepare(source)
        size = geometry.network
        names = {name for plan in plans.values() for name in plan}
        outputs = _chosen(_outputs(explainer, pixels[None], size), adapter.module, names)
        shares = _shares(explainer, pixels[None], geometry, [output.name for output in outputs])
    found = []
    for output in outputs:
        channels, height, width = output.shape
        presets = tuple(preset for preset, names in plans.items() if output.name in names)
        share = None if shares is None else shares.get(output.name + output.suffix, 0.0)
        kind = type(adapter.module.get_submodule(output.name)).__name__
        found.append(Layer(output.name, output.suffix, kind, channels, height, width, size[0] / height, share, presets))
    return found


@torch.no_grad()
def _outputs(explainer: Explainer, batch: Tensor, size: tuple[int, int]) -> list[_Output]:
    """All maps that modules output, except for modules that run several times."""
    runs: dict[str, list[list[_Output]]] = {}

    def record(name: str, module: nn.Module, args: Any, output: Any) -> None:
        alone = isinstance(output, Tensor)
        made = [_Output(name, *part, alone) for part in _maps(output, "", explainer.adapter, module, size)]
        runs.setdefault(name, []).append([m for m in made if len(m.tensor) == len(batch)])

    named = explainer.adapter.module.named_modules()
    handles = [module.register_forward_hook(partial(record, name)) for name, module in named if name]
    try:
        explainer.adapter.forward(batch, explainer.max_det)
    finally:
        for handle in handles:
            handle.remove()
    return [output for times in runs.values() if len(times) == 1 for output in times[0]]


def _maps(
    output: Any, suffix: str, adapter: Adapter, module: nn.Module, size: tuple[int, int]
) -> Iterator[tuple[str, Tensor, tuple[int, int, int], int]]:
    """(suffix, tensor, (channels, height, width), grid) of each map in a module's output; see `_Output`."""
    if isinstance(output, Tensor) and output.is_floating_point():
        if output.ndim == 4:
            last = channels_last(size, module, output.shape)
            channels, height, width = (output.movedim(-1, 1) if last else output).shape[1:]
            if last is not None:
                yield suffix, output, (channels, height, width), 0
        elif output.ndim == 3:
            grids = adapter.grids(output.shape[1], size)
            for i, (_, rows, columns) in enumerate(grids):
                yield suffix + (f"[{i}]" if len(grids) > 1 else ""), output, (output.shape[2], rows, columns), i
    elif isinstance(output, (Mapping, tuple, list)):
        items = output.items() if isinstance(output, Mapping) else enumerate(output)
        for key, value in items:
            yield from _maps(value, f"{suffix}[{key}]", adapter, module, size)


def _chosen(outputs: list[_Output], module: nn.Module, presets: set[str]) -> list[_Output]:
    """The maps of the presets and of the trunk's steps, each under a single name: the preset's, or the outermost."""
    steps = presets | _steps(outputs, module)
    ranked: dict[tuple[int, int], _Output] = {}
    for output in outputs:
        if output.name not in steps:
            continue
        key = (id(output.tensor), output.grid)
        other = ranked.get(key)
        if other is None or _rank(output, presets) < _rank(other, presets):
            ranked[key] = output
    kept = {id(output) for output in ranked.values()}
    end = max(place for place, output in enumerate(outputs) if output.name in presets)
    return [output for output in outputs[: end + 1] if id(output) in kept or output.name in presets]


def _rank(output: _Output, presets: set[str]) -> tuple[bool, int]:
    return output.name not in presets, output.name.count(".")


def _steps(outputs: list[_Output], module: nn.Module) -> set[str]:
    """The names of the trunk's steps, see `candidate_layers`."""
    families: dict[str, list[_Output]] = {}
    for output in outputs:
        families.setdefault(output.name.rpartition(".")[0], []).append(output)
    blocks = {o.name for o in outputs if o.alone and not isinstance(module.get_submodule(o.name), CONTAINERS)}
    steps: set[str] = set()
    for parent, children in families.items():
        if parent and not isinstance(module.get_submodule(parent), CONTAINERS):
            continue
        path = parent.split(".")
        if any(".".join(path[:i]) in blocks for i in range(1, len(path) + 1)):
            continue  # inside a block with a single map
        names = {child.name for child in children}
        transformer = len(names) > 1 and all(child.tensor.ndim == 3 for child in children)
        if transformer or len({child.shape[1:] for child in children}) > 1:
            steps |= names
    return steps


def _shares(explainer: Explainer, batch: Tensor, geometry: Any, names: list[str]) -> dict[str, float] | None:
    """Share of objects whose score has a gradient at each captured map; None without objects."""
    adapter = explainer.adapter
    modules = {name: adapter.module.get_submodule(name) for name in dict.fromkeys(names)}
    capture = Capture(modules, False, **layout_of(adapter, batch))
    with torch.enable_grad(), capture:
        outputs = adapter.forward(batch, explainer.max_det)
    found = adapter.trial_objects(outputs, geometry, explainer.conf, explainer.iou, OBJECTS)
    if not len(found):
        found = adapter.trial_objects(outputs, geometry, 0.0, explainer.iou, OBJECTS)
    if not len(found):
        return None
    found = found.select(torch.arange(min(len(found), OBJECTS), device=found.index.device))
    reached = _reached(adapter, outputs, found, explainer.target, [c.tensor for c in capture.captured])
    return {c.name: float(np.mean(flags)) for c, flags in zip(capture.captured, reached, strict=True)}


def _reached(adapter: Adapter, outputs: Any, found: Objects, target: Any, tensors: list[Tensor]) -> list[list[bool]]:
    """Whether each object's scalar has a gradient at each tensor."""
    with torch.enable_grad():
        scalars = adapter.score(outputs, [found], target if isinstance(target, str) else adapter.available[0])
    scalars = scalars if scalars.ndim == 1 else scalars.sum(dim=1)
    reached: list[list[bool]] = [[] for _ in tensors]
    for _, gradients in object_gradients(scalars, image_index([found], scalars.device), tensors):
        for flags, gradient in zip(reached, gradients, strict=True):
            flags.append(gradient is not None and bool(gradient.any()))
    return reached
