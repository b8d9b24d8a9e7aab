"""Maps from gradients in windows: one walk back through the graph for all objects, each in a small window.

Exact where the adapter knows the cells of the output maps that the scalars are read from.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from detcam.adapters import LayerPlan, Readout, Source
from detcam.engine import Captured, NoRule, Seed, Window, cut, upscaling, window_gradients, windows_agree
from detcam.methods import Method
from detcam.runners.base import Maps, add_maps, by_name
from detcam.types import Objects, image_index

LARGE = 8 * 2**20  # bytes of the windows of one object from which on it is cheaper alone: cut out without a copy
DIFFER = "differ from autograd's for this model"
CHECKED_PLACES = ((0.0, 0.0), (1.0, 1.0), (0.0, 0.5))  # as shares of the map's height and width


class WindowedMaps:
    """Maps of all objects from gradients in windows; see `detcam.engine.window_gradients`.

    The first time that a feature level occurs, windows at its corners and those of an object are compared with
    autograd's gradients, of the object's very scalar.

    Args:
        method: how maps are made of activations and gradients.
        plan: the layers, and how their maps are fused.
        memory: bytes that a chunk of objects may take, roughly.
    """

    def __init__(self, method: Method, plan: LayerPlan, memory: int) -> None:
        self._method, self._plan, self._memory = method, plan, memory
        self._bytes: dict[int, int] = {}  # level -> bytes per object, for the levels that were compared

    def maps(
        self, captured: list[Captured], objects: list[Objects], readouts: list[Readout], scalars: Callable[[], Tensor]
    ) -> Maps | None:
        """The maps of all objects of a batch; None if every object needs its own backward.

        Args:
            captured: the captured tensors, with the graph to the readouts' sources.
            objects: the objects of each image.
            readouts: where the objects' scalars are read.
            scalars: makes the objects' scalars, [N, K], to compare with.

        Raises:
            NoRule: if the windows are not exact, or a part of the model runs in autograd's engine only.
        """
        layers = by_name(captured, self._plan) if self._plan.fuse == "level" else captured
        images = image_index(objects, layers[0].tensor.device)
        wanted: set[str] = set()
        reached: set[str] = set()
        maps: list[Tensor] = [torch.empty(0)] * len(images)
        zero_gradient = [True] * len(images)
        for readout in readouts:
            at = [layers[readout.level]] if self._plan.fuse == "level" else layers
            wanted |= {layer.name for layer in at}
            if readout.level not in self._bytes:
                self._bytes[readout.level] = _bytes(readout, [layer.tensor for layer in at], images, scalars())
            each = self._bytes[readout.level]
            step = 1 if each > LARGE and not images.is_cuda else max(self._memory // each, 1)
            for chunk in torch.arange(len(readout.objects), device=images.device).split(step):
                members = readout.objects[chunk]
                fused, zero = self._chunk_maps(readout, chunk, at, images[members], reached)
                for place, raw, flag in zip(members.tolist(), fused, zero.tolist(), strict=True):
                    maps[place], zero_gradient[place] = raw, flag
        if not reached or (wanted - reached and not self._plan.cut_all):
            # A full backward distinguishes a layer that no score depends on from one that these objects do not reach.
            return None
        return Maps(maps, zero_gradient)

    def _chunk_maps(
        self, readout: Readout, chunk: Tensor, layers: list[Captured], images: Tensor, reached: set[str]
    ) -> tuple[Tensor, Tensor]:
        """Whole maps [n, h, w] of a chunk of a readout's objects, and for each whether its gradient is zero, [n] bool.

        The names of the layers that a gradient reaches are added to `reached`.
        """
        zero_gradient = torch.ones(len(chunk), dtype=torch.bool, device=images.device)
        columns = []
        for column in range(readout.sources[0].gradients.shape[1]):
            seeds = [_seed(source, chunk, column) for source in readout.sources]
            parts = []
            tensors = [layer.tensor for layer in layers]
            windows = window_gradients(seeds, tensors, images.cpu().numpy())
            for layer, tensor, window in zip(layers, tensors, windows, strict=True):
                if window is None:
                    parts.append(tensor.new_zeros((len(chunk), *tensor.shape[2:]), dtype=torch.float32))
                    continue
                reached.add(layer.name)
                if upscaling(tensor) != 1:
                    window = Window(window.values.float() / upscaling(tensor), window.start)
                parts.append(self._layer_maps(layer.acts, window, images))
                # A map is smaller than its gradient: only where the map is blank is the gradient looked at.
                blank = zero_gradient & ~parts[-1].flatten(1).any(dim=1)
                zero_gradient = blank.masked_scatter(blank, ~window.values[blank].flatten(1).any(dim=1))
            columns.append(add_maps(parts))
        return torch.stack(columns).amax(dim=0), zero_gradient

    def _layer_maps(self, acts: Tensor, window: Window, images: Tensor) -> Tensor:
        """[n, h, w] maps at one layer, of activations [B, C, h, w]."""
        size = (acts.shape[2], acts.shape[3])
        if self._method.elementwise:
            seen = cut(acts, images.cpu().numpy(), window.start, window.extent)
            small = self._method.maps(seen.float(), window.values.float())
            return Window(small[:, None], window.start).moved(np.zeros_like(window.start), size).values[:, 0]
        # Pooled weights need whole maps: a few objects at a time, for which about four tensors of this size are alive.
        step = max(self._memory // (acts[0].numel() * 4 * 4), 1)
        parts = []
        for first in range(0, len(images), step):
            few = window.rows(slice(first, first + step))
            whole = few.moved(np.zeros_like(few.start), size).values
            parts.append(self._method.maps(acts[images[first : first + step]].float(), whole.float()))
        return torch.cat(parts)


def _seed(source: Source, chunk: Tensor, column: int) -> Seed:
    values = source.gradients[chunk, column] * upscaling(source.tensor)
    values = values.contiguous(memory_format=torch.channels_last)  # convolutions keep the order, and run faster in it
    return Seed(source.tensor, Window(values, source.start[chunk].cpu().numpy()))


def _bytes(readout: Readout, layers: list[Tensor], images: Tensor, scalars: Tensor) -> int:
    """The bytes that the windows of one object take.

    The first object's gradient is compared where it is, and moved to corners and an edge of the first image.

    Raises:
        NoRule: if the windows differ from autograd's gradients.
    """
    first = readout.objects[:1]
    columns = range(readout.sources[0].gradients.shape[1])
    own = [_seed(source, first.new_zeros(1), column) for source in readout.sources for column in columns]
    if not windows_agree(own, layers, images[first].cpu().numpy(), scalars[first].sum(dim=1)):
        raise NoRule(DIFFER)
    count = len(CHECKED_PLACES)
    seeds = []
    for source in readout.sources:
        values = source.gradients[:1, 0].expand(count, -1, -1, -1)
        room = np.subtract(source.tensor.shape[2:], values.shape[2:])
        seeds.append(Seed(source.tensor, Window(values, np.rint(np.array(CHECKED_PLACES) * room).astype(np.int64))))
    held = windows_agree(seeds, layers, np.zeros(count, np.int64))
    if not held:
        raise NoRule(DIFFER)
    return -(-held // count)
