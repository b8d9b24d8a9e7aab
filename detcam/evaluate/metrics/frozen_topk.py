"""Query selection held still: a model with other weights, asked about one query, must read it at the same place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from detcam.adapters import Adapter

CHOOSE = (torch.topk, Tensor.topk)


class _Recorded(TorchFunctionMode):
    """Keeps the places that every `topk` within gives, in the order of the calls."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func in CHOOSE:
            self.places.append(made.indices)
        return made


class _Replayed(TorchFunctionMode):
    """Has every `topk` within give the places that were recorded, and the values that lie there now."""

    def __init__(self, places: list[Tensor]) -> None:
        super().__init__()
        self._left: Iterator[Tensor] = iter(places)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func not in CHOOSE:
            return made
        places = next(self._left, None)
        if places is None or places.shape != made.indices.shape:
            return made
        options = kwargs or {}
        values = args[0] if args else options["input"]
        axis = args[2] if len(args) > 2 else options.get("dim", -1)
        return torch.return_types.topk((values.gather(axis, places), places))


def held_choices(adapter: Adapter, explain: Callable[[], Any]) -> Callable[[], AbstractContextManager[Any]]:
    """A context, to be entered anew each time, in which the model chooses the queries that it chooses now.

    Models that pick their queries from the picture (RT-DETR) pick others when their weights change, so "query 7" reads
    the picture elsewhere, and a map of it would change whatever the method. Choices are made by `topk` of a ranking
    that the model computes; its places are recorded while `explain` runs, and given again in the same order. What the
    query makes of its place is up to the changed weights. For models whose queries are fixed this is no change.

    Args:
        adapter: the model.
        explain: the very call that will be repeated.
    """
    if adapter.stable:
        return nullcontext
    recorded = _Recorded()
    with recorded:
        explain()

    @contextmanager
    def again() -> Iterator[None]:
        with _Replayed(recorded.places):
            yield

    return again
