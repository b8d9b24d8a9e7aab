"""Combination runner: one map of each object from those of several runners."""

from __future__ import annotations

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
    """One map of each object from those of several runners, after one forward for all of them."""

    def __init__(self, method: Combination, parts: list[Runner], request: Request) -> None:
        self._method, self._parts = method, parts
        names = dict.fromkeys(name for part in parts for name in part.plan.names)
        self.plan = LayerPlan(tuple(names), cut_all=False, fuse="sum")
        self.target = request.target
        self.differentiable = any(part.differentiable for part in parts)
        # Where the evidence enters the neck all of it is cut; what is captured behind keeps the way back to it.
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
        made = []
        for part in self._parts:
            own = [c for c in captured if module_name(c.name) in part.plan.names]
            made.append(part.maps(pixels, outputs, objects, own))
        together: dict[tuple[torch.Size, ...], list[int]] = {}
        for i, versions in enumerate(zip(*(m.maps for m in made), strict=True)):
            together.setdefault(tuple(one.shape for one in versions), []).append(i)
        maps: list[Tensor] = [torch.empty(0)] * len(made[0].maps)
        for members in together.values():
            joined = self._method.join([torch.stack([m.maps[i] for i in members]) for m in made])
            for i, one in zip(members, joined, strict=True):
                maps[i] = one
        return Maps(maps, [all(flags) for flags in zip(*(m.silent for m in made), strict=True)])
