"""A square painted into a picture, and where the map of what it changes at the layers is hottest."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from support import NIGHTLY, random_picture
from torch import Tensor

from detcam import Explanation
from detcam.methods.activation import SharedMethod

SHAPES = ((90, 230), (240, 100), (151, 197))


class _Change(SharedMethod):
    """The change of each cell since an earlier picture, squared and summed over channels; each map's largest is 1."""

    name, formula, source = "change", "sum_k (A_k - B_k)^2", "by hand"

    def __init__(self) -> None:
        self.earlier: list[Tensor] = []
        self.later: list[Tensor] = []

    def maps(self, acts: Tensor, grads: Tensor | None) -> Tensor:
        self.later.append(acts)
        before = self.earlier[len(self.later) - 1] if self.earlier else 0
        change = (acts - before).square().sum(dim=1)
        return change / change.amax()


Explain = Callable[[SharedMethod, np.ndarray], Explanation]


def assert_square_is_hot(explain: Explain, seed: int) -> None:
    """The hottest pixel lies on the square, or within a cell of the coarsest layer of it, whatever the image's shape.

    Random weights may carry a change a little further once in some hundred times, but not twice in three squares.

    Args:
        explain: from a method and an image to an explanation of at least one object.
        seed: of the images and squares; outside the nightly tier it chooses one of the shapes, too.
    """
    random = np.random.default_rng(seed)
    for shape in SHAPES if NIGHTLY else [SHAPES[seed % len(SHAPES)]]:
        image = random_picture(seed, *shape) // 2
        missed = _missed(explain, image, random)
        if missed:
            again = [_missed(explain, image, random) for _ in range(2)]
            assert not any(again), (missed, again)


def _missed(explain: Explain, image: np.ndarray, random: np.random.Generator) -> tuple[object, ...] | None:
    """Where the hottest pixel lies and where the square was painted, if the one is not on the other."""
    method = _Change()
    seen = explain(method, image).geometry.seen(image.shape[:2])  # not what a processor crops away
    method.earlier, method.later = method.later, []
    side = round(0.2 * min(image.shape[:2]))
    start = [int(random.integers(span.start, span.stop - side + 1)) for span in seen]
    painted = image.copy()
    painted[start[0] : start[0] + side, start[1] : start[1] + side] = 255
    explanation = explain(method, painted)
    assert len(explanation) >= 1
    heat, geometry = explanation.heatmaps[0], explanation.geometry
    spot = divmod(int(heat.argmax()), heat.shape[1])
    coarsest = min((layer.shape[2:] for layer in method.later), key=lambda cells: cells[0] * cells[1])
    for axis, cells in enumerate(coarsest):
        cell = geometry.network[axis] / cells * geometry.source[axis] / geometry.resized[axis]
        if not start[axis] - cell <= spot[axis] < start[axis] + side + cell:
            return axis, spot, start, side, cell
    return None
