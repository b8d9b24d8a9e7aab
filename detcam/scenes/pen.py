"""A drawing pen and its colours.

The pen draws filled polygons, strokes and soft shading in unit coordinates, on an oversized canvas. Colours are random
and harmonious, in OKLCH, where equal lightness looks equally light: the polar form of OKLab (B. Ottosson, 2020, "A
perceptual color space for image processing").
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Colour = tuple[int, int, int]
Points = NDArray[np.float64]  # [K,2], x to the right and y down
Region = NDArray[np.bool_]  # [H,W] of the pen's canvas
Pairs = Iterable[tuple[float, float]]
Canvas = NDArray[np.uint8]  # [H,W] or [H,W,3]
Corners = NDArray[np.int32]  # [K,2], as cv2 reads them
Draw = Callable[[Canvas, Colour | int, list[Corners]], None]

_SUBPIXEL = 4  # cv2 reads coordinates as integers in 1/16 pixel
# Hue steps of the classic colour schemes, in degrees: analogous, split complementary, triad, square.
_SCHEMES = ((0, 28, 56, 200), (0, 150, 210, 30), (0, 120, 240, 60), (0, 90, 180, 270))


def points(pairs: Pairs | Points) -> Points:
    """Return pairs of x, y as float64 [K,2]."""
    return np.array(pairs if isinstance(pairs, np.ndarray) else list(pairs), np.float64)


def box(left: float, top: float, right: float, bottom: float) -> Points:
    """Return the four corners of an upright rectangle."""
    return points([(left, top), (right, top), (right, bottom), (left, bottom)])


def around(radii: NDArray[np.float64], turn: float = 0.0) -> Points:
    """Return a polygon around the origin: its corners at these distances and equal angles, the first at `turn`."""
    angle = np.linspace(0, 2 * np.pi, len(radii) + 1)[:-1] + turn
    return np.stack([radii * np.cos(angle), radii * np.sin(angle)], axis=1)


def ellipse(
    x: float, y: float, rx: float, ry: float | None = None, start: float = 0, stop: float = 360, tilt: float = 0
) -> Points:
    """An ellipse, or its arc from `start` to `stop` (degrees, clockwise on screen), rotated by `tilt`."""
    angle = np.deg2rad(np.linspace(start, stop, 49))
    arc = np.stack([rx * np.cos(angle), (rx if ry is None else ry) * np.sin(angle)], axis=1)
    return moved(rotated(arc, tilt), x, y)


def rotated(shape: Points, degrees: float) -> Points:
    """Return `shape` rotated about the origin, clockwise on screen."""
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return shape @ np.array([[cos, sin], [-sin, cos]])


def moved(shape: Points, x: float, y: float) -> Points:
    """Return `shape` shifted by (x, y)."""
    return shape + np.array((x, y))


def mirrored(shape: Pairs | Points) -> Points:
    """Return the left-to-right mirror image."""
    return points(shape) * (-1, 1)


def curve(knots: Pairs | Points, closed: bool = False, steps: int = 12) -> Points:
    """Return a smooth curve through all knots (uniform Catmull-Rom spline)."""
    k = points(knots)
    ring = np.concatenate([k[-1:], k, k[:2]]) if closed else np.concatenate([k[:1], k, k[-1:]])
    before, here, there, after = ring[:-3, None], ring[1:-2, None], ring[2:-1, None], ring[3:, None]
    t = np.linspace(0, 1, steps, endpoint=False)[None, :, None]
    bend = t * (there - before) + t**2 * (2 * before - 5 * here + 4 * there - after)
    smooth = here + 0.5 * (bend + t**3 * (3 * here - before - 3 * there + after))
    path = smooth.reshape(-1, 2)
    return path if closed else np.concatenate([path, k[-1:]])


class Pen:
    """Draws on a canvas: `rgb` uint8 [H,W,3] and `ink` uint8 [H,W], 255 where anything was drawn.

    `matrix` float [2,3] takes unit coordinates to canvas pixels. The canvas should be a few times the final
    size: downsampling antialiases the edges, so the pen does not.
    """

    def __init__(self, matrix: NDArray[np.float64], height: int, width: int) -> None:
        self.matrix = matrix
        self.scale = float(np.sqrt(abs(np.linalg.det(matrix[:, :2]))))
        self.rgb = np.zeros((height, width, 3), np.uint8)
        self.ink = np.zeros((height, width), np.uint8)

    def region(self, *shapes: Points) -> Region:
        """Return the union of the polygons, without drawing."""
        mask = np.zeros(self.ink.shape, np.uint8)
        _fill(mask, 1, [self._pixels(shape) for shape in shapes])
        return mask.astype(bool)

    def fill(self, colour: Colour, *shapes: Points, inside: Region | None = None, opacity: float = 1.0) -> None:
        """Fill polygons, within `inside` if given."""
        self._draw(_fill, colour, [self._pixels(shape) for shape in shapes], 0, inside, opacity)

    def stroke(
        self, colour: Colour, width: float, *paths: Points, inside: Region | None = None, opacity: float = 1.0
    ) -> None:
        """Draw open lines with round ends; `width` is in unit coordinates."""
        thick = max(1, round(width * self.scale))

        def lines(canvas: Canvas, value: Colour | int, corners: list[Corners]) -> None:
            cv2.polylines(canvas, corners, False, value, thick, shift=_SUBPIXEL)

        self._draw(lines, colour, [self._pixels(path) for path in paths], thick, inside, opacity)

    def reduced(self, side: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return a square drawing at `side` pixels: colour [h,w,3], premultiplied by alpha, and alpha [h,w]."""
        rgb, ink = (
            cv2.resize(canvas.astype(np.float32), (side, side), interpolation=cv2.INTER_AREA)
            for canvas in (self.rgb, self.ink)
        )
        return np.asarray(rgb, np.float32), np.asarray(ink, np.float32) / np.float32(255)

    def shade(self, region: Region, depth: float = 0.2, reach: float = 0.16) -> None:
        """Shade a region as if round: darken its lower right and lighten its upper left edge.

        The light comes from the upper left of the image, whatever the rotation of the object.
        """
        if not region.any():
            return
        step, area = max(1, round(reach * self.scale)), region.astype(np.float32)
        left, top, width, height = cv2.boundingRect(region.view(np.uint8))
        far = 2 * step
        window = np.s_[max(0, top - far) : top + height + far, max(0, left - far) : left + width + far]
        area = area[window]
        blurred = cv2.blur(cv2.blur(area, (step, step), borderType=cv2.BORDER_CONSTANT), (step, step))
        glow = np.asarray(blurred, np.float32)
        slope = _slid(glow, -step // 2) - _slid(glow, step // 2)  # > 0 at the lit edge
        gain = 1 - depth * np.clip(slope, -1, 1) * np.where(slope > 0, -0.55, -1.0)
        patch = self.rgb[window]
        lit = np.clip(patch * gain[..., None], 0, 255).astype(np.uint8)
        patch[area > 0] = lit[area > 0]

    def _pixels(self, shape: Points) -> NDArray[np.int32]:
        pixels = shape @ self.matrix[:, :2].T + self.matrix[:, 2]
        return np.rint(pixels * 2**_SUBPIXEL).astype(np.int32)

    def _draw(
        self, draw: Draw, colour: Colour, shapes: list[Corners], pad: int, inside: Region | None, opacity: float
    ) -> None:
        """Draw shapes, which reach `pad` pixels beyond their corners; blend them in if they are translucent or cut."""
        if opacity == 1.0 and inside is None:
            draw(self.rgb, colour, shapes)
            draw(self.ink, 255, shapes)
            return
        mask = np.zeros(self.ink.shape, np.uint8)
        draw(mask, 1, shapes)
        corners = np.concatenate(shapes)
        low, high = corners.min(axis=0) / 2**_SUBPIXEL - pad - 1, corners.max(axis=0) / 2**_SUBPIXEL + pad + 2
        (left, top), (right, bottom) = np.maximum(low, 0).astype(int), np.maximum(high, 0).astype(int)
        window = np.s_[top:bottom, left:right]
        chosen = mask[window].astype(bool)
        if inside is not None:
            chosen &= inside[window]
        old = self.rgb[window][chosen]
        self.rgb[window][chosen] = np.rint(old * (1 - opacity) + np.array(colour) * opacity).astype(np.uint8)
        self.ink[window][chosen] = 255


def _fill(canvas: Canvas, value: Colour | int, shapes: list[Corners]) -> None:
    for corners in shapes:  # in turn: cv2 would cut out their overlaps
        cv2.fillPoly(canvas, [corners], value, shift=_SUBPIXEL)


def _slid(image: NDArray[np.float32], step: int) -> NDArray[np.float32]:
    """Return `image` shifted by `step` pixels down and to the right, padded with zeros."""
    shift = np.array([[1, 0, step], [0, 1, step]], np.float64)
    return np.asarray(cv2.warpAffine(image, shift, (image.shape[1], image.shape[0])), np.float32)


def oklch(lightness: float, chroma: float, hue: float) -> Colour:
    """Return the sRGB colour, three ints in 0..255, of an OKLCH triple; `hue` is in degrees."""
    a, b = chroma * np.cos(np.deg2rad(hue)), chroma * np.sin(np.deg2rad(hue))
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = np.array(
        (
            4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
            -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
            -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
        )
    ).clip(0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    red, green, blue = np.rint(255 * encoded).astype(int).tolist()
    return red, green, blue


@dataclass(frozen=True)
class Ink:
    """The colours of an object: two vivid colours, a trim colour, and a dark and a light neutral."""

    main: Colour
    second: Colour
    trim: Colour
    dark: Colour
    light: Colour


@dataclass(frozen=True)
class Palette:
    """A colour scheme shared by everything in a scene: `hues` in degrees."""

    hues: tuple[float, ...]

    @classmethod
    def random(cls, rng: np.random.Generator) -> Palette:
        """A classic scheme at a random position on the colour wheel."""
        scheme = _SCHEMES[rng.integers(len(_SCHEMES))]
        return cls(tuple((rng.uniform(0, 360) + np.array(scheme, float)) % 360))

    def hue(self, rng: np.random.Generator, spread: float = 14.0) -> float:
        """A hue of the scheme with a small random shift."""
        return float(rng.choice(self.hues) + rng.uniform(-spread, spread))

    def ink(self, rng: np.random.Generator) -> Ink:
        """Colours of an object: the same distribution for every class, so colour does not identify a class."""
        main, second, trim = rng.permutation(np.array(self.hues))[:3] + rng.uniform(-14, 14, 3)
        if rng.random() < 0.35:  # near-white: frequent on real balloons and sails
            pale: Colour = oklch(rng.uniform(0.92, 0.97), 0.03, second)
        else:
            pale = oklch(rng.uniform(0.68, 0.86), rng.uniform(0.09, 0.15), second)
        return Ink(
            main=oklch(rng.uniform(0.58, 0.74), rng.uniform(0.11, 0.17), main),
            second=pale,
            trim=oklch(rng.uniform(0.62, 0.84), rng.uniform(0.11, 0.17), trim),
            dark=oklch(rng.uniform(0.28, 0.40), rng.uniform(0.03, 0.08), trim),
            light=oklch(rng.uniform(0.94, 0.975), 0.02, main),
        )
