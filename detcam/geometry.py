"""Geometry: the letterbox, and exact coordinate transforms between source pixels and the network's input."""

import math
from dataclasses import dataclass

import cv2
import numpy as np
from torch import Tensor

PADDING_GREY = 114  # the padding of YOLO models in training


@dataclass(frozen=True)
class Geometry:
    """Placement of a source image, or of a crop of it, in the network's input. All sizes are (height, width) in pixels.

    Pixel centres lie at half-integers: source x maps to `(x - crop_left) * resized_width / crop_width + left`.
    """

    source: tuple[int, int]
    resized: tuple[int, int]  # the crop's
    pad: tuple[int, int]  # (top, left)
    network: tuple[int, int]
    crop: tuple[int, int, int, int] | None = None  # (top, left, height, width) in the source; None: all of it

    @property
    def axes(self) -> tuple[tuple[int, int, float, float], ...]:
        """Down and across: (start, stop) of the crop, and (gain, offset): source x maps to `x * gain + offset`."""
        top, left, height, width = self.crop or (0, 0, *self.source)
        down, across = self.resized[0] / height, self.resized[1] / width
        return (
            (top, top + height, down, self.pad[0] - top * down),
            (left, left + width, across, self.pad[1] - left * across),
        )

    def _gain_and_offset(self, like: Tensor) -> tuple[Tensor, Tensor]:
        (_, _, down, y), (_, _, across, x) = self.axes
        return like.new_tensor([across, down] * 2), like.new_tensor([x, y] * 2)

    def to_source(self, boxes: Tensor) -> Tensor:
        """Boxes [N, 4] xyxy in pixels of the network's input as source pixels, clipped to the image or its crop."""
        gain, offset = self._gain_and_offset(boxes)
        boxes = (boxes - offset) / gain
        (top, bottom, *_), (left, right, *_) = self.axes
        return boxes.maximum(boxes.new_tensor([left, top] * 2)).minimum(boxes.new_tensor([right, bottom] * 2))

    def to_network(self, boxes: Tensor) -> Tensor:
        """Boxes [N, 4] xyxy in source pixels as pixels of the network's input."""
        gain, offset = self._gain_and_offset(boxes)
        return boxes * gain + offset

    def window(
        self, cells: tuple[int, int], box: tuple[float, float, float, float] | None = None
    ) -> tuple[float, float, float, float]:
        """(left, top, right, bottom) in cells of a feature map of `cells` = (h, w): of the image, or of a box in it."""
        x1, y1, x2, y2 = box or (0, 0, *self.source[::-1])
        (_, _, down, y), (_, _, across, x) = self.axes
        scale_y, scale_x = cells[0] / self.network[0], cells[1] / self.network[1]
        left, right = ((edge * across + x) * scale_x for edge in (x1, x2))
        top, bottom = ((edge * down + y) * scale_y for edge in (y1, y2))
        return left, top, right, bottom

    def seen(self, size: tuple[int, int]) -> tuple[slice, slice]:
        """The rows and columns of the image, resized to `size`, whose centres lie in the network's input.

        These are all rows and columns unless the image was cropped, here or by a processor, which makes a pad negative.
        """
        spans = []
        for pixels, source, network, axis in zip(size, self.source, self.network, self.axes, strict=True):
            start, stop, gain, offset = axis
            edges = max(start, -offset / gain), min(stop, (network - offset) / gain)
            first, last = (math.ceil(edge * pixels / source - 0.5) for edge in edges)
            spans.append(slice(min(max(first, 0), pixels), min(max(last, 0), pixels)))
        return spans[0], spans[1]


def white(image: np.ndarray) -> float:
    """The largest value of an image's type: 255 for uint8, 65535 for uint16, 1 for floats."""
    return 1.0 if image.dtype.kind == "f" else float(np.iinfo(image.dtype).max)


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """An image [H, W, C] resized bilinearly to `size` = (height, width); of that size, itself."""
    if image.shape[:2] == size:
        return image
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR).reshape(*size, -1)


def letterbox(image: np.ndarray, size: tuple[int, int], stride: int) -> tuple[np.ndarray, Geometry]:
    """Resize an image to fit `size`, keep its aspect ratio, and pad each side to a multiple of `stride`.

    Args:
        image: [H, W, C] uint8, uint16, or float32 in [0, 1].
        size: (height, width) of the network's input, the maximum size of the result.
        stride: the model's largest stride, in pixels.

    Returns:
        The padded image [h, w, C] of the same type, and its geometry. The pixels equal those of Ultralytics'
        `LetterBox(auto=True)`, the input of its predict call.
    """
    source = image.shape[0], image.shape[1]
    ratio = min(size[0] / source[0], size[1] / source[1])
    height, width = max(round(source[0] * ratio), 1), max(round(source[1] * ratio), 1)
    spare_y, spare_x = (size[0] - height) % stride / 2, (size[1] - width) % stride / 2
    # An odd spare pixel goes to the bottom and the right.
    top, bottom = round(spare_y - 0.1), round(spare_y + 0.1)
    left, right = round(spare_x - 0.1), round(spare_x + 0.1)
    network = top + height + bottom, left + width + right
    padded = np.full((*network, image.shape[2]), PADDING_GREY * white(image) / 255, image.dtype)
    padded[top : top + height, left : left + width] = resize(image, (height, width))
    return padded, Geometry(source, (height, width), (top, left), network)
