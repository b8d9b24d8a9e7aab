"""Many forwards of one image changed in many ways, or of the model's tail after changed activations.

A forward of a changed image does not depend on the object that is explained, so one sweep serves all objects. Where
only activations change, what the model ran before them is not run again but answered from memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from detcam.engine.capture import Capture
from detcam.types import Objects

ALIVE = 4  # tensors as large as the largest that live at once: a layer's input, a convolution, its norm, its activation

Progress = Callable[[int, int], None]  # (forwards done, forwards in all)


@dataclass(frozen=True)
class Probe:
    """One image with its objects, and the model to be asked about changed versions of it. Use it without gradients.

    Attributes:
        module: the private view of the model, see `detcam.engine.shadow`.
        forward: from images [b, 3, H, W] to the model's raw outputs.
        score: from raw outputs of b images and b to [b, M] scores, M a multiple of the number of objects.
        image: [3, H, W], the network's input.
        objects: the N objects that were found in it.
        layers: name -> [C, h, w] float32, what the captured layers put out for the image.
        cut_all: whether the other captured layers keep their values while one changes, as `Capture` cuts them.
        grids: see `Capture`.
        memory: bytes that a batch of forwards may take, roughly.
        progress: called after every batch.
    """

    module: nn.Module
    forward: Callable[[Tensor], Any]
    score: Callable[[Any, int], Tensor]
    image: Tensor
    objects: Objects
    layers: Mapping[str, Tensor] = field(default_factory=dict)
    cut_all: bool = True
    grids: Callable[[int], list[tuple[int, int, int]]] = lambda tokens: []
    memory: int = 256 * 2**20
    progress: Progress | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the network's input in pixels."""
        return self.image.shape[1], self.image.shape[2]

    @property
    def unchanged(self) -> Tensor:
        """[M] float32, the scores of the image as it is."""
        return self._plain_run[1]

    def scores(self, images: Tensor) -> Tensor:
        """[b, M] float32 scores of images [b, 3, H, W]."""
        images = images.to(self.image.dtype, memory_format=torch.channels_last)  # convolutions run faster so
        return self.score(self.forward(images), len(images)).float()

    def batches(self, total: int) -> Iterator[slice]:
        """The numbers 0 to `total` - 1 in slices as long as memory allows; reports progress after each."""
        step = max(self.memory // max(self._plain_run[0].largest * ALIVE, 1), 1)
        for start in range(0, total, step):
            stop = min(start + step, total)
            yield slice(start, stop)
            if self.progress is not None:
                self.progress(stop, total)

    def tail(self, layer: str) -> Callable[[Tensor], Tensor]:
        """The scores [b, M] as a function of other activations [b, C, h, w] at one of `layers`.

        What ran before the layer is answered from memory. That is checked once with the unchanged activations; if the
        scores come out different, as where a model works in place on what was remembered, whole forwards are run.
        """
        past = self._plain_run[0].before.get(layer.split("[")[0], Past())

        def run(acts: Tensor) -> Tensor:
            changed = dict(self.layers) if self.cut_all else {}
            changed[layer] = acts
            values = {name: value.expand(len(acts), -1, -1, -1) for name, value in changed.items()}
            with (
                answered(past.calls, len(acts)),
                Replace(self.module, values, past.runs, self.image.dtype, self.grids),
            ):
                return self.scores(self.image.repeat(len(acts), 1, 1, 1))

        try:
            exact = _agree(run(self.layers[layer].expand(2, -1, -1, -1)), self.unchanged, self.image.dtype)
        except (RuntimeError, TypeError, ValueError, LookupError):  # the model's own forward on what it did not expect
            exact = False
        if not exact:
            past = Past()
        return run

    @cached_property
    def _plain_run(self) -> tuple[Recorder, Tensor]:
        """One forward of the image as it is, on record, and its scores [M]."""
        names = {name.split("[")[0] for name in self.layers}
        with Recorder(self.module, names) as recorder:
            scores = self.scores(self.image[None])
        return recorder, scores[0]


def _agree(scores: Tensor, unchanged: Tensor, dtype: torch.dtype) -> bool:
    tolerance = 1e-3 if dtype in (torch.float32, torch.float64) else 3e-2
    return torch.allclose(scores, unchanged.expand_as(scores), rtol=tolerance, atol=tolerance, equal_nan=True)


@dataclass(frozen=True)
class Call:
    """One call of a module, and what it returned."""

    module: nn.Module
    output: Any


@dataclass(frozen=True)
class Past:
    """What had happened when a module finished: the outermost finished calls, and how often each module had run."""

    calls: list[Call] = field(default_factory=list)
    runs: dict[str, int] = field(default_factory=dict)


class Recorder:
    """While active, notes what had happened when each of the named modules finished.

    A call inside a finished call is forgotten: its caller's output stands for it. What is left when a module has
    finished is all that the rest of the forward can have from before it.

    Args:
        module: the model, to be run once.
        names: of modules in it; `name#1` is the second run of `name`.

    Attributes:
        before: name -> what had happened, itself left out.
        largest: bytes of the largest tensor that any module put out.
    """

    def __init__(self, module: nn.Module, names: set[str]) -> None:
        self._module, self._names = module, names
        self._calls: list[Call] = []
        self._open: list[int] = []  # for each running call, how many had finished when it began
        self._runs: dict[str, int] = {}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self.before: dict[str, Past] = {}
        self.largest = 0

    def __enter__(self) -> Recorder:
        for name, module in self._module.named_modules():
            self._handles.append(module.register_forward_pre_hook(lambda *_: self._open.append(len(self._calls))))
            self._handles.append(module.register_forward_hook(self._leave(name)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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
    """Within, the first calls of these modules return what is on record, for `count` copies of the one image.

    Neither their forward nor their hooks run then: what the hooks did is on record too.
    """
    waiting: dict[nn.Module, deque[Any]] = {}
    for call in calls:
        waiting.setdefault(call.module, deque()).append(call.output)
    for module, outputs in waiting.items():
        vars(module)["_call_impl"] = _from_memory(module._call_impl, outputs, count)  # what a call of a module calls
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
    """While active, the model goes on with other values at the captured maps.

    Args:
        module: the model.
        values: the name of a captured map, as `Capture` gives it -> [b, C, h, w].
        runs: how often modules ran before, which counts in these names.
        dtype: that of the model's activations.
        grids: see `Capture`.
    """

    def __init__(
        self,
        module: nn.Module,
        values: Mapping[str, Tensor],
        runs: Mapping[str, int],
        dtype: torch.dtype,
        grids: Callable[[int], list[tuple[int, int, int]]],
    ) -> None:
        names = {name.split("[")[0].split("#")[0] for name in values}
        super().__init__({name: module.get_submodule(name) for name in names}, grids=grids)
        self._values, self._dtype, self._runs = values, dtype, dict(runs)

    def _cut_map(self, output: Tensor, name: str) -> Tensor:
        if name not in self._values:
            return output
        return self._values[name].to(self._dtype, copy=True)  # a copy: the model may change it in place
