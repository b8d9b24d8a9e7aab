"""The ten kinds of object. Each function draws one of them, upright, in coordinates from -1 to 1.

Kinds differ in outline and in texture (stripes, scales, bricks, dots ...). Colours come from `Ink` and are
drawn alike for all kinds, so they tell nothing.
"""

from collections.abc import Callable

import numpy as np

from detcam.scenes.pen import Ink, Pen
from detcam.scenes.shapes.made import balloon, house, kite, sailboat, umbrella
from detcam.scenes.shapes.nature import cactus, fish, flower, ladybird, mushroom

Drawing = Callable[[Pen, Ink, np.random.Generator], None]

# The order is the class id.
_DRAWINGS: tuple[Drawing, ...] = (balloon, kite, fish, mushroom, cactus, house, sailboat, ladybird, flower, umbrella)
DRAWINGS = {drawing.__name__: drawing for drawing in _DRAWINGS}
