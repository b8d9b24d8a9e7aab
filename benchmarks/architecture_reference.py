"""Reference of the sweep: axes of outputs without detcam's rules, and maps at them by plain autograd."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.utils._pytree import tree_leaves, tree_map

from benchmarks.architecture_models import Size

REDUCTIONS = (1, 2, 4, 8, 14, 16, 32, 64)  # pixels of the input for each cell
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """Where the map lies in an output: its (h, w) axes, or its grids (first token, h, w) among tokens."""

    name: str
    rows: int = 0  # the axis of h; that of w is the next
    grids: tuple[tuple[int, int, int], ...] = ()

    def map_of(self, values: Tensor) -> list[Tensor]:
        """Maps [h, w], the sum over channels, of values [1, ...]."""
        if self.grids:
            return [values[0, a : a + h * w].sum(dim=1).unflatten(0, (h, w)) for a, h, w in self.grids]
        channels = 1 if self.rows == 2 else 3
        return [values.sum(dim=channels)[0]]


class Recording:
    """While active, records the outputs of modules; with `cut` each continues as a leaf of the graph."""

    def __init__(self, module: nn.Module, names: Sequence[str] | None, cut: bool = False) -> None:
        self.outputs: dict[str, list[list[Tensor]]] = {}
        named = dict(module.named_modules())
        chosen = [name for name in named if name] if names is None else names
        self._handles = [named[name].register_forward_hook(self._hook(name, cut)) for name in chosen]

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, *reason: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _hook(self, name: str, cut: bool) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            if cut:
                output = tree_map(lambda t: t.detach().requires_grad_() if _graded(t) else t, output)
            output = tree_map(lambda t: t.clone() if _graded(t) else t, output)  # as this output only
            self.outputs.setdefault(name, []).append([t for t in tree_leaves(output) if _graded(t)])
            return tree_map(lambda t: t.clone() if _graded(t) else t, output)  # what follows may work in place

        return hook


def _graded(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.ndim in (3, 4)


def layout_of(shape: Shape, other: Shape | None, sizes: tuple[Size, Size], prefixes: list[int]) -> Layout | None:
    """The layout of an output, from its shapes at two input sizes; None if it is no map."""
    if other is None:
        pairs = [
            axis for axis in range(1, len(shape) - 1) if len(shape) == 4 and _reduced(shape[axis : axis + 2], sizes[0])
        ]
        return Layout("[B, C, h, w]" if pairs[0] == 2 else "[B, h, w, C]", pairs[0]) if len(pairs) == 1 else None
    if len(shape) != len(other) or shape[0] != 1 or other[0] != 1:
        return None
    if len(shape) == 4:
        moved = [axis for axis in (1, 2, 3) if shape[axis] != other[axis]]
        adaptive = not moved and shape[2] == shape[3] and shape[1] > shape[2]
        if adaptive:
            return Layout("[B, C, h, w]", 2)  # pooled to a fixed number of cells
        steady = all(abs(a[0] * b[1] - b[0] * a[1]) <= 2 * max(b) for a, b in _pairs(shape, other, sizes, moved))
        if len(moved) != 2 or moved[1] != moved[0] + 1 or not steady:
            return None
        return Layout("[B, C, h, w]" if moved[0] == 2 else "[B, h, w, C]", moved[0])
    grids = [_grids(length, size, prefixes) for length, size in ((shape[1], sizes[0]), (other[1], sizes[1]))]
    if shape[1] == other[1] or shape[2] != other[2] or not all(grids):
        return None
    return Layout("tokens", grids=grids[0]) if len(grids[0]) == len(grids[1]) else None


def _reduced(cells: Shape, size: Size) -> bool:
    return any(cells == (-(-size[0] // r), -(-size[1] // r)) for r in REDUCTIONS)


def _pairs(shape: Any, other: Any, sizes: tuple[Size, Size], moved: list[int]) -> Iterator[tuple[Any, Any]]:
    """((cells here, cells there), (pixels here, pixels there)) of the two axes."""
    for axis, side in zip(moved, (0, 1), strict=False):
        yield (shape[axis], other[axis]), (sizes[0][side], sizes[1][side])


def _grids(tokens: int, size: Size, prefixes: list[int]) -> tuple[tuple[int, int, int], ...]:
    for first in range(len(REDUCTIONS)):
        for last in range(first + 1, len(REDUCTIONS) + 1):
            run = [r for r in REDUCTIONS if r != 14][first:last] if last > first + 1 else [REDUCTIONS[first]]
            cells = [(-(-size[0] // r), -(-size[1] // r)) for r in run]
            for prefix in prefixes if len(run) == 1 else [0]:
                if prefix + sum(h * w for h, w in cells) == tokens and cells[0][0] * cells[0][1] > 1:
                    starts = np.cumsum([prefix, *(h * w for h, w in cells)]).tolist()
                    return tuple((a, h, w) for a, (h, w) in zip(starts, cells, strict=False))
    return ()


@dataclass(frozen=True)
class Plain:
    """A map by plain autograd, gradient times activation, and the largest sum of its products' absolute values."""

    map: Tensor  # [h, w]
    products: float


class Reference:
    """The maps of objects by plain autograd at the outputs of modules, from one forward."""

    def __init__(self, network: Any, names: Sequence[str], cut: bool, objects: Any, layouts: dict[str, Any]) -> None:
        adapter, pixels = network.adapter, network.pixels.clone().requires_grad_()
        with torch.enable_grad(), Recording(adapter.module, names, cut) as recording:
            outputs = adapter.forward(pixels * 1, 2)
            self._scalars = adapter.score(outputs, [objects], "class").flatten()
        self._outputs, self._layouts = recording.outputs, layouts

    def of(self, row: int, names: Sequence[str]) -> Plain | None:
        """The map of an object, added over modules; None if its score depends on none of them."""
        placed = [
            pair
            for name in names
            for pair in zip(self._outputs[name][0], self._layouts[name], strict=True)
            if pair[1] is not None and pair[0].requires_grad
        ]
        tensors = [t for t, _ in placed]
        gradients = torch.autograd.grad(self._scalars[row], tensors, retain_graph=True, allow_unused=True)
        parts, products = [], 0.0
        for (t, layout), g in zip(placed, gradients, strict=True):
            if g is not None:
                parts += layout.map_of(t.detach() * g)
                products += max(float(part.amax()) for part in layout.map_of((t.detach() * g).abs()))
        return Plain(fused(parts), products) if parts else None


def fused(parts: list[Tensor]) -> Tensor:
    """Maps added at the finest resolution among them."""
    finest = max((part.shape for part in parts), key=lambda shape: shape[0] * shape[1])
    return torch.stack([interpolate(p[None, None], finest, mode="bilinear")[0, 0] for p in parts]).sum(dim=0)
