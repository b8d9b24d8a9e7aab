"""From captured tensors and scalars to one raw coarse map per object: three ways, one result.

- `shared_maps`: methods that do not look at the object.
- `full_maps`: one backward through everything after the cut, for each object. Works for any model, layer and scalar.
- `LocalMaps`: all objects in one backward, each in its own window. Exact, where the adapter can run the rest of its
  model on crops; see `detcam.engine.windows`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from detcam.adapters import Adapter, LayerPlan, LocalScore
from detcam.engine import (
    CHECKED_CELLS,
    Captured,
    Reach,
    Windows,
    measure_reach,
    object_gradients,
    window_gradients,
    windows_agree,
)
from detcam.errors import LayerError
from detcam.methods import Method
from detcam.types import Objects, image_index


@dataclass(frozen=True)
class Maps:
    """Raw coarse maps of N objects, [h, w] float32 each, and for each whether its gradient is zero everywhere."""

    maps: list[Tensor]
    silent: list[bool]


def add_maps(maps: list[Tensor]) -> Tensor:
    """The sum [n, h, w] of maps [n, h_l, w_l] at the finest resolution among them."""
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
    per_layer = [method.maps(layer.tensor.detach().float(), None) for layer in layers]
    fused = None if own else add_maps(per_layer)
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
        for turn, gradients in object_gradients(scalars[members], images[members], [x.tensor for x in layers]):
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


class LocalMaps:
    """Maps of all objects from windows, for a plan and a target that the adapter can replay on crops.

    The first time a feature level is met, its reach is measured and its windows are checked against whole-map
    gradients at six cells, corners among them. If they differ, `exact` turns False and the caller goes the full way.

    Args:
        adapter: the model.
        method: how maps are made of activations and gradients.
        plan: the layers.
        target: the name of the scalar.
        memory: bytes that a chunk of objects may take, roughly.
    """

    def __init__(self, adapter: Adapter, method: Method, plan: LayerPlan, target: str, memory: int) -> None:
        self._method, self._plan, self._memory = method, plan, memory
        self._locals = [adapter.local(self._names(level), level, target) for level in range(adapter.levels)]
        self._reach: dict[int, Reach | None] = {}
        self.beside = tuple({name: None for local in self._locals if local for name in local.beside})
        self.exact = all(local is not None for local in self._locals)

    def _names(self, level: int) -> tuple[str, ...]:
        return (self._plan.names[level],) if self._plan.fuse == "own" else self._plan.names

    def maps(self, captured: list[Captured], objects: list[Objects], size: tuple[int, int]) -> Maps | None:
        """The maps of all objects of a batch whose network input has `size`; None if windows proved not exact."""
        named = {layer.name: layer.tensor.detach() for layer in captured}
        levels = torch.cat([o.level for o in objects])
        images = image_index(objects, levels.device)
        cells = torch.cat([o.cells for o in objects])
        classes = torch.cat([o.class_ids for o in objects])
        maps: list[Tensor] = [torch.empty(0)] * len(levels)
        silent = torch.ones(len(levels), dtype=torch.bool, device=levels.device)
        for level in levels.unique().tolist():
            members = (levels == level).nonzero().flatten()
            local = self._locals[level]
            assert local is not None  # see `exact`
            tensors = [named[name] for name in (*self._names(level), *local.beside)]
            strides = [size[0] // tensor.shape[2] for tensor in tensors]
            if not self._checked(level, local, tensors, strides, classes[members]):
                self.exact = False
                return None
            windows = window_gradients(
                local.replay,
                _score_of(local, classes[members]),
                tensors,
                strides,
                self._reach[level],
                images[members],
                cells[members],
                self._memory,
            )
            explained = tensors[: len(self._names(level))]
            fused, quiet = self._assembled(windows, explained, images[members])
            silent[members] = quiet
            for place, one in zip(members.tolist(), fused, strict=True):
                maps[place] = one
        return Maps(maps, silent.tolist())

    def _checked(
        self, level: int, local: LocalScore, tensors: list[Tensor], strides: list[int], classes: Tensor
    ) -> bool:
        """Measure the level's reach and check its windows, once."""
        if level not in self._reach:
            reach = measure_reach(local.replay, tensors, strides, local.stride)
            self._reach[level] = reach
            if reach is not None:
                return windows_agree(
                    local.replay,
                    _score_of(local, classes[:1].expand(len(CHECKED_CELLS))),
                    tensors,
                    strides,
                    reach,
                )
        return True

    def _assembled(self, windows: Iterator[Windows], tensors: list[Tensor], images: Tensor) -> tuple[Tensor, Tensor]:
        """Whole maps [n, h, w] from windows, fused over tensors and scalars, and whether each gradient is zero."""
        n = len(images)
        sums: dict[int, list[Tensor]] = {}  # column -> one [n, h, w] for each tensor
        silent = torch.ones(n, dtype=torch.bool, device=images.device)
        for part in windows:
            if part.column not in sums:
                sums[part.column] = [t.new_zeros((n, *t.shape[2:]), dtype=torch.float32) for t in tensors]
            for whole, tensor, acts, grads, corner in zip(
                sums[part.column], tensors, part.acts, part.grads, part.corners, strict=False
            ):  # what stands beside the explained tensors is left out
                silent[part.objects] &= ~grads.flatten(1).any(dim=1)
                if self._method.cellwise:
                    paste(whole, part.objects, self._method.maps(acts.float(), grads.float()), corner)
                else:
                    self._paste_pooled(whole, part.objects, tensor[images[part.objects]], grads, corner)
        columns = [add_maps(parts) for parts in sums.values()]
        return torch.stack(columns).amax(dim=0), silent

    def _paste_pooled(
        self, whole: Tensor, objects: Tensor, acts: Tensor, grads: Tensor, corner: tuple[Tensor, ...]
    ) -> None:
        """Pooled weights need whole maps: spread each window over one, a few objects at a time."""
        step = max(self._memory // (acts[0].numel() * 4 * 4), 1)  # float32; about four tensors of this size are alive
        for some in torch.arange(len(objects), device=objects.device).split(step):
            spread = torch.zeros((len(some), *acts.shape[1:]), device=grads.device)
            here = (corner[0][some], corner[1][some])
            paste(spread, torch.arange(len(some)), grads[some].float(), here)
            whole[objects[some]] = self._method.maps(acts[some].float(), spread)


def _score_of(local: LocalScore, classes: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """The scalars of some of the objects whose classes [N] are given."""
    return lambda values, which: local.score(values, classes[which])


def paste(whole: Tensor, rows: Tensor, parts: Tensor, corner: tuple[Tensor, ...]) -> None:
    """Write parts [n, ..., kh, kw] into whole [N, ..., h, w] at `rows`, with their first cells at `corner`."""
    height, width = parts.shape[-2:]
    places = zip(rows.tolist(), corner[0].tolist(), corner[1].tolist(), parts, strict=True)
    for row, y, x, part in places:
        whole[row, ..., y : y + height, x : x + width] = part
