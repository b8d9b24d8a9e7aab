"""Frozen query selection: a model with other weights reads each query at the same cells."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from detcam.adapters import Adapter

TOPK = (torch.topk, Tensor.topk)


class _Recorded(TorchFunctionMode):
    """Records the indices of every `topk`, in call order."""

    def __init__(self) -> None:
        super().__init__()
        self.indices: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in TOPK:
            self.indices.append(result.indices)
        return result


class _Replayed(TorchFunctionMode):
    """Returns the recorded indices from every `topk`, with the current values at these indices."""

    def __init__(self, indices: list[Tensor]) -> None:
        super().__init__()
        self._left: Iterator[Tensor] = iter(indices)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func not in TOPK:
            return result
        indices = next(self._left, None)
        if indices is None or indices.shape != result.indices.shape:
            return result
        options = kwargs or {}
        values = args[0] if args else options["input"]
        axis = args[2] if len(args) > 2 else options.get("dim", -1)
        return torch.return_types.topk((values.gather(axis, indices), indices))


def frozen_topk(adapter: Adapter, explain: Callable[[], Any]) -> Callable[[], AbstractContextManager[Any]]:
    """A factory of contexts in which the model selects the same queries as now.

    Models that select their queries from the image (RT-DETR) select others when their weights change: "query 7" then
    reads other cells, and its map changes whatever the method. Queries are selected by `topk` of a ranking that the
    model computes; its indices are recorded while `explain` runs and replayed in the same order. Everything after the
    selection follows the changed weights. A model with fixed queries is not affected.

    Args:
        adapter: the model.
        explain: the call that will be repeated.
    """
    if adapter.stable:
        return nullcontext
    recorded = _Recorded()
    with recorded:
        explain()

    @contextmanager
    def again() -> Iterator[None]:
        with _Replayed(recorded.indices):
            yield

    return again
