"""Stages of a classifier: the module of its last map, and the modules at the ends of the earlier stages.

A forward and a backward of the model find them, without a table of architectures.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

LARGEST_PREFIX = 8  # class tokens, distillation tokens and registers before the patches


@dataclass(frozen=True)
class Stages:
    """The modules whose outputs are a model's maps."""

    last: str | None  # the module of the last map that the scores depend on; None if there is no such map
    earlier: tuple[str, ...]  # the modules at the ends of the earlier stages, in the order they run
    sizes: tuple[tuple[int, int], ...]  # the (h, w) of all maps, to find maps in sequences of tokens


@dataclass(frozen=True)
class _Event:
    """The output of a module: a map [1, C, h, w] or [1, h, w, C], or tokens [1, L, C] that hold a map."""

    name: str
    tensor: Tensor
    first: int  # the map's first token
    cells: tuple[int, int]
    plain: bool = False  # [1, C, h, w], rather than [1, h, w, C] or tokens


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
    once = [(name, tensor) for name, tensor in outputs if runs[name] == 1]
    events, sizes = _events(once, module, (pixels.shape[2], pixels.shape[3]))
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


def token_grid(tokens: int, sizes: Sequence[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """See `Adapter.grids`: at most one map in a sequence, of one of the `sizes`, or of such a size halved."""
    cells = [(rows >> n, columns >> n) for rows, columns in sizes for n in range(4)]
    fits = ((p, h, w) for p in range(LARGEST_PREFIX + 1) for h, w in cells if h * w > 1 and p + h * w == tokens)
    return list(islice(fits, 1))


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


def _events(
    outputs: list[tuple[str, Tensor]], module: nn.Module, size: tuple[int, int]
) -> tuple[list[_Event], list[tuple[int, int]]]:
    """The outputs that are or hold maps of an input of `size`, and the (h, w) of the maps."""
    events: list[_Event] = []
    sizes: list[tuple[int, int]] = []
    for name, tensor in outputs:
        if tensor.ndim == 4:
            last = channels_last(size, module.get_submodule(name), tensor.shape)
            cells = (tensor.shape[1], tensor.shape[2]) if last else (tensor.shape[2], tensor.shape[3])
            if _is_map(cells, size):
                if cells not in sizes:
                    sizes.append(cells)
                events.append(_Event(name, tensor, 0, cells, not last))
        elif tensor.ndim == 3:
            for first, rows, columns in token_grid(tensor.shape[1], sizes[::-1]):
                events.append(_Event(name, tensor, first, (rows, columns)))
    return events, list(reversed(sizes))


def _is_map(cells: tuple[int, int], size: tuple[int, int]) -> bool:
    """Whether a tensor has several cells and the aspect of the input, unlike attention."""
    (h, w), (height, width) = cells, size
    return 1 < h <= height // 2 and 1 < w <= width // 2 and _fits(cells, size)


def _fits(cells: Sequence[int], size: tuple[int, int]) -> bool:
    """Whether a map has the aspect of the input, to the rounding of a cell, and a stride, unlike attention."""
    return abs(cells[0] * size[1] - cells[1] * size[0]) <= max(size) and not size[0] / 2 + 1 < cells[0] < size[0] - 8


def channels_last(size: tuple[int, int], module: nn.Module, shape: Sequence[int]) -> bool | None:
    """Whether an output of a module is [B, h, w, C] rather than [B, C, h, w]; None: it is not known to be either.

    The axes with the aspect of the input tell; if both or neither have it, the kind of the module.

    Args:
        size: (height, width) of the network's input, in pixels.
        module: the module.
        shape: of its output.
    """
    first, last = _fits(shape[2:], size), _fits(shape[1:3], size)
    while isinstance(module, nn.Sequential) and len(module):
        module = module[-1]
    kind = type(module)
    weights = kind in (nn.Softmax, nn.Dropout) and shape[2] == shape[3]
    if weights or not (first or last) or (kind.__name__, kind.__module__) == ("TransformerLayer", "timm.models.nest"):
        names = (type(part).__name__ for part in module.modules())
        telling = [name for name in names if "2d" in name or name in ("Linear", "LayerNorm", "Softmax")]
        return False if telling and "2d" in telling[-1] else None  # convolutions may cut borders off; or windows
    swin = "swin" in kind.__module__ and not isinstance(module, nn.Conv2d) and kind.__name__ != "Permute"
    return last if first != last else kind in (nn.Linear, nn.LayerNorm) or (last and swin)


def _named(events: list[_Event], module: nn.Module) -> list[_Event]:
    """Each tensor once, by its outermost module; of token sequences the outputs of blocks, if there are any."""
    chosen: dict[tuple[int, int], _Event] = {}
    for event in events:
        # A map and its transposed view are the same map.
        key = (event.tensor.data_ptr(), event.tensor.numel()) if event.tensor.ndim == 4 else (id(event.tensor), 0)
        other = chosen.get(key)
        if other is None or (
            event.name.count(".") < other.name.count(".")
            and not isinstance(module.get_submodule(event.name), nn.Identity)
        ):
            chosen[key] = event
    named = list(chosen.values())
    blocks = [e for e in named if e.plain or _in_sequence(e.name, module)]
    return blocks if not all(e.plain for e in blocks) else named


def _in_sequence(name: str, module: nn.Module) -> bool:
    """Whether a module is a step of a sequence, or the sequence itself."""
    parent = module.get_submodule(name.rpartition(".")[0])
    return isinstance(parent, (nn.Sequential, nn.ModuleList)) or isinstance(module.get_submodule(name), nn.Sequential)


def _inside_another(event: _Event, events: list[_Event], module: nn.Module) -> bool:
    """Whether an event lies inside a block whose output has another size, e.g. parallel to a skip connection."""
    return any(
        event.name.startswith(f"{outer.name}.")
        and outer.cells != event.cells
        and not isinstance(module.get_submodule(outer.name), nn.Sequential)
        for outer in events
    )
