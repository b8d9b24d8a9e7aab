"""A drawing pen: filled polygons, strokes and soft shading in unit coordinates, on an oversized canvas."""

from __future__ import annotations

from collections.abc import Iterable

import cv2
import numpy as np
from numpy.typing import NDArray

from detcam.scenes.palette import Colour

Points = NDArray[np.float64]  # [K,2], x to the right and y down
Region = NDArray[np.bool_]  # [H,W] of the pen's canvas
Pairs = Iterable[tuple[float, float]]

_SUBPIXEL = 4  # cv2 reads coordinates as integers in 1/16 pixel


def points(pairs: Pairs | Points) -> Points:
    """Return pairs of x, y as float64 [K,2]."""
    return np.array(pairs if isinstance(pairs, np.ndarray) else list(pairs), np.float64)


def box(left: float, top: float, right: float, bottom: float) -> Points:
    """Return the four corners of an upright rectangle."""
    return points([(left, top), (right, top), (right, bottom), (left, bottom)])


def ellipse(
    x: float,
    y: float,
    rx: float,
    ry: float | None = None,
    start: float = 0,
    stop: float = 360,
    tilt: float = 0,
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
        for shape in shapes:  # in turn: cv2 would cut out their overlaps
            cv2.fillPoly(mask, [self._pixels(shape)], 1, shift=_SUBPIXEL)
        return mask.astype(bool)

    def fill(self, colour: Colour, *shapes: Points, inside: Region | None = None, opacity: float = 1.0) -> None:
        """Fill polygons, within `inside` if given."""
        corners = [self._pixels(shape) for shape in shapes]
        if opacity == 1.0 and inside is None:
            for corner in corners:
                cv2.fillPoly(self.rgb, [corner], colour, shift=_SUBPIXEL)
                cv2.fillPoly(self.ink, [corner], 255, shift=_SUBPIXEL)
            return
        mask = np.zeros(self.ink.shape, np.uint8)
        for corner in corners:
            cv2.fillPoly(mask, [corner], 1, shift=_SUBPIXEL)
        self._tint(colour, mask, np.concatenate(corners), 0, inside, opacity)

    def stroke(
        self, colour: Colour, width: float, *paths: Points, inside: Region | None = None, opacity: float = 1.0
    ) -> None:
        """Draw open lines with round ends; `width` is in unit coordinates."""
        corners = [self._pixels(path) for path in paths]
        thick = max(1, round(width * self.scale))
        if opacity == 1.0 and inside is None:
            cv2.polylines(self.rgb, corners, False, colour, thick, shift=_SUBPIXEL)
            cv2.polylines(self.ink, corners, False, 255, thick, shift=_SUBPIXEL)
            return
        mask = np.zeros(self.ink.shape, np.uint8)
        cv2.polylines(mask, corners, False, 1, thick, shift=_SUBPIXEL)
        self._tint(colour, mask, np.concatenate(corners), thick, inside, opacity)

    def shade(self, region: Region, depth: float = 0.2, reach: float = 0.16) -> None:
        """Shade a region as if round: darken its lower right and lighten its upper left edge.

        The light comes from the upper left of the image, whatever the rotation of the object.
        """
        if not region.any():
            return
        step, area = max(1, round(reach * self.scale)), region.astype(np.float32)
        top, left, height, width = _bounds(region, pad=2 * step)
        area = area[top : top + height, left : left + width]
        blurred = cv2.blur(cv2.blur(area, (step, step), borderType=cv2.BORDER_CONSTANT), (step, step))
        glow = np.asarray(blurred, np.float32)
        slope = _slid(glow, -step // 2) - _slid(glow, step // 2)  # > 0 at the lit edge
        gain = 1 - depth * np.clip(slope, -1, 1) * np.where(slope > 0, -0.55, -1.0)
        patch = self.rgb[top : top + height, left : left + width]
        lit = np.clip(patch * gain[..., None], 0, 255).astype(np.uint8)
        patch[area > 0] = lit[area > 0]

    def _pixels(self, shape: Points) -> NDArray[np.int32]:
        pixels = shape @ self.matrix[:, :2].T + self.matrix[:, 2]
        return np.rint(pixels * 2**_SUBPIXEL).astype(np.int32)

    def _tint(
        self,
        colour: Colour,
        mask: NDArray[np.uint8],
        corners: NDArray[np.int32],
        pad: int,
        inside: Region | None,
        opacity: float,
    ) -> None:
        """Blend `colour` into the masked part of the canvas, within the bounds of `corners`."""
        low, high = corners.min(axis=0) / 2**_SUBPIXEL - pad - 1, corners.max(axis=0) / 2**_SUBPIXEL + pad + 2
        (left, top), (right, bottom) = np.maximum(low, 0).astype(int), np.maximum(high, 0).astype(int)
        window = np.s_[top:bottom, left:right]
        chosen = mask[window].astype(bool)
        if inside is not None:
            chosen &= inside[window]
        old = self.rgb[window][chosen]
        self.rgb[window][chosen] = np.rint(old * (1 - opacity) + np.array(colour) * opacity).astype(np.uint8)
        self.ink[window][chosen] = 255


def _bounds(region: Region, pad: int) -> tuple[int, int, int, int]:
    """Return top, left, height, width of the box around a region, padded by `pad` within the canvas."""
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    top, left = max(0, int(rows[0]) - pad), max(0, int(columns[0]) - pad)
    bottom, right = (
        min(region.shape[0], int(rows[-1]) + 1 + pad),
        min(region.shape[1], int(columns[-1]) + 1 + pad),
    )
    return top, left, bottom - top, right - left


def _slid(image: NDArray[np.float32], step: int) -> NDArray[np.float32]:
    """Return `image` shifted by `step` pixels down and to the right, padded with zeros."""
    shift = np.array([[1, 0, step], [0, 1, step]], np.float64)
    return np.asarray(cv2.warpAffine(image, shift, (image.shape[1], image.shape[0])), np.float32)
