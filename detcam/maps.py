"""From captured tensors and scalars to one raw coarse map per object: four ways, one result.

- `shared_maps`: methods that do not look at the object.
- `full_maps`: one backward for each object through everything after the cut. Works for any scalar.
- `gained_maps`: several objects in each backward, for a transformer's decoder and methods that multiply gradient and
  activation.
- `WindowedMaps`: one walk back for all objects, each in its own window. Exact, where the adapter knows at which cells
  the scalars are read.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from detcam.adapters import Adapter, LayerPlan, Readout, Source
from detcam.engine import (
    Captured,
    Seed,
    Window,
    batched_gradients,
    cut,
    object_gradients,
    upscaling,
    window_gradients,
    windows_agree,
)
from detcam.errors import LayerError
from detcam.methods import Method
from detcam.methods.shapley import curved_gradients
from detcam.types import Objects, image_index

CHECKED_PLACES = ((0.0, 0.0), (1.0, 1.0), (0.0, 0.5), (0.3, 0.7))  # as shares of the map's height and width
GAIN_BYTES = 6 * 2**20  # what one object's backward through a decoder of 300 queries and 6 layers takes, roughly


@dataclass(frozen=True)
class Maps:
    """Raw coarse maps of N objects, [h, w] float32 each, and for each whether its gradient is zero everywhere."""

    maps: list[Tensor]
    silent: list[bool]


def add_maps(maps: list[Tensor]) -> Tensor:
    """The sum [n, h, w] of maps [n, h_l, w_l] at the finest resolution among them.

    Signed: what one layer holds against the score cancels what another holds for it.
    """
    finest = max((m.shape[1:] for m in maps), key=lambda shape: shape[0] * shape[1])
    resized = [m if m.shape[1:] == finest else interpolate(m[:, None], finest, mode="bilinear")[:, 0] for m in maps]
    return torch.stack(resized).sum(dim=0)


def by_name(captured: list[Captured], plan: LayerPlan) -> list[Captured]:
    """The captured tensors in the plan's order, which need not be the order they ran in."""
    named = {layer.name: layer for layer in captured}
    return [named[name] for name in plan.names]


def shared_maps(method: Method, plan: LayerPlan, captured: list[Captured], objects: list[Objects]) -> Maps:
    """Maps of a method that reads activations only: made once per picture and layer, the same for all its objects."""
    own = plan.fuse == "own"
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
    if plan.fuse == "own":  # ask for the gradient at the object's own level only
        levels = torch.cat([o.level for o in objects])
        groups = [((levels == i).nonzero().flatten(), [layer]) for i, layer in enumerate(by_name(captured, plan))]
    for members, layers in groups:
        reached: set[str] = set()
        walk = curved_gradients if method.curved else object_gradients
        for turn, gradients in walk(scalars[members], images[members], [x.tensor for x in layers]):
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


def gained_maps(
    adapter: Adapter, captured: list[Captured], outputs: Any, objects: list[Objects], target: str, memory: int
) -> Maps | None:
    """Maps of gradient times activation, summed over channels, from one gain per cell; see `Adapter.gained`.

    Args:
        adapter: the model.
        captured: what the layers of the preset "level" put out.
        outputs: what the model put out, to check the run under gains against.
        objects: the objects of each picture.
        target: the scalars' name.
        memory: bytes that a chunk of objects may take, roughly.

    Returns:
        None if the model cannot be run under gains, or gives other scalars when it is.
    """
    maps: list[Tensor] = []
    for image, found in enumerate(objects):
        if not len(found):
            continue
        tensors = [layer.tensor[image : image + 1].detach() for layer in captured]
        run = adapter.gained(tensors)
        if run is None:
            return None
        gains = [t.new_ones((1, *t.shape[2:])).requires_grad_() for t in tensors]
        with torch.enable_grad():
            scalars = adapter.score(run(gains), [found], target)
        alone = [one if i == image else one.select(one.index[:0]) for i, one in enumerate(objects)]
        if not torch.allclose(scalars, adapter.score(outputs, alone, target), rtol=1e-3, atol=1e-3):
            return None
        columns = []
        for column in (scalars[:, None] if scalars.ndim == 1 else scalars).unbind(1):
            chunks = [gradients for _, gradients in batched_gradients(column, gains, memory, GAIN_BYTES)]
            columns.append(add_maps([torch.cat(parts)[:, 0].float() for parts in zip(*chunks, strict=True)]))
        maps += list(torch.stack(columns).amax(dim=0))
    return Maps(maps, [not bool(m.any()) for m in maps])


