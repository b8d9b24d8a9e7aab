"""Backgrounds: a muted landscape or pattern, clutter of no class, and a light grain."""

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from detcam.scenes.pen import Colour, Palette, Pen, Points, around, box, curve, ellipse, moved, oklch, points, rotated

Image = NDArray[np.uint8]
Rng = np.random.Generator

OVERSAMPLE = 2
_PUFFS = ((-0.55, 0.0, 0.32), (-0.12, -0.2, 0.45), (0.38, -0.06, 0.36), (0.72, 0.08, 0.22))  # x, y, radius, of a cloud


def background(rng: Rng, palette: Palette, height: int, width: int) -> Image:
    """Return a cluttered background, uint8 [H,W,3]. The unit of the coordinates is the image's height."""
    zoom = height * OVERSAMPLE
    pen = Pen(np.array([[zoom, 0.0, 0.0], [0.0, zoom, 0.0]]), zoom, width * OVERSAMPLE)
    aspect = width / height
    ground = _GROUNDS[rng.integers(len(_GROUNDS))]
    ground(pen, palette, rng, aspect)
    _clutter(pen, palette, rng, aspect)
    image = cv2.resize(pen.rgb, (width, height), interpolation=cv2.INTER_AREA)
    grain = rng.normal(0, rng.uniform(1.0, 3.5), (height, width, 1))
    return np.clip(np.rint(image + grain), 0, 255).astype(np.uint8)


def _soft(palette: Palette, rng: Rng, lightness: float, chroma: float = 0.06) -> Colour:
    """A muted colour from two hues of the palette: backgrounds stay quieter than objects."""
    hue = rng.choice(palette.hues[:2]) + rng.uniform(-16, 16)
    return oklch(lightness + rng.uniform(-0.02, 0.02), chroma * rng.uniform(0.5, 1.0), hue)


def _gradient(pen: Pen, top: Colour, bottom: Colour) -> None:
    fade = np.linspace(0, 1, pen.rgb.shape[0])[:, None, None]
    pen.rgb[:] = np.rint(np.array(top) * (1 - fade) + np.array(bottom) * fade)


def _ridge(rng: Rng, aspect: float, level: float, height: float) -> Points:
    """The area under a rolling line: a hill, a dune or a bank of waves."""
    x = np.linspace(-0.05, aspect + 0.05, 60)
    y = level + sum(height / k * np.sin(x * k * rng.uniform(2, 3.5) + rng.uniform(0, 7)) for k in (1, 2, 3))
    return np.concatenate([np.stack([x, y], 1), points([(aspect + 0.05, 1.1), (-0.05, 1.1)])])


def _sky(pen: Pen, palette: Palette, rng: Rng, aspect: float) -> float:
    """Draw a sky with sun and clouds, by day or at dusk; return its lightness."""
    tone = float(rng.choice((0.88, 0.82, 0.9, 0.5)))
    _gradient(pen, _soft(palette, rng, tone - 0.06, 0.08), _soft(palette, rng, min(0.94, tone + 0.1), 0.05))
    x, y, radius = rng.uniform(0.1, aspect - 0.1), rng.uniform(0.1, 0.35), rng.uniform(0.06, 0.12)
    sun = _soft(palette, rng, 0.95, 0.05)
    for halo, opacity in ((2.2, 0.18), (1.55, 0.25), (1.0, 0.9)):
        pen.fill(sun, ellipse(x, y, radius * halo), opacity=opacity)
    for _ in range(rng.integers(2, 6)):
        x, y, size = rng.uniform(0, aspect), rng.uniform(0.05, 0.45), rng.uniform(0.06, 0.16)
        puffs = [ellipse(x + size * dx, y + size * dy, size * r) for dx, dy, r in _PUFFS]
        pen.fill((255, 255, 255), *puffs, opacity=rng.uniform(0.35, 0.75))
    return tone


