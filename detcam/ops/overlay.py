"""The operator `overlay`: schema, shape inference, and the checked Python call."""

import reprlib
from typing import Any

import torch
from torch import Tensor

from detcam.ops import library as common
from detcam.ops import reference
from detcam.ops.library import library

BLENDS: dict[str, str] = {
    "max": "the hottest object colours the pixel",
    "alpha": "each object is painted over the last, in order",
}

library.define(
    "overlay(Tensor frames, Tensor maps, Tensor lut, Tensor? index, Tensor? window, Tensor? boxes, float opacity, "
    "str blend) -> Tensor"
)
library.impl("overlay", reference.overlay, "CompositeExplicitAutograd")


@torch.library.register_fake("detcam::overlay", lib=library)
def _overlay_fake(frames: Tensor, *rest: Any) -> Tensor:
    return frames.new_empty(frames.shape)


def overlay(
    frame: Tensor,  # [H, W, 3] or [B, H, W, 3] uint8
    maps: Tensor,  # [N, h, w]
    lut: Tensor,  # [256, 3] uint8
    index: Tensor | None = None,  # [N] int64
    *,
    opacity: float = 0.75,
    window: Tensor | tuple[float, float, float, float] | None = None,  # [4] or [N, 4] float32
    boxes: Tensor | None = None,  # [N, 4]
    blend: str = "max",
) -> Tensor:  # like frame
    """Paint the coarse maps of N objects over one or several images, in one pass over the pixels.

    Each map is resized as by `detcam.ops.cam_maps`: bilinear, half-pixel centres, border cells repeated. A pixel
    of heat h takes the colour `lut[round(255 h)]` at the opacity `opacity * sqrt(h)`, as in
    `detcam.render.overlay.blend`, which keeps cold regions clear and weak evidence visible. Only the result is
    as large as the image. The result is the same bit for bit on every run; it has no gradient.
    Kernels round at other places than the reference: values may differ by one grey level.

    Args:
        frame: One image [H, W, 3] or several [B, H, W, 3], uint8, any strides. In the same
            colour order as `lut`, usually RGB.
        maps: Heat [N, h, w] in [0, 1], as `cam_maps` gives; float32, float16, bfloat16 or float64; any strides.
            Values outside are clamped, NaN counts as 0. N may be 0.
        lut: Colour table [256, 3] uint8, from cold to hot.
        index: Image of each object, [N] int64 in [0, B). May be left out when there is one image. On a GPU a
            value out of range fails a device-side assertion, because a check would stall the stream.
        opacity: Opacity at heat 1, in [0, 1].
        window: Part of the map that fills the image, (left, top, right, bottom) in cells, as in `cam_maps`.
        boxes: Corners [N, 4] (x1, y1, x2, y2) in pixels, floating point. The heat of an object counts only at
            pixels whose centres lie in its box, and only those are visited. Boxes may reach outside the image; an
            empty box, or one with NaN, hides its object.
        blend: How overlapping objects are drawn: "max", the hottest colours the pixel; "alpha", each over the
            last, in the order of `maps`.

    Returns:
        The painted images, uint8, contiguous, in the shape of `frame`; a copy of it when N is 0.

    Raises:
        TypeError: A dtype that is not supported, or a tensor expected and something else given.
        ValueError: Shapes, devices or options that do not fit together.
        IndexError: An index outside [0, B), when it lies on the CPU.
    """
    _check_tensors(frame, maps, lut)
    frames = frame if frame.ndim == 4 else frame[None]
    count = maps.shape[0]
    if count or index is not None:
        common.check_index(index, count, frames.shape[0], frames.device)
    if not isinstance(opacity, common.NUMBERS):
        raise TypeError(f"opacity: expected a number in [0, 1], got {type(opacity).__name__}")
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity: expected a number in [0, 1], got {reprlib.repr(opacity)}")
    common.check_choice("blend", blend, BLENDS)
    bounds = None if window is None else common.check_window(window, count, frames.device)
    corners = None if boxes is None else common.check_boxes(boxes, count, frames.device)
    heat = maps.detach().float()
    painted = torch.ops.detcam.overlay.default(frames, heat, lut, index, bounds, corners, float(opacity), blend)
    return painted.view(frame.shape)


def _check_tensors(frame: Tensor, maps: Tensor, lut: Tensor) -> None:
    common.check_tensor("frame", frame, (torch.uint8,))
    common.check_tensor("maps", maps, common.INPUT_DTYPES)
    common.check_tensor("lut", lut, (torch.uint8,))
    if frame.ndim not in (3, 4) or frame.shape[-1] != 3 or 0 in frame.shape[-3:]:
        raise ValueError(f"frame: expected a non-empty [H, W, 3] or [B, H, W, 3], got {list(frame.shape)}")
    if maps.ndim != 3 or 0 in maps.shape[1:]:
        raise ValueError(f"maps: expected [N, h, w] with cells, got {list(maps.shape)}")
    if lut.shape != (256, 3):
        raise ValueError(f"lut: expected [256, 3], got {list(lut.shape)}")
    for name, value in (("maps", maps), ("lut", lut)):
        if value.device != frame.device:
            raise ValueError(f"{name}: expected device {frame.device} of frame, got {value.device}")