class WindowedMaps:
    """Maps of all objects at once, from gradients in windows; see `detcam.engine.windows`.

    The first time a feature level is met, windows at its corners and inside are checked against plain gradients. If
    they differ, `exact` turns False and the caller goes the full way.

    Args:
        method: how maps are made of activations and gradients.
        plan: the layers, and how their maps are fused.
        memory: bytes that a chunk of objects may take, roughly.
    """

    def __init__(self, method: Method, plan: LayerPlan, memory: int) -> None:
        self._method, self._plan, self._memory = method, plan, memory
        self._bytes: dict[int, int] = {}  # level -> bytes that one object takes, known once the level is checked
        self.exact = not method.curved

    def maps(self, captured: list[Captured], objects: list[Objects], readouts: list[Readout]) -> Maps | None:
        """The maps of all objects of a batch; None if the full way must be gone.

        Args:
            captured: the captured tensors, with the graph to the readouts' sources.
            objects: the objects of each picture.
            readouts: where the objects' scalars are read.
        """
        chosen = by_name(captured, self._plan) if self._plan.fuse == "own" else captured
        images = image_index(objects, chosen[0].tensor.device)
        asked: set[str] = set()
        reached: set[str] = set()
        maps: list[Tensor] = [torch.empty(0)] * len(images)
        silent = [True] * len(images)
        for readout in readouts:
            own = [chosen[readout.level]] if self._plan.fuse == "own" else chosen
            asked |= {layer.name for layer in own}
            if readout.level not in self._bytes:
                self._bytes[readout.level] = _checked(readout, [layer.tensor for layer in own])
            if not self._bytes[readout.level]:
                self.exact = False
                warnings.warn(
                    "gradients in windows differ from plain ones for this model: every object gets a backward of its "
                    "own from now on, which is exact and slower",
                    stacklevel=2,
                )
                return None
            step = max(self._memory // self._bytes[readout.level], 1)
            for some in torch.arange(len(readout.objects), device=images.device).split(step):
                members = readout.objects[some]
                fused, quiet = self._chunk(readout, some, own, images[members], reached)
                for place, one, zero in zip(members.tolist(), fused, quiet.tolist(), strict=True):
                    maps[place], silent[place] = one, zero
        if not reached or (asked - reached and not self._plan.cut_all):
            # The full way tells a layer that no score depends on from one that these objects have no use for.
            return None
        return Maps(maps, silent)

    def _chunk(
        self, readout: Readout, some: Tensor, layers: list[Captured], images: Tensor, reached: set[str]
    ) -> tuple[Tensor, Tensor]:
        """Whole maps [n, h, w] of some of a readout's objects, and whether each object's gradient is zero.

        The names of the layers that a gradient reached are added to `reached`.
        """
        silent = torch.ones(len(some), dtype=torch.bool, device=images.device)
        columns = []
        for column in range(readout.sources[0].gradients.shape[1]):
            seeds = [_seed(source, some, column) for source in readout.sources]
            parts = []
            tensors = [layer.tensor for layer in layers]
            found = window_gradients(seeds, tensors, images.cpu().numpy())
            for layer, tensor, window in zip(layers, tensors, found, strict=True):
                if window is None:
                    parts.append(tensor.new_zeros((len(some), *tensor.shape[2:]), dtype=torch.float32))
                    continue
                reached.add(layer.name)
                if upscaling(tensor) != 1:
                    window = Window(window.values.float() / upscaling(tensor), window.start)
                parts.append(self._layer_maps(tensor.detach(), window, images))
                blank = silent & ~parts[-1].flatten(1).any(dim=1)  # a map shows sooner that its gradient is not zero
                silent = blank.masked_scatter(blank, ~window.values[blank].flatten(1).any(dim=1))
            columns.append(add_maps(parts))
        return torch.stack(columns).amax(dim=0), silent

    def _layer_maps(self, layer: Tensor, window: Window, images: Tensor) -> Tensor:
        """[n, h, w] maps at one layer."""
        size = (layer.shape[2], layer.shape[3])
        if self._method.cellwise:
            acts = cut(layer, images.cpu().numpy(), window.start, window.extent)
            small = self._method.maps(acts.float(), window.values.float())
            return Window(small[:, None], window.start).moved(np.zeros_like(window.start), size).values[:, 0]
        # Pooled weights need whole maps, a few objects at a time; about four tensors of this size are alive.
        step = max(self._memory // (layer[0].numel() * 4 * 4), 1)
        parts = []
        for first in range(0, len(images), step):
            few = window.rows(slice(first, first + step))
            whole = few.moved(np.zeros_like(few.start), size).values
            parts.append(self._method.maps(layer[images[first : first + step]].float(), whole.float()))
        return torch.cat(parts)


def _seed(source: Source, some: Tensor, column: int) -> Seed:
    values = source.gradients[some, column] * upscaling(source.tensor)
    return Seed(source.tensor, Window(values, source.start[some].cpu().numpy()))


def _checked(readout: Readout, layers: list[Tensor]) -> int:
    """The bytes that one object's windows take; 0 if they do not hold the gradients that autograd gives.

    The first object's gradient is moved to corners and inner cells of the first picture and followed from there.
    """
    count = len(CHECKED_PLACES)
    seeds = []
    for source in readout.sources:
        values = source.gradients[:1, 0].expand(count, -1, -1, -1)
        room = np.subtract(source.tensor.shape[2:], values.shape[2:])
        seeds.append(Seed(source.tensor, Window(values, np.rint(np.array(CHECKED_PLACES) * room).astype(np.int64))))
    return -(-windows_agree(seeds, layers, np.zeros(count, np.int64)) // count)