def _hills(pen: Pen, palette: Palette, rng: Rng, aspect: float) -> None:
    tone = _sky(pen, palette, rng, aspect)
    levels = np.sort(rng.uniform(0.42, 0.95, rng.integers(3, 6)))
    for i, level in enumerate(levels):
        hill = _ridge(rng, aspect, level, 0.05)
        pen.fill(_soft(palette, rng, tone - 0.04 - 0.07 * i, 0.1), hill)
        region = pen.region(hill)
        if rng.random() < 0.5:  # furrows
            tint = _soft(palette, rng, tone - 0.14 - 0.07 * i, 0.1)
            lines = [moved(hill[:60], 0, dy) for dy in np.arange(0.04, 0.5, rng.uniform(0.035, 0.06))]
            pen.stroke(tint, 0.006, *lines, inside=region, opacity=0.5)


def _sea(pen: Pen, palette: Palette, rng: Rng, aspect: float) -> None:
    tone = _sky(pen, palette, rng, aspect)
    horizon = rng.uniform(0.35, 0.55)
    hue = palette.hue(rng)
    for i, level in enumerate(np.linspace(horizon, 1.0, int(rng.integers(5, 9)))[:-1]):
        water = _ridge(rng, aspect, level, 0.0 if i == 0 else 0.008)
        pen.fill(oklch(tone - 0.06 - 0.045 * i, 0.07, hue + 4 * i), water)
        foam = [
            curve([(x, y), (x + 0.03, y - 0.012), (x + 0.06, y), (x + 0.09, y - 0.012), (x + 0.12, y)])
            for x, y in rng.uniform((0, level + 0.03), (aspect, level + 0.13), (5, 2))
        ]
        pen.stroke((255, 255, 255), 0.005, *foam, opacity=0.55)


def _blobs(pen: Pen, palette: Palette, rng: Rng, aspect: float) -> None:
    tone = float(rng.choice((0.92, 0.86, 0.45)))
    _gradient(pen, _soft(palette, rng, tone), _soft(palette, rng, tone - 0.04))
    for _ in range(rng.integers(5, 10)):
        shape = moved(_blob(rng, rng.uniform(0.12, 0.4)), rng.uniform(0, aspect), rng.uniform(0, 1))
        pen.fill(_soft(palette, rng, tone - rng.uniform(-0.03, 0.14), 0.09), shape)
        if rng.random() < 0.4:
            pen.stroke(_soft(palette, rng, tone - 0.2, 0.08), 0.004, np.concatenate([shape, shape[:1]]) + 0.012)


def _weave(pen: Pen, palette: Palette, rng: Rng, aspect: float) -> None:
    """Draw wallpaper: stripes, dots or checks, slightly rotated."""
    tone = float(rng.choice((0.91, 0.86, 0.48)))
    _gradient(pen, _soft(palette, rng, tone), _soft(palette, rng, tone - 0.03))
    colour, angle = _soft(palette, rng, tone - 0.07, 0.07), rng.uniform(-40, 40)
    step = rng.uniform(0.06, 0.14)
    steps = np.arange(-2.0, 2.0, step)
    kind = rng.integers(3)
    if kind == 0:
        shapes = [box(-2, y, 2, y + step / 2) for y in steps]
    elif kind == 1:
        shapes = [ellipse(x, y, step * 0.22) for x in steps for y in steps]
    else:
        shapes = [box(x, y, x + step, y + step) for i, x in enumerate(steps) for y in steps[i % 2 :: 2]]
    pen.fill(colour, *(moved(rotated(shape, angle), aspect / 2, 0.5) for shape in shapes))


def _foliage(pen: Pen, palette: Palette, rng: Rng, aspect: float) -> None:
    """Draw large leaves that grow in from the borders."""
    tone = float(rng.choice((0.9, 0.84, 0.4)))
    _gradient(pen, _soft(palette, rng, tone), _soft(palette, rng, tone - 0.08, 0.09))
    for _ in range(rng.integers(12, 22)):
        x, y = rng.uniform(0, aspect), float(rng.choice((rng.uniform(-0.05, 0.15), rng.uniform(0.8, 1.05))))
        size, angle = rng.uniform(0.15, 0.34), rng.uniform(-60, 60) + (180 if y < 0.5 else 0)
        leaf, veins = _leaf(size)
        place = np.array((x, y))
        pen.fill(_soft(palette, rng, tone - rng.uniform(0.05, 0.25), 0.09), rotated(leaf, angle) + place)
        vein = _soft(palette, rng, tone, 0.06)
        pen.stroke(vein, 0.005, *(rotated(line, angle) + place for line in veins), opacity=0.7)


