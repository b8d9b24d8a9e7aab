"""Attention weights of one forward of a transformer, with the graph: matrices over tokens, or sampling points."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

Role = Literal["encoder", "queries", "cross"]
Record = Callable[[Tensor, Tensor, tuple[tuple[int, int, int], ...]], None]


@dataclass(frozen=True)
class Dense:
    """Attention of every query to every key."""

    weights: Tensor  # [B, H, Q, K] of H heads; each row adds up to 1

    def combined(self, image: int, gradient: Tensor | None = None) -> Tensor:
        """[Q, K] float32 of one image: the mean over heads of A, or of ReLU(gradient * A), gradient [H, Q, K]."""
        return _counted(self.weights[image], gradient).mean(dim=0)


@dataclass(frozen=True)
class Sampled:
    """Attention of every query to a few points of several maps."""

    weights: Tensor  # [B, Q, H, T] or [B, Q, H, L, P] of H heads; each row adds up to 1
    places: Tensor  # [B, Q, H, T, 2] (x, y) as shares of the map
    # (h, w, points) of each map; the T points and the cells are listed map after map.
    levels: tuple[tuple[int, int, int], ...]

    def combined(self, image: int, gradient: Tensor | None = None) -> Tensor:
        """[Q, cells] float32: each point's weight spread over the four cells that bilinear sampling reads."""
        weights = _counted(self.weights[image], gradient).flatten(2) / self.weights.shape[2]  # [Q, H, T]
        places = self.places[image].detach().float()
        parts, start = [], 0
        for rows, columns, points in self.levels:
            of_level = (slice(None), slice(None), slice(start, start + points))
            parts.append(splat(places[of_level].flatten(1, 2), weights[of_level].flatten(1, 2), rows, columns))
            start += points
        return torch.cat([part.flatten(1) for part in parts], dim=1)


def _counted(weights: Tensor, gradient: Tensor | None) -> Tensor:
    """A, or ReLU(gradient * A), in float32 and detached."""
    weights = weights.detach().float()
    return weights if gradient is None else (gradient.float() * weights).clamp(min=0)


def splat(places: Tensor, weights: Tensor, rows: int, columns: int) -> Tensor:
    """Point weights spread over the four cells that a bilinear sample of each point reads; none outside the map.

    Args:
        places: [Q, T, 2] (x, y) as shares of the map.
        weights: [Q, T].
        rows: of the map.
        columns: of the map.

    Returns:
        [Q, rows, columns].
    """
    x, y = places[..., 0] * columns - 0.5, places[..., 1] * rows - 0.5
    total = weights.new_zeros(len(weights), rows * columns)
    for row, down in ((y.floor(), 1 - (y - y.floor())), (y.floor() + 1, y - y.floor())):
        for column, across in ((x.floor(), 1 - (x - x.floor())), (x.floor() + 1, x - x.floor())):
            inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
            cell = (row.clamp(0, rows - 1) * columns + column.clamp(0, columns - 1)).long()
            total.scatter_add_(1, cell, weights * down * across * inside)
    return total.unflatten(1, (rows, columns))


Seen = list[tuple[Role, Dense | Sampled]]


class WatchAttention:
    """While active, records the attention of the given modules.

    Args:
        modules: role (encoder: self-attention of the tokens; queries: of the queries; cross: from queries to tokens) ->
            modules, each of which returns (output, weights [B, H, Q, K]) or the weights, with the graph.
        sampling: for modules that sample points: from a module and a function to call with places [B, Q, H, T, 2],
            weights and levels as `Sampled` has them, to a context in which each forward calls it; None for the others.
    """

    def __init__(
        self,
        modules: Mapping[Role, list[nn.Module]],
        sampling: Callable[[nn.Module, Record], AbstractContextManager[None] | None],
    ) -> None:
        self._modules, self._sampling = modules, sampling
        self._stack = ExitStack()
        self.seen: Seen = []  # the attention of the last forward, in the order that its modules ran

    def __enter__(self) -> WatchAttention:
        self.seen = []
        for role, modules in self._modules.items():
            for module in modules:
                context = self._sampling(module, _keep_points(self.seen, role))
                if context is not None:
                    self._stack.enter_context(context)
                else:
                    handle = module.register_forward_hook(_keep_weights(self.seen, role))
                    self._stack.callback(handle.remove)
        return self

    def __exit__(self, *reason: object) -> None:
        self._stack.close()


def _keep_points(seen: Seen, role: Role) -> Record:
    return lambda places, weights, levels: seen.append((role, Sampled(weights, places, levels)))


def _keep_weights(seen: Seen, role: Role) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, output: Tensor | tuple[Tensor, Tensor]) -> None:
        seen.append((role, Dense(output if isinstance(output, Tensor) else output[1])))

    return hook
