"""Drawn scenes with known objects, from a seed: ten classes, several objects per scene.

Seeds 0 .. HELD_OUT_SEED - 1 are for training; seeds from HELD_OUT_SEED on are for tests and figures only.
"""

from detcam.scenes.compose import CLASSES, Scene, draw_scene

HELD_OUT_SEED = 1_000_000

__all__ = ["CLASSES", "HELD_OUT_SEED", "Scene", "draw_scene"]
