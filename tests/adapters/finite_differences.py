"""A scalar's slope along a direction at captured maps, by autograd and by a finite difference."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from detcam.adapters import Adapter
from detcam.engine import Capture, object_gradients
from detcam.geometry import Geometry
from detcam.types import Objects

STEP = 1e-7  # so small that hardly ever a sample or an activation crosses a kink


class _Replay(Capture):
    """A forward in which the captured maps take given values."""

    def __init__(self, modules: Any, grids: Any, values: dict[str, Tensor]) -> None:
        super().__init__(modules, grids=grids)
        self.values = values

    def _cut_map(self, output: Tensor, name: str) -> Tensor:
        output.detach()  # as often as the base class
        return self.values[name]


@contextmanager
def _detached(log: list[Tensor], replay: bool) -> Iterator[None]:
    """Record what a model detaches (reference points, contents of queries), or have it keep the recorded values."""
    original = Tensor.detach
    recorded = iter(list(log))

    def detach(self: Tensor) -> Tensor:
        if not replay:
            log.append(original(self))
            return log[-1]
        return next(recorded)

    Tensor.detach = detach  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        Tensor.detach = original  # type: ignore[method-assign]


@contextmanager
def in_double() -> Iterator[None]:
    """Have models be in float64 throughout: some make tensors of the default type, or ask for float32."""
    single, softmax = torch.float32, nn.functional.softmax
    torch.float32 = torch.float64  # type: ignore[misc]
    nn.functional.softmax = lambda scores, dim=None, **more: softmax(scores, dim)  # type: ignore[assignment]
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.float32 = single  # type: ignore[misc]
        nn.functional.softmax = softmax
        torch.set_default_dtype(single)


def slopes(
    adapter: Adapter,
    pixels: Tensor,
    geometry: Geometry,
    preset: str,
    choose: Any,
    targets: tuple[str, ...],
    step: float = STEP,
    complete: tuple[str, ...] = (),
) -> dict[str, tuple[float, float]]:
    """For each target the scalar's slope along a random direction at the preset's maps: (autograd, difference).

    Args:
        adapter: on a model in float64.
        pixels: [3, h, w].
        geometry: how the picture lies there.
        preset: "level" or "evidence".
        choose: from the outputs to the one object that is followed.
        targets: which scalars.
        step: of the difference.
        complete: targets whose scalar must have a gradient at every one of the maps.
    """
    plan = adapter.layers(preset)
    modules = {name: adapter.module.get_submodule(name) for name in plan.names}
    log: list[Tensor] = []

    def grids(tokens: int) -> list[tuple[int, int, int]]:
        return adapter.grids(tokens, geometry.network)

    def run(capture: Capture, replay: bool = False) -> Any:
        with _detached(log, replay), capture:
            return adapter.forward(pixels[None], 300)

    capture = Capture(modules, plan.cut_all, grids)
    outputs = run(capture)
    assert not capture.missing()
    objects: list[Objects] = [choose(outputs)]
    tensors = [captured.tensor for captured in capture.captured]
    directions = [torch.randn_like(tensor) for tensor in tensors]
    sides = []
    for sign in (1, -1):
        values = {
            captured.name: captured.tensor.detach() + sign * step * direction
            for captured, direction in zip(capture.captured, directions, strict=True)
        }
        with torch.no_grad():
            sides.append(run(_Replay(modules, grids, values), replay=True))
    found = {}
    for target in targets:
        scalars = adapter.score(outputs, objects, target)
        _, gradients = next(iter(object_gradients(scalars, torch.zeros(1, dtype=torch.int64), tensors)))
        slope = sum(float((g * d).sum()) for g, d in zip(gradients, directions, strict=True) if g is not None)
        with torch.no_grad():
            plus, minus = (float(adapter.score(side, objects, target)) for side in sides)
        found[target] = slope, (plus - minus) / (2 * step)
        reached = [g is not None and bool(g.any()) for g in gradients]
        assert all(reached) if target in complete else any(reached), target
    return found
