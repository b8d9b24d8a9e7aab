"""Image reading: paths, PIL images, arrays and tensors become [H, W, 3] uint8 RGB, or raise an ImageError."""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from detcam.errors import ImageError
from detcam.files import read_regular

MAX_PIXELS = 178_956_970  # Pillow's limit, about 13,000 x 13,000; checked in the header, before anything is decoded
MAX_BYTES = 2**30  # of a file: more than MAX_PIXELS take
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "TIFF", "GIF")  # some of Pillow's other formats start programs
# A scan of a progressive JPEG can be a few bytes long and takes as long to decode as a whole image.
JPEG_SCAN = b"\xff\xda"
SCANS = 16  # encoders write ten
MAX_SCANNED = 2**30  # scans times pixels, about 4 seconds of decoding


def read_image(image: Any) -> np.ndarray:
    """Read an image in any supported form as [H, W, 3] uint8 RGB.

    Args:
        image: a path; a PIL image; an array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] uint8 (RGB order, alpha is
            dropped); a float tensor [3, H, W] or [1, H, W] in [0, 1].

    Raises:
        ImageError: if the image is missing, damaged, too large, or of another shape, dtype or range.
    """
    if isinstance(image, str) and "://" in image:
        raise ImageError(f"{image} is a url: download it yourself and give the file")
    if isinstance(image, (str, os.PathLike)):
        return _read_file(Path(image))
    if isinstance(image, torch.Tensor):
        return _from_tensor(image)
    if isinstance(image, np.ndarray):
        return _from_array(image)
    if isinstance(image, Image.Image):
        return _from_pil(image)
    raise ImageError(
        f"cannot read an image from a {type(image).__name__}: give a path, a PIL image, an array [H,W,3] uint8 "
        "(RGB) or a tensor [3,H,W] in [0,1]"
    )


def _read_file(path: Path) -> np.ndarray:
    try:
        data = read_regular(path, MAX_BYTES)
    except FileNotFoundError:
        raise ImageError(f"{path} does not exist: check the path") from None
    except IsADirectoryError:
        raise ImageError(f"{path} is a directory: give the image files in it, e.g. {path}/*.jpg") from None
    except PermissionError as error:
        raise ImageError(f"{path} cannot be read ({error.strerror or error}): check its permissions") from None
    except OSError as error:
        raise ImageError(f"{path} cannot be read ({error.strerror or error}): give an image file") from None
    return decode_image(data, path)


def decode_image(data: bytes, name: str | Path) -> np.ndarray:
    """Decode the bytes of an image file as [H, W, 3] uint8 RGB, rotated as its EXIF data say; the first frame only.

    Args:
        data: the whole file; the format is detected from its content.
        name: name of the file in errors.

    Raises:
        ImageError: if the data are not an image, damaged or too large.
    """
    if not data:
        raise ImageError(f"{name} is empty (0 bytes): give an image file")
    size = verify_image(data, name)
    # The libraries' predict calls decode with OpenCV; other decoders differ in the last bit.
    try:
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:  # it read another size from the file, which is too large
        decoded = None
    if decoded is None:
        raise ImageError(f"{name} is of a format that cannot be decoded: convert it to JPEG or PNG")
    if decoded.shape[:2] not in (size, size[::-1]):
        raise ImageError(f"{name} is damaged (its size is ambiguous): save it again or get a complete copy")
    return cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)


def stored_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) in the header of an image file, before rotation by EXIF data; None if it cannot be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            width, height = _pillow_open()(io.BytesIO(data), formats=FORMATS).size
    except Exception:  # `decode_image` reports what is wrong
        return None
    return height, width


def verify_image(data: bytes, path: str | Path) -> tuple[int, int]:
    """Check that an image file is complete, and return its (height, width) as stored.

    OpenCV would fill missing parts with grey.

    Raises:
        ImageError: if the data are not an image, damaged or too large.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # MAX_PIXELS is checked below
            picture = _pillow_open()(io.BytesIO(data), formats=FORMATS)
            width, height = picture.size
            if width * height > MAX_PIXELS:
                raise Image.DecompressionBombError  # recent versions of Pillow raise it in open()
            scans = data.count(JPEG_SCAN) if data.startswith(b"\xff\xd8") else 0
            if scans > SCANS and scans * width * height > MAX_SCANNED:
                raise ValueError("its scans would take minutes to decode")
            picture.load()
            if picture.format == "PNG" and not _ends(data):
                raise ValueError("a chunk extends beyond the end of the file")
            return height, width
    except UnidentifiedImageError:
        raise ImageError(f"{path} is not an image: give one of {' '.join(SUFFIXES)}") from None
    except Image.DecompressionBombError:
        raise ImageError(f"{path} has more pixels than the limit of {MAX_PIXELS:,}: shrink it first") from None
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, ...
        raise ImageError(f"{path} is damaged ({error}): save it again or get a complete copy") from None


def _ends(png: bytes) -> bool:
    """Whether the chunks of a PNG file lead to the end chunk: OpenCV allocates a chunk's length before it reads it."""
    place = 8
    while place + 12 <= len(png):
        if png[place + 4 : place + 8] == b"IEND":
            return True
        place += 12 + int.from_bytes(png[place : place + 4], "big")
    return False


def _pillow_open() -> Callable[..., Image.Image]:
    """Pillow's `open`. Ultralytics replaces it by a function that pip-installs a package if a file is not an image."""
    return getattr(sys.modules.get("ultralytics.utils.patches"), "_image_open", Image.open)


def _from_pil(image: Image.Image) -> np.ndarray:
    try:
        converted = image.convert("RGB")  # decodes a lazily opened file
    except Exception as error:
        raise ImageError(f"PIL image is damaged ({error}): load the complete file again") from None
    return _from_array(np.asarray(converted))


def _from_array(image: np.ndarray) -> np.ndarray:
    if image.dtype != np.uint8:
        raise ImageError(f"array: expected dtype uint8, got {image.dtype}: convert it to 0..255 uint8 first")
    if image.ndim == 2:
        image = image[:, :, None]
    if image.ndim != 3 or image.shape[2] not in (1, 3, 4) or 0 in image.shape:
        raise ImageError(f"array: expected shape [H,W,3], got {list(image.shape)}: reorder or crop it")
    if image.shape[2] == 1:
        image = np.repeat(image, 3, axis=2)
    return np.ascontiguousarray(image[:, :, :3])


def _from_tensor(image: torch.Tensor) -> np.ndarray:
    if image.ndim != 3 or image.shape[0] not in (1, 3) or 0 in image.shape:
        raise ImageError(f"tensor: expected shape [3,H,W], got {list(image.shape)}: give one image at a time")
    if not image.is_floating_point():
        raise ImageError(f"tensor: expected floats in [0,1], got {image.dtype}: divide by 255 first")
    image = image.detach().float()
    low, high = image.aminmax()
    if not (low >= 0 and high <= 1):  # also catches NaN
        raise ImageError(f"tensor: expected values in [0,1], got {low:.3g}..{high:.3g}: scale it first")
    array = (image * 255).round().to(torch.uint8).expand(3, -1, -1).permute(1, 2, 0)
    return np.ascontiguousarray(array.cpu().numpy())
