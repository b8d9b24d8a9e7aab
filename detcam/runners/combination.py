"""Combination runner: several runners after one forward, their maps joined into one per object."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from detcam.adapters import LayerPlan
from detcam.engine import Captured, module_name
from detcam.methods.combination import Combination
from detcam.runners.base import Maps, Request, Runner
from detcam.types import Objects


class CombinationRunner:
    """Maps of a `Combination`, from one forward for all its parts.

    Args:
        method: how the maps of the parts are joined.
        parts: the runner of each part.
        request: the model and the target.
    """

    def __init__(self, method: Combination, parts: list[Runner], request: Request) -> None:
        self._method, self._parts = method, parts
        names = dict.fromkeys(name for part in parts for name in part.plan.names)
        self.plan = LayerPlan(tuple(names), cut_all=False, fuse="sum")
        self.target = request.target
        self.differentiable = any(part.differentiable for part in parts)
        # The tensors that enter the neck are cut; layers behind them stay attached, so that gradients reach the neck.
        plans, evidence = [part.plan for part in parts], request.adapter.layers("evidence")
        same = all(plan == plans[0] for plan in plans) and plans[0].cut_all
        first = evidence if evidence in plans else plans[0] if same else None
        self.cut = frozenset(first.names if first is not None else ())

    @contextmanager
    def watching(self) -> Iterator[None]:
        """See `Runner.watching`."""
        with ExitStack() as stack:
            for part in self._parts:
                stack.enter_context(part.watching())
            yield

    def maps(self, pixels: Tensor, outputs: Any, objects: list[Objects], captured: list[Captured]) -> Maps:
        """See `Runner.maps`."""
        results = []
        for part in self._parts:
            layers = [layer for layer in captured if module_name(layer.name) in part.plan.names]
            results.append(part.maps(pixels, outputs, objects, layers))
        same_shapes: dict[tuple[torch.Size, ...], list[int]] = {}
        for i, versions in enumerate(zip(*(result.maps for result in results), strict=True)):
            same_shapes.setdefault(tuple(raw.shape for raw in versions), []).append(i)
        maps: list[Tensor] = [torch.empty(0)] * len(results[0].maps)
        for members in same_shapes.values():
            joined = self._method.join([torch.stack([result.maps[i] for i in members]) for result in results])
            for i, raw in zip(members, joined, strict=True):
                maps[i] = raw
        return Maps(maps, [all(flags) for flags in zip(*(result.zero_gradient for result in results), strict=True)])