_GROUNDS: tuple[Callable[[Pen, Palette, Rng, float], None], ...] = (_hills, _sea, _blobs, _weave, _foliage)


def _blob(rng: Rng, size: float) -> Points:
    return curve(around(size * rng.uniform(0.6, 1.1, 8)), closed=True)


def _leaf(size: float) -> tuple[Points, list[Points]]:
    """Return the outline and the veins of a leaf that grows up from the origin."""
    leaf = curve([(0, 0), (0.22, -0.3), (0.2, -0.7), (0, -1), (-0.2, -0.7), (-0.22, -0.3)], closed=True)
    veins = [points([(0, 0), (0, -0.9)])]
    veins += [points([(0, -y), (side * 0.15, -y - 0.12)]) for y in (0.2, 0.38, 0.56, 0.7) for side in (-1, 1)]
    return leaf * size, [line * size for line in veins]


def _clutter(pen: Pen, palette: Palette, rng: Rng, aspect: float) -> None:
    """Scatter small shapes of no class, so that texture alone does not identify a class."""
    for _ in range(rng.integers(12, 40)):
        item = _ITEMS[rng.integers(len(_ITEMS))]
        size = rng.uniform(0.02, 0.075)
        place, angle = np.array((rng.uniform(0, aspect), rng.uniform(0, 1))), rng.uniform(0, 360)
        colour = oklch(rng.uniform(0.5, 0.9), rng.uniform(0.04, 0.13), palette.hue(rng, 30))
        fills, lines = item(rng)
        opacity = float(rng.choice((0.45, 0.7, 0.95)))
        if fills:
            pen.fill(colour, *(rotated(shape * size, angle) + place for shape in fills), opacity=opacity)
        if lines:
            pen.stroke(colour, size * 0.16, *(rotated(line * size, angle) + place for line in lines), opacity=opacity)


Item = tuple[list[Points], list[Points]]  # filled polygons, strokes


def _sprig() -> Item:
    leaf = _leaf(0.9)[0]
    leaves = [moved(rotated(leaf, side * 50), 0, -y) for y in (0.0, 0.5, 1.0) for side in (-1, 1)]
    return [*leaves, moved(leaf, 0, -1.2)], [points([(0, 0.6), (0, -1.4)])]


def _star(rng: Rng) -> Points:
    spikes = 2 * int(rng.integers(4, 7))
    return around(np.where(np.arange(spikes) % 2, 0.45, 1.0))


def _scales() -> list[Points]:
    rows = ((0.25 * (i % 2), 0.4 * i - 0.6) for i in range(4))
    return [ellipse(x + shift, y, 0.25, start=0, stop=180) for shift, y in rows for x in (-0.75, -0.25, 0.25)]


_ITEMS: tuple[Callable[[Rng], Item], ...] = (
    lambda _: ([_leaf(2.0)[0]], []),
    lambda _: _sprig(),
    lambda _: ([], [ellipse(0, 0, 0.8)]),  # ring
    lambda rng: ([_star(rng)], []),
    lambda _: ([box(-0.9, y, 0.9, y + 0.22) for y in (-0.8, -0.35, 0.1, 0.55)], []),  # bars
    lambda _: ([ellipse(x, y, 0.17) for x in (-0.7, 0, 0.7) for y in (-0.7, 0, 0.7)], []),  # dots
    lambda _: ([points([(0, -0.9), (0.8, 0.6), (-0.8, 0.6)])], []),  # triangle
    lambda _: ([], [points([(0.4 * i - 1.2, 0.4 * (i % 2)) for i in range(7)])]),  # zigzag
    lambda rng: ([], [curve([(0.5 * i - 1.5, rng.uniform(-0.6, 0.6)) for i in range(7)])]),  # squiggle
    lambda _: ([ellipse(0, 0, 0.9, start=180, stop=360)], []),  # half a disc
    lambda rng: ([_blob(rng, 0.9)], []),  # pebble
    lambda _: ([], [points([(-0.7, 0), (0.7, 0)]), points([(0, -0.7), (0, 0.7)])]),  # cross
    lambda _: ([], _scales()),
)
