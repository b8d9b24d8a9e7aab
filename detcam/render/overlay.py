"""Overlays: heatmaps, boxes and titles on an image, and contact sheets."""

import math
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from detcam import ops
from detcam.errors import InputError, nearest
from detcam.render.labels import FONT, shortened, typeset

COLORMAPS = {  # perceptually uniform colour maps first
    "inferno": cv2.COLORMAP_INFERNO,
    "magma": cv2.COLORMAP_MAGMA,
    "viridis": cv2.COLORMAP_VIRIDIS,
    "cividis": cv2.COLORMAP_CIVIDIS,
    "turbo": cv2.COLORMAP_TURBO,
    "jet": cv2.COLORMAP_JET,
}
BOX_COLOUR = (64, 224, 255)  # RGB; cyan contrasts with the warm tones of the default colour map
SHEET = 1600  # width of a contact sheet in pixels


def colour_table(colormap: str) -> np.ndarray:
    """The colours [256, 3] uint8 RGB of a colour map, by grey level; an InputError for one that is not in COLORMAPS."""
    if colormap not in COLORMAPS:
        raise InputError(f"colormap {colormap!r} does not exist: {nearest(colormap, COLORMAPS)}")
    ramp = np.arange(256, dtype=np.uint8)[None]
    return np.ascontiguousarray(cv2.applyColorMap(ramp, COLORMAPS[colormap])[0, :, ::-1])


def blend(image: np.ndarray, heatmap: np.ndarray, alpha: float, colormap: str = "inferno") -> np.ndarray:
    """Blend a heatmap over an image; opacity grows with the heat, so cold regions stay clear.

    Args:
        image: [H, W, 3] uint8 RGB.
        heatmap: [H, W] float32 in [0, 1].
        alpha: opacity at heat 1, in [0, 1].
        colormap: a key of COLORMAPS.

    Returns:
        [H, W, 3] uint8 RGB.
    """
    colours = colour_table(colormap)[np.rint(heatmap * 255).astype(np.uint8)]
    # The square root keeps weak evidence visible.
    opacity = (alpha * np.sqrt(heatmap))[:, :, None].astype(np.float32)
    mixed = image.astype(np.float32) * (1 - opacity) + colours.astype(np.float32) * opacity
    return np.rint(mixed).astype(np.uint8)


def heated(
    image: np.ndarray, maps: Tensor, windows: Tensor, boxes: Tensor | None, alpha: float, colormap: str
) -> np.ndarray:
    """The image with heatmaps, the hottest in front, composited in one pass on the device of the maps.

    Args:
        image: [H, W, 3] uint8 RGB.
        maps: [K, h, w] in [0, 1].
        windows: [K, 4], the part of each map that fills the image, in cells.
        boxes: [K, 4], the region in which each is drawn, in pixels; None: the image.
        alpha: opacity at heat 1, in [0, 1].
        colormap: a key of COLORMAPS.

    Raises:
        InputError: for another opacity or colour map.
    """
    if not 0 <= alpha <= 1:
        raise InputError(f"alpha: expected a number in [0, 1], got {alpha}")
    lut = torch.from_numpy(colour_table(colormap)).to(maps.device)
    index = torch.zeros(len(maps), dtype=torch.int64, device=maps.device)
    picture = torch.from_numpy(np.require(image, requirements=["C", "W"]))
    if maps.device.type == "cuda":
        picture = picture.pin_memory()  # so that the copy is asynchronous
    picture = picture.to(maps.device, non_blocking=True)
    painted = ops.overlay(picture, maps, lut, index, opacity=alpha, window=windows, boxes=boxes)
    return np.asarray(painted.cpu())


def draw_box_on(
    picture: np.ndarray, box: Sequence[float], title: str, colour: tuple[int, int, int] = BOX_COLOUR
) -> None:
    """Draw a box (xyxy, pixels) on a contiguous image [H, W, 3] uint8, in place; its title stands above or inside it.

    A title too wide for the image is shortened, see `detcam.render.labels.shortened`.
    """
    height, width = picture.shape[:2]
    x1, y1, x2, y2 = (round(v) for v in box)
    thickness = max(round((height + width) / 700), 1)
    scale = max((height + width) / 2400, 0.4)
    cv2.rectangle(picture, (x1, y1), (x2 - 1, y2 - 1), colour, thickness, cv2.LINE_AA)
    font, text = typeset(title)
    face = None if font is None else ImageFont.truetype(str(font), round(31 * scale))  # as high as OpenCV's letters

    def measured(text: str) -> tuple[int, int, int]:  # width, height above the base line, height below it
        if face is not None:
            return math.ceil(face.getlength(text)), *face.getmetrics()
        (text_width, text_height), below = cv2.getTextSize(text, FONT, scale, thickness)
        return text_width, text_height, below

    text = shortened(text, lambda cut: measured(cut)[0] + 6 <= width)
    if not text:
        return
    text_width, text_height, below = measured(text)
    bar = text_height + below + 4
    left = min(max(x1, 0), max(width - text_width - 6, 0))
    top = max(min(y1 - bar if y1 >= bar else y1, height - bar), 0)
    cv2.rectangle(picture, (left, top), (left + text_width + 6, top + bar), colour, cv2.FILLED)
    if face is None:
        origin = (left + 3, top + text_height + 2)
        cv2.putText(picture, text, origin, FONT, scale, (0, 0, 0), thickness, cv2.LINE_AA)
    else:
        place = picture[top : top + bar + 1, left : left + text_width + 7]
        patch = Image.fromarray(place)
        ImageDraw.Draw(patch).text((3, text_height + 2), text, (0, 0, 0), face, anchor="ls")
        place[:] = np.asarray(patch)


def shrunk(image: np.ndarray, longest: int) -> np.ndarray:
    """An array [H, W] or [H, W, C] averaged down until no side is longer than `longest`; a smaller one as it is."""
    height, width = image.shape[:2]
    shrink = longest / max(height, width)
    if shrink >= 1:
        return image
    size = max(round(width * shrink), 1), max(round(height * shrink), 1)
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA))


def contact_sheet(pictures: Sequence[np.ndarray], width: int = SHEET) -> np.ndarray:
    """Images ([H, W, 3] uint8 RGB, all of one size) on one sheet of about `width` pixels, in reading order."""
    columns = min(len(pictures), 2 if len(pictures) <= 2 else 3 if len(pictures) <= 9 else 5)
    gap = 8
    height, source_width = pictures[0].shape[:2]
    tile_width = (width - gap * (columns + 1)) // columns
    tile_width = max(min(tile_width, round(2 * tile_width * source_width / height)), 1)  # at most twice as high as wide
    tile_height = max(round(height * tile_width / source_width), 1)
    rows = -(-len(pictures) // columns)
    sheet = np.full((rows * (tile_height + gap) + gap, columns * (tile_width + gap) + gap, 3), 24, np.uint8)
    method = cv2.INTER_AREA if tile_width < source_width else cv2.INTER_LINEAR
    for i, picture in enumerate(pictures):
        y = gap + i // columns * (tile_height + gap)
        x = gap + i % columns * (tile_width + gap)
        tile = cv2.resize(picture, (tile_width, tile_height), interpolation=method)
        sheet[y : y + tile_height, x : x + tile_width] = tile
    return sheet
