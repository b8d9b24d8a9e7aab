"""Activations and gradients of any torch model: a private view, captured layers, N gradients from one forward."""

from detcam.engine.attention import Sampled, Seen, WatchAttention
from detcam.engine.backward_rules import NoRule
from detcam.engine.capture import Capture, Captured, Reached, module_name
from detcam.engine.gradients import batched_gradients, object_gradients, upscaling
from detcam.engine.shadow import running, shadow
from detcam.engine.window import Window, cut
from detcam.engine.window_gradients import Seed, window_gradients, windows_agree

__all__ = [
    "Capture", "Captured", "NoRule", "Reached", "Sampled", "Seed", "Seen", "WatchAttention", "Window",
    "batched_gradients", "cut", "module_name", "object_gradients", "running", "shadow", "upscaling", "window_gradients",
    "windows_agree",
]  # fmt: skip
