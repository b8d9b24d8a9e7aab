"""Forwards of changed versions of an image, or of the model's tail after changed activations.

A forward of a changed image does not depend on the object that is explained: one sweep serves all objects. Where only
activations change, the modules before them do not run again; their recorded outputs are returned.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from detcam.engine.capture import Capture
from detcam.types import Objects

ALIVE = 4  # tensors of the largest size alive at once: a layer's input, the convolution, its norm, its activation

Progress = Callable[[int, int], None]  # (forwards done, forwards in all)


@dataclass(frozen=True)
class Probe:
    """An image with its objects, and the model that scores changed versions of the image; use it without gradients."""

    module: nn.Module  # the private view of the model, see `detcam.engine.shadow`
    forward: Callable[[Tensor], Any]  # images [b, 3, H, W] -> the model's raw outputs
    # (raw outputs of b images, b) -> scores [b, M], M a multiple of the number of objects.
    score: Callable[[Any, int], Tensor]
    image: Tensor  # [3, H, W], the network's input
    objects: Objects  # the N objects of the image
    # Name -> [C, h, w] float32, the outputs of the captured layers for the image.
    layers: Mapping[str, Tensor] = field(default_factory=dict)
    # Whether the other captured layers keep their values while one changes, as `Capture` cuts them.
    cut_all: bool = True
    layout: dict[str, Any] = field(default_factory=dict)  # grids, channels_last and reshape of `Capture`
    memory: int = 256 * 2**20  # bytes that a batch of forwards may take, roughly
    progress: Progress | None = None  # called after every batch
    starts: Sequence[Tensor] = ()  # a map [h, w] for each object, for methods that start from one; empty: none

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the network's input in pixels."""
        return self.image.shape[1], self.image.shape[2]

    @property
    def unchanged(self) -> Tensor:
        """[M] float32, the scores of the unchanged image."""
        return self._plain_run[1]

    def scores(self, images: Tensor) -> Tensor:
        """[b, M] float32 scores of images [b, 3, H, W]."""
        images = images.to(self.image.dtype, memory_format=torch.channels_last)  # convolutions are faster in this order
        return self.score(self.forward(images), len(images)).float()

    def batches(self, total: int, start: int = 0, stop: int | None = None) -> Iterator[slice]:
        """The numbers `start` to `stop` - 1 of `total`, by default all, in slices as long as memory allows.

        Progress is reported after each.
        """
        largest = self._plain_run[0].largest or self.image.nbytes  # a black box shows no outputs of modules
        step = max(self.memory // (largest * ALIVE), 1)
        stop = total if stop is None else stop
        for first in range(start, stop, step):
            last = min(first + step, stop)
            yield slice(first, last)
            if self.progress is not None:
                self.progress(last, total)

    def tail(self, layer: str) -> Callable[[Tensor], Tensor]:
        """The scores [b, M] as a function of other activations [b, C, h, w] at one of `layers`.

        The recorded outputs of modules before the layer are returned without running them. This is checked once with
        the unchanged activations; if the scores differ, as for a model that changes recorded outputs in place, whole
        forwards run.
        """
        past = self._plain_run[0].before.get(layer.split("[")[0], Past())

        def run(acts: Tensor) -> Tensor:
            changed = dict(self.layers) if self.cut_all else {}
            changed[layer] = acts
            values = {name: value.expand(len(acts), -1, -1, -1) for name, value in changed.items()}
            with (
                answered(past.calls, len(acts)),
                Replace(self.module, values, past.runs, self.image.dtype, self.layout),
            ):
                return self.scores(self.image.repeat(len(acts), 1, 1, 1))

        try:
            exact = _agree(run(self.layers[layer].expand(2, -1, -1, -1)), self.unchanged, self.image.dtype)
        except (RuntimeError, TypeError, ValueError, LookupError):  # the model's forward met an unexpected value
            exact = False
        if not exact:
            past = Past()
        return run

    @cached_property
    def _plain_run(self) -> tuple[Recorder, Tensor]:
        """A recorded forward of the unchanged image, and its scores [M]."""
        names = {name.split("[")[0] for name in self.layers}
        with Recorder(self.module, names) as recorder:
            scores = self.scores(self.image[None])
        return recorder, scores[0]


def _agree(scores: Tensor, unchanged: Tensor, dtype: torch.dtype) -> bool:
    tolerance = 1e-3 if dtype in (torch.float32, torch.float64) else 3e-2
    return torch.allclose(scores, unchanged.expand_as(scores), rtol=tolerance, atol=tolerance, equal_nan=True)


@dataclass(frozen=True)
class Call:
    """A call of a module, and its output."""

    module: nn.Module
    output: Any


@dataclass(frozen=True)
class Past:
    """The outermost calls that had finished when a module finished, and how often each module had run."""

    calls: list[Call] = field(default_factory=list)
    runs: dict[str, int] = field(default_factory=dict)


class Recorder:
    """While active, records the calls that finished before each of the named modules.

    A call inside a finished call is forgotten: its caller's output stands for it. What is left when a module has
    finished is all that the rest of the forward can have from before it.

    Args:
        module: the model, to be run once.
        names: of modules in it; `name#1` is the second run of `name`.
    """

    def __init__(self, module: nn.Module, names: set[str]) -> None:
        self._module, self._names = module, names
        self._calls: list[Call] = []
        self._open: list[int] = []  # for each running call, how many had finished when it began
        self._runs: dict[str, int] = {}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self.before: dict[str, Past] = {}  # name -> the calls before the module, itself excluded
        self.largest = 0  # bytes of the largest output tensor of any module

    def __enter__(self) -> Recorder:
        for name, module in self._module.named_modules():
            self._handles.append(module.register_forward_pre_hook(lambda *_: self._open.append(len(self._calls))))
            self._handles.append(module.register_forward_hook(self._leave(name)))
        return self

    def __exit__(self, *reason: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _leave(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            run = self._runs.get(name, 0)
            numbered = f"{name}#{run}" if run else name
            if numbered in self._names:
                self.before[numbered] = Past(list(self._calls), dict(self._runs))
            self._runs[name] = run + 1
            del self._calls[self._open.pop() :]
            self._calls.append(Call(module, output))
            tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
            self.largest = max([self.largest, *(t.numel() * t.element_size() for t in tensors)])

        return hook


@contextmanager
def answered(calls: list[Call], count: int) -> Iterator[None]:
    """Within, the first calls of these modules return the recorded outputs, for `count` copies of the image.

    Neither their forwards nor their hooks run: the record includes the effect of the hooks.
    """
    waiting: dict[nn.Module, deque[Any]] = {}
    for call in calls:
        waiting.setdefault(call.module, deque()).append(call.output)
    for module, outputs in waiting.items():
        vars(module)["_call_impl"] = _from_memory(module._call_impl, outputs, count)  # which `Module.__call__` calls
    try:
        yield
    finally:
        for module in waiting:
            del vars(module)["_call_impl"]


def _from_memory(call: Callable[..., Any], outputs: deque[Any], count: int) -> Callable[..., Any]:
    def answer(*args: Any, **kwargs: Any) -> Any:
        return tree_map(copies, outputs.popleft()) if outputs else call(*args, **kwargs)

    def copies(leaf: Any) -> Any:
        batched = isinstance(leaf, Tensor) and leaf.ndim > 0 and leaf.shape[0] == 1
        return leaf.expand(count, *leaf.shape[1:]) if batched else leaf

    return answer


class Replace(Capture):
    """While active, the model continues with other values at the captured maps.

    Args:
        module: the model.
        values: name of a captured map, as in `Capture` -> [b, C, h, w].
        runs: how often each module had run before, which these names count.
        dtype, layout: of the model's activations, see `Probe`.
    """

    def __init__(
        self,
        module: nn.Module,
        values: Mapping[str, Tensor],
        runs: Mapping[str, int],
        dtype: torch.dtype,
        layout: dict[str, Any],
    ) -> None:
        names = {name.split("[")[0].split("#")[0] for name in values}
        super().__init__({name: module.get_submodule(name) for name in names}, **layout)
        self._values, self._dtype, self._runs = values, dtype, dict(runs)

    def _cut_map(self, output: Tensor, name: str) -> Tensor:
        if name not in self._values:
            return output
        return self._values[name].to(self._dtype, copy=True)  # a copy: the model may change it in place
