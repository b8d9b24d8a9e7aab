"""Capture the outputs of modules during one forward, and start the autograd graph there."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from detcam.errors import LayerError


@dataclass(frozen=True)
class Captured:
    """An output [B, C, h, w] of a module, with the graph from it to the model's outputs."""

    name: str  # see `Capture`
    tensor: Tensor  # the output, as the model continued with it
    # [B, C, h, w] what the output of a baseline lacks, where the tensor lies on the way to one.
    difference: Tensor | None = None

    @property
    def acts(self) -> Tensor:
        """[B, C, h, w] what a method multiplies gradients with: the activations, or the difference."""
        return self.tensor.detach() if self.difference is None else self.difference


class Reached(Exception):
    """Ends a forward of which only the captured tensors are needed."""


def module_name(name: str) -> str:
    """The name of the module whose output was captured: without the run and the place in the output."""
    return name.split("#")[0].split("[")[0]


class Capture:
    """While active, records the outputs of the named modules and cuts the graph there.

    A captured tensor becomes a leaf of the autograd graph if nothing before it was captured, so that a backward stops
    there. With `cut_all` every captured tensor becomes a leaf: gradients are then local and do not pass
    through other captured tensors. Given names of modules, `cut_all` holds for these modules only. Outputs may be
    tensors or nested tuples, lists and dicts, of which all floating-point tensors of four dimensions are captured, as
    `name[key]`. A module that runs several times gives `name`, `name#1`, ... Maps that lie in a sequence of tokens
    [B, L, C] are captured as maps, and the model continues with a sequence made of them.

    The forward must run on a model whose parameters do not require grad, see `detcam.engine.shadow`: then nothing
    is recorded before the first cut, and the backbone costs no more than without gradients.

    Args:
        modules: name -> module.
        cut_all: cut at every module, or at the modules of these names, rather than at the earliest modules only.
        grids: from a number of tokens to the (first token, rows, columns) of each map among them.
        channels_last: whether an output of a module, by its shape, is [B, h, w, C] or [B, C, h, w]; None: it is no map.
        reshape: makes the map [B, C, h, w] of any output in place of `grids` and `channels_last`; it only moves values.
        given: captured name -> the output with which the model continues in place of its output.
        until: captured names; `Reached` ends the forward when all of them are captured.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        cut_all: bool | Collection[str] = True,
        grids: Callable[[int], list[tuple[int, int, int]]] = lambda tokens: [],
        channels_last: Callable[[nn.Module, Sequence[int]], bool | None] = lambda module, shape: False,
        reshape: Callable[[Tensor], Tensor] | None = None,
        given: Mapping[str, Tensor] | None = None,
        until: Collection[str] | None = None,
    ) -> None:
        self._modules = dict(modules)
        self._cut_names = cut_all if not isinstance(cut_all, bool) else self._modules if cut_all else ()
        self._grids, self._channels_last, self._reshape, self._given = grids, channels_last, reshape, given or {}
        self._left = None if until is None else set(until)
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._runs: dict[str, int] = {}
        self.captured: list[Captured] = []

    def __enter__(self) -> Capture:
        for name, module in self._modules.items():
            self._handles.append(module.register_forward_hook(self._hook(name)))
        return self

    def __exit__(self, *reason: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def missing(self) -> list[str]:
        """The names of modules that did not run, or have no output [B, C, h, w]."""
        seen = {module_name(captured.name) for captured in self.captured}
        return [name for name in self._modules if name not in seen]

    def _hook(self, name: str) -> Callable[[nn.Module, Any, Any], Any]:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            run = self._runs.get(name, 0)
            self._runs[name] = run + 1
            return self._cut(output, f"{name}#{run}" if run else name)

        return hook

    def _cut(self, output: Any, name: str) -> Any:
        if isinstance(output, Tensor):
            if not output.is_floating_point() or not output.numel():
                return output
            if self._reshape is not None:
                return self._cut_reshaped(output, name, self._reshape)
            if output.ndim == 3:
                return self._cut_tokens(output, name)
            last = self._channels_last(self._modules[module_name(name)], output.shape) if output.ndim == 4 else None
            if last:
                return self._cut_map(output.permute(0, 3, 1, 2), name).permute(0, 2, 3, 1)
            return output if last is None else self._cut_map(output, name)
        if isinstance(output, Mapping):
            changed = {key: self._cut(value, f"{name}[{key}]") for key, value in output.items()}
            return _rebuild_mapping(output, changed)
        if isinstance(output, (tuple, list)):
            values = [self._cut(value, f"{name}[{i}]") for i, value in enumerate(output)]
            return type(output)(*values) if hasattr(output, "_fields") else type(output)(values)
        return output

    def _cut_map(self, output: Tensor, name: str) -> Tensor:
        cut = module_name(name) in self._cut_names or not output.requires_grad
        output = self._given.get(name, output)
        leaf = output.detach().requires_grad_() if cut else output
        self.captured.append(Captured(name, leaf))
        if self._left is not None:
            self._left.discard(name)
            if not self._left:
                raise Reached
        # The model continues with a copy: an in-place operation must not change the captured values.
        return leaf.clone()

    def _cut_reshaped(self, output: Tensor, name: str, reshape: Callable[[Tensor], Tensor]) -> Tensor:
        """Cut at the map that `reshape` makes; the model continues with its values where they came from."""
        places = torch.arange(output.numel(), device=output.device).view(output.shape)
        moved: Any = None
        with suppress(RuntimeError):
            moved = reshape(places)
        if not isinstance(moved, Tensor) or moved.ndim != 4 or moved.dtype != places.dtype:
            raise LayerError(
                f"reshape: made no map of layer {name!r} {list(output.shape)}: return [B,C,h,w], and only move values"
            )
        flat = output.flatten()
        return flat.index_copy(0, moved.flatten(), self._cut_map(flat[moved], name).flatten()).view(output.shape)

    def _cut_tokens(self, output: Tensor, name: str) -> Tensor:
        """Cut at each map inside a sequence [B, L, C]; tokens that belong to no map stay as they are."""
        grids = self._grids(output.shape[1])
        parts, end = [], 0
        for i, (start, rows, columns) in enumerate(grids):
            tokens = output[:, start : start + rows * columns]
            grid = tokens.transpose(1, 2).unflatten(2, (rows, columns))  # [B, C, h, w]
            grid = self._cut_map(grid, f"{name}[{i}]" if len(grids) > 1 else name)
            parts += [output[:, end:start], grid.flatten(2).transpose(1, 2)]
            end = start + rows * columns
        return torch.cat([*parts, output[:, end:]], dim=1) if grids else output


def _rebuild_mapping(output: Mapping[Any, Any], changed: dict[Any, Any]) -> Any:
    """A mapping of the same type: OrderedDict, or a dataclass-like dict such as transformers' ModelOutput."""
    try:
        return type(output)(changed)  # type: ignore[call-arg]
    except TypeError:
        return type(output)(**changed)
