"""Activations and gradients of any torch model: a private view, cuts in its graph, N gradients from one forward."""

from detcam.engine.batched import batched_gradients
from detcam.engine.capture import Capture, Captured
from detcam.engine.gradients import object_gradients
from detcam.engine.shadow import shadow
from detcam.engine.window import Window, cut
from detcam.engine.windows import Seed, window_gradients, windows_agree

__all__ = [
    "Capture",
    "Captured",
    "Seed",
    "Window",
    "batched_gradients",
    "cut",
    "object_gradients",
    "shadow",
    "window_gradients",
    "windows_agree",
]
