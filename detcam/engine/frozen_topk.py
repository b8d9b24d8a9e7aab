"""Frozen query selection: a model with other weights or features reads each query at the same cells.

Models that select their queries from the image (RT-DETR) select others when weights or features change: "query 7" then
reads other cells. Queries are selected by `topk` of a ranking that the model computes. Its indices are recorded in one
forward and replayed in another, in the same order; everything after the selection follows the change.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

TOPK = (torch.topk, Tensor.topk)


class RecordTopk(TorchFunctionMode):
    """While active, records the indices of every `topk`, in call order."""

    def __init__(self) -> None:
        super().__init__()
        self.indices: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in TOPK:
            self.indices.append(result.indices)
        return result


class ReplayTopk(TorchFunctionMode):
    """While active, every `topk` returns the recorded indices, with the current values at these indices."""

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
