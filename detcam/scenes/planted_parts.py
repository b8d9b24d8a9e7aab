"""Sprites of planted scenes: bodies, badges and patches of ground that show a class, and stars that show none."""

import numpy as np

from detcam.scenes.compose import Sprite
from detcam.scenes.pen import Colour, Palette, Pen, around, box, ellipse, oklch, points, rotated

Rng = np.random.Generator

SYMBOLS = ("ring", "cross")  # symbols of the classes, by class id
BADGE = 7.0  # px, radius of a clearly visible badge
FAINT_BADGE = 3.5
_OVERSAMPLE = 3
_OBJECT = 0  # class id of every sprite: here the cause decides the class, not the drawing


def body(rng: Rng, palette: Palette, radius: float) -> Sprite:
    """Draw a plain solid with a rim, between round and square, of any colour: the same for every class."""
    pen = _pen(radius)
    ink = palette.ink(rng)
    power, stretch, turn = rng.uniform(1.4, 5.0), rng.uniform(0.85, 1.0), rng.uniform(0, 90)
    angle = np.linspace(0, 2 * np.pi, 73)[:-1]
    cos, sin = np.cos(angle), np.sin(angle)
    outline = (np.abs(cos) ** power + np.abs(sin) ** power) ** (-1 / power)
    shape = np.stack([outline * cos, outline * sin * stretch], axis=1)
    shape = rotated(shape, turn)
    shape = shape / np.abs(shape).max()  # the size of the box follows the radius, whatever the rotation
    pen.fill(ink.dark, shape)
    pen.fill(ink.main, shape * (1 - 1.5 / radius))
    pen.shade(pen.region(shape), 0.25, 0.3)
    return _sprite(pen)


def badge(symbol: int, radius: float = BADGE) -> Sprite:
    """Draw a white disc with a symbol of `SYMBOLS` on it. Both have the same outline and nearly the same ink."""
    pen = _pen(radius)
    white, black = (250, 250, 250), (25, 25, 25)
    pen.fill(black, ellipse(0, 0, 1.0))
    pen.fill(white, ellipse(0, 0, 0.88))
    if SYMBOLS[symbol] == "ring":
        pen.stroke(black, 0.26, ellipse(0, 0, 0.48))
    else:
        for tilt in (45, -45):
            pen.stroke(black, 0.28, rotated(points([(-0.62, 0), (0.62, 0)]), tilt))
    return _sprite(pen)


def patch(rng: Rng, palette: Palette, symbol: int, radius: float) -> Sprite:
    """Draw a round patch of ground: horizontal furrows for class 0, vertical for class 1."""
    pen = _pen(radius)
    hue, light = palette.hue(rng), rng.uniform(0.45, 0.75)
    shape = around(rng.uniform(0.92, 1.0, 24))
    pen.fill(oklch(light, 0.06, hue), shape)
    inside = pen.region(shape)
    step = rng.uniform(5.0, 6.5) / radius
    starts = np.arange(-1.0 + rng.uniform(0, step), 1.0, step)
    furrows = [rotated(box(-1.1, y, 1.1, y + step / 2), 90 * symbol) for y in starts]
    pen.fill(oklch(light - 0.2, 0.06, hue), *furrows, inside=inside)
    return _sprite(pen)


def star(rng: Rng, radius: float) -> Sprite:
    """Draw a vivid star with four to seven points: salient, and without information."""
    pen = _pen(radius)
    spikes = 2 * int(rng.integers(4, 8))
    turn = rng.uniform(0, np.pi)
    shape = around(np.where(np.arange(spikes) % 2, rng.uniform(0.4, 0.65), 1.0), turn)
    colour: Colour = oklch(rng.uniform(0.55, 0.85), rng.uniform(0.14, 0.2), rng.uniform(0, 360))
    pen.fill(colour, shape)
    return _sprite(pen)


def _pen(radius: float) -> Pen:
    """A pen with a unit circle of `radius` pixels of the image, and a margin of a pixel."""
    side = 2 * int(np.ceil(radius)) + 2
    zoom = radius * _OVERSAMPLE
    middle = side * _OVERSAMPLE / 2
    return Pen(np.array([[zoom, 0.0, middle], [0.0, zoom, middle]]), side * _OVERSAMPLE, side * _OVERSAMPLE)


def _sprite(pen: Pen) -> Sprite:
    return Sprite(*pen.reduced(pen.ink.shape[0] // _OVERSAMPLE), _OBJECT)
