"""Windowed maps: the gradients of all objects in one walk back, each in its own small window.

Exact where the adapter knows at which cells the scalars are read.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

from detcam.adapters import LayerPlan, Readout, Source
from detcam.engine import (
    Captured,
    Seed,
    Window,
    cut,
    upscaling,
    window_gradients,
    windows_agree,
)
from detcam.methods import Method
from detcam.runners.base import Maps, add_maps, by_name
from detcam.types import Objects, image_index

CHECKED_PLACES = ((0.0, 0.0), (1.0, 1.0), (0.0, 0.5), (0.3, 0.7))  # as shares of the map's height and width


class WindowedMaps:
    """Maps of all objects at once, from gradients in windows; see `detcam.engine.window_gradients`.

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
        self.exact = not method.second_order

    def maps(self, captured: list[Captured], objects: list[Objects], readouts: list[Readout]) -> Maps | None:
        """The maps of all objects of a batch; None if the full way must be gone.

        Args:
            captured: the captured tensors, with the graph to the readouts' sources.
            objects: the objects of each picture.
            readouts: where the objects' scalars are read.
        """
        chosen = by_name(captured, self._plan) if self._plan.fuse == "level" else captured
        images = image_index(objects, chosen[0].tensor.device)
        asked: set[str] = set()
        reached: set[str] = set()
        maps: list[Tensor] = [torch.empty(0)] * len(images)
        silent = [True] * len(images)
        for readout in readouts:
            own = [chosen[readout.level]] if self._plan.fuse == "level" else chosen
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
        if self._method.elementwise:
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
