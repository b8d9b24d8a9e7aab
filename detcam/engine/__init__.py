"""Activations and gradients of any torch model: a private view, cuts in its graph, N gradients from one forward."""

from detcam.engine.capture import Capture, Captured
from detcam.engine.gradients import object_gradients
from detcam.engine.shadow import shadow

__all__ = ["Capture", "Captured", "object_gradients", "shadow"]
