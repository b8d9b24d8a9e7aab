"""Packing: heatmaps, images and colour maps as short strings embedded in a page."""

import base64
import zlib
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from detcam.geometry import Geometry
from detcam.render import COLORMAPS, colour_table, shrunk
from detcam.saved import PICTURE, Saved, broken

THUMBNAIL = 256  # pixels
THUMBNAIL_CELLS = 40


def span(geometry: Geometry) -> list[float]:
    """(left, top, right, bottom) of the network's input, which a map covers, as shares of the image.

    Below 0 or above 1 where the image was padded, inside [0, 1] where it was cropped.
    """
    edges = [
        (-pad / resized, (network - pad) / resized)
        for resized, pad, network in zip(geometry.resized, geometry.pad, geometry.network, strict=True)
    ]
    (top, bottom), (left, right) = edges
    return [round(edge, 9) for edge in (left, top, right, bottom)]


def pack_map(raw: np.ndarray, cells: int) -> dict[str, Any]:
    """A raw coarse map as 256 grey levels, normalised like `Explanation.heatmaps`: ReLU, minimum to maximum.

    Args:
        raw: [h, w] float32; values that are not finite count as 0.
        cells: largest number of rows or columns; finer maps are averaged down.

    Returns:
        "rows", "columns"; "low" and "high", the raw values of heat 0 and 1; "data", the levels [rows, columns] uint8,
        compressed by zlib, in base64.
    """
    positive = np.where(np.isfinite(raw), raw, 0).clip(min=0).astype(np.float32)
    low, high = float(positive.min()), float(positive.max())
    heat: np.ndarray = (positive - low) / (high - low) if high > low else np.zeros_like(positive)
    levels = np.rint(shrunk(heat, cells) * 255).astype(np.uint8)
    return {
        "rows": levels.shape[0],
        "columns": levels.shape[1],
        "low": low,
        "high": high,
        "data": _text(zlib.compress(levels.tobytes(), 9)),
    }


def colour_tables() -> dict[str, str]:
    """Each of `detcam.render.COLORMAPS` as 256 x RGBA bytes in base64, in the same order; opacity as in overlays."""
    opacity = np.rint(255 * np.sqrt(np.arange(256) / 255)).astype(np.uint8)
    return {name: _text(np.column_stack([colour_table(name), opacity]).tobytes()) for name in COLORMAPS}


def jpeg(data: bytes) -> str:
    """A JPEG file as a data URL."""
    return f"data:image/jpeg;base64,{_text(data)}"


def thumbnail(saved: Saved, view: Sequence[float] = (0, 0, 1, 1)) -> str:
    """A small WebP of a saved image, as a data URL.

    Args:
        saved: the explanation.
        view: left, top, right, bottom of the crop, as shares of the image.

    Raises:
        InputError: if `picture.jpg` is damaged.
    """
    picture = saved.picture
    image = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR) if picture else None
    if image is None:
        raise broken(saved.folder, f"{PICTURE}: not a JPEG file")
    height, width = image.shape[:2]
    left, top, right, bottom = (round(share * side) for share, side in zip(view, (width, height) * 2, strict=True))
    image = image[top : max(bottom, top + 1), left : max(right, left + 1)]
    return webp(image, THUMBNAIL, 60)


def webp(image: np.ndarray, longest: int, quality: int) -> str:
    """An image [H, W, 3] uint8 BGR as a WebP data URL, no side longer than `longest` pixels."""
    data = cv2.imencode(".webp", shrunk(image, longest), [cv2.IMWRITE_WEBP_QUALITY, quality])[1]
    return f"data:image/webp;base64,{_text(data.tobytes())}"


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
