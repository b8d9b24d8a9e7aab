"""Stages of a classifier: the module of its last map, and the modules at the ends of the earlier stages.

A forward and a backward of the model find them, without a table of architectures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

LARGEST_PREFIX = 8  # class tokens, distillation tokens and registers before the patches


@dataclass(frozen=True)
class Stages:
    """The modules whose outputs are a model's maps.

    Attributes:
        last: the module of the last map that the scores depend on; None if there is no such map.
        earlier: the modules at the ends of the earlier stages, in the order they run.
        sizes: the (h, w) of all maps, to find maps in sequences of tokens.
    """

    last: str | None
    earlier: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class _Event:
    """The output of a module: a map [1, C, h, w], or a sequence of tokens [1, L, C] that holds a map."""

    name: str
    tensor: Tensor
    first: int  # the map's first token
    cells: tuple[int, int]


def find_stages(module: nn.Module, logits: Callable[[Tensor], Tensor], pixels: Tensor) -> Stages:
    """The modules of a classifier whose outputs are its maps.

    Args:
        module: the classifier, in eval mode.
        logits: function from pixels to class logits [1, K] that runs `module`.
        pixels: [1, 3, H, W], any preprocessed image.
    """
    outputs: list[tuple[str, Tensor]] = []
    pooled: list[Tensor] = []
    handles = [
        m.register_forward_hook(partial(_record, outputs, pooled, name))
        for name, m in module.named_modules()
        if name and not type(m).__name__.startswith("Adaptive")
    ]
    try:
        with torch.inference_mode(False), torch.enable_grad():
            scores = logits(pixels.clone().requires_grad_())
            # An untrained head may be all zeros; then the gradient of its input shows what the scores depend on.
            scalars = [scores.amax(), *(p.sin().sum() for p in reversed(pooled))]
    finally:
        for handle in handles:
            handle.remove()
    runs = Counter(name for name, _ in outputs)
    events, sizes = _events([(name, t) for name, t in outputs if runs[name] == 1], (pixels.shape[2], pixels.shape[3]))
    alive = next(filter(None, (_alive(scalar, events) for scalar in scalars)), [])
    named = _named(alive, module)
    if not named:
        return Stages(None, (), tuple(sizes))
    last = named[-1]
    ends: dict[tuple[int, int], str] = {}
    for event in named:
        coarse = 4 * event.cells[0] <= pixels.shape[2]
        if event.cells != last.cells and coarse and not _inside_another(event, alive, module):
            ends.pop(event.cells, None)  # keep the order of the last maps
            ends[event.cells] = event.name
    if not ends and len(named) > 1:  # a transformer of one resolution: the patches before the first block
        ends[last.cells] = named[0].name
    return Stages(last.name, tuple(ends.values()), tuple(sizes))


def token_grid(tokens: int, sizes: tuple[tuple[int, int], ...]) -> tuple[int, int, int] | None:
    """(first token, rows, columns) of the map in a sequence: of one of the `sizes`, or of such a size halved."""
    for prefix in range(LARGEST_PREFIX + 1):
        for rows, columns in sizes:
            for halving in range(4):
                h, w = rows >> halving, columns >> halving
                if h * w > 1 and prefix + h * w == tokens:
                    return prefix, h, w
    return None


def _record(
    outputs: list[tuple[str, Tensor]], pooled: list[Tensor], name: str, module: nn.Module, args: Any, output: Any
) -> None:
    """Keep a module's output if it is a single tensor with a gradient, and the input of linear layers on [B, C]."""
    if isinstance(output, (tuple, list)):
        tensors = [part for part in output if isinstance(part, Tensor)]
        output = tensors[0] if len(tensors) == 1 else None
    if isinstance(output, Tensor) and output.requires_grad and len(output) == 1:
        outputs.append((name, output))
        if isinstance(module, nn.Linear) and output.ndim == 2:
            pooled.append(args[0])


def _alive(scalar: Tensor, events: list[_Event]) -> list[_Event]:
    """The events whose map the scalar depends on; after the last block it may depend on the class token only."""
    if not events or not scalar.requires_grad:
        return []
    gradients = torch.autograd.grad(scalar, [e.tensor for e in events], retain_graph=True, allow_unused=True)
    return [e for e, gradient in zip(events, gradients, strict=True) if gradient is not None and _any(e, gradient)]


def _any(event: _Event, gradient: Tensor) -> bool:
    if gradient.ndim == 3:
        gradient = gradient[:, event.first : event.first + event.cells[0] * event.cells[1]]
    return bool(gradient.any())


def _events(outputs: list[tuple[str, Tensor]], size: tuple[int, int]) -> tuple[list[_Event], list[tuple[int, int]]]:
    """The outputs that are or hold maps of an input of `size`, and the (h, w) of the maps."""
    events: list[_Event] = []
    sizes: list[tuple[int, int]] = []
    for name, tensor in outputs:
        if tensor.ndim == 4 and _is_map((tensor.shape[2], tensor.shape[3]), size):
            cells = (tensor.shape[2], tensor.shape[3])
            if cells not in sizes:
                sizes.append(cells)
            events.append(_Event(name, tensor, 0, cells))
        elif tensor.ndim == 3:
            grid = token_grid(tensor.shape[1], tuple(reversed(sizes)))
            if grid is not None:
                events.append(_Event(name, tensor, grid[0], grid[1:]))
    return events, list(reversed(sizes))


def _is_map(cells: tuple[int, int], size: tuple[int, int]) -> bool:
    """Whether a tensor has several cells and the aspect of the input, unlike attention and maps [B, h, w, C]."""
    (h, w), (height, width) = cells, size
    return 1 < h <= height // 2 and 1 < w <= width // 2 and abs(h * width - w * height) <= max(size)


def _named(events: list[_Event], module: nn.Module) -> list[_Event]:
    """Each tensor once, by its outermost module; of token sequences the outputs of blocks, if there are blocks."""
    chosen: dict[int, _Event] = {}
    for event in events:
        other = chosen.get(id(event.tensor))
        if other is None or (
            event.name.count(".") < other.name.count(".")
            and not isinstance(module.get_submodule(event.name), nn.Identity)
        ):
            chosen[id(event.tensor)] = event
    named = list(chosen.values())
    blocks = [e for e in named if e.tensor.ndim == 4 or _in_sequence(e.name, module)]
    return blocks if any(e.tensor.ndim == 3 for e in blocks) else named


def _in_sequence(name: str, module: nn.Module) -> bool:
    return isinstance(module.get_submodule(name.rpartition(".")[0]), (nn.Sequential, nn.ModuleList))


def _inside_another(event: _Event, events: list[_Event], module: nn.Module) -> bool:
    """Whether an event lies inside a block whose output has another size, e.g. parallel to a skip connection."""
    return any(
        event.name.startswith(f"{outer.name}.")
        and outer.cells != event.cells
        and not isinstance(module.get_submodule(outer.name), nn.Sequential)
        for outer in events
    )
