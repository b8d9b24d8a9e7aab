"""Activations and gradients of any torch model: a private view, cuts in its graph, N gradients from one forward."""

from detcam.engine.capture import Capture, Captured
from detcam.engine.gradients import object_gradients
from detcam.engine.shadow import shadow
from detcam.engine.windows import CHECKED_CELLS, Reach, Windows, measure_reach, window_gradients, windows_agree

__all__ = [
    "CHECKED_CELLS",
    "Capture",
    "Captured",
    "Reach",
    "Windows",
    "measure_reach",
    "object_gradients",
    "shadow",
    "window_gradients",
    "windows_agree",
]
