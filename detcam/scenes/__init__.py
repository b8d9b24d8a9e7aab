"""The project's own pictures with known objects, drawn from a seed: ten kinds, several per picture.

Seeds 0 .. HELD_OUT_SEED - 1 are for training; seeds from HELD_OUT_SEED on are for tests and figures only.
"""

from detcam.scenes.compose import CLASSES, Scene, draw_scene

HELD_OUT_SEED = 1_000_000

__all__ = ["CLASSES", "HELD_OUT_SEED", "Scene", "draw_scene"]
