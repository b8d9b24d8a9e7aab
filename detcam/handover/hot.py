"""Where a heatmap is hot: the step from heat to yes and no that several partners need."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from detcam.errors import InputError

if TYPE_CHECKING:
    from detcam.explanation import Explanation


def hot(explanation: Explanation, threshold: float) -> Tensor:
    """[N, H, W] bool in source pixels: where the heat is at least `threshold`; nowhere on a blank map.

    Raises:
        InputError: for a threshold outside (0, 1]; heat is at least 0 everywhere.
    """
    if not 0 < threshold <= 1:
        raise InputError(f"threshold: expected a number above 0 and at most 1, got {threshold!r}")
    return explanation.heatmaps >= threshold
