"""Image reading: paths, PIL images, arrays and tensors become [H, W, C] with their depth, or raise an ImageError."""

import io
import os
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from detcam.errors import ImageError
from detcam.files import read_regular
from detcam.geometry import white

MAX_PIXELS = 178_956_970  # Pillow's limit, about 13,000 x 13,000; checked in the header, before anything is decoded
MAX_BYTES = 2**30  # of a file: more than MAX_PIXELS take
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".jp2", ".avif", ".heic", ".heif")
# Some of Pillow's other formats start programs. Those that an installation may lack come last.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "TIFF", "GIF", "JPEG2000", "AVIF", "HEIF")
HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")  # brands; AVIF may have the last two
# A scan of a progressive JPEG can be a few bytes long and takes as long to decode as a whole image.
JPEG_SCAN = b"\xff\xda"
SCANS = 16  # encoders write ten
MAX_SCANNED = 2**30  # scans times pixels, about 4 seconds of decoding
ORIENTATION = 0x0112  # of EXIF
DARK = 0.25  # of the full scale: an image whose largest value is below is shown brighter


def read_image(image: Any, channels: int = 3, blue_first: bool = False) -> np.ndarray:
    """Read an image in any supported form, with its depth.

    Args:
        image: a path; a PIL image; an array [H, W] or [H, W, C] or a tensor [C, H, W] (RGB order if C is 3 or 4) of
            uint8, uint16, or floats in [0, 1].
        channels: the number that the network reads; decides how files and PIL images are read, see `decode_image`.
        blue_first: see `decode_image`.

    Returns:
        [H, W, C] uint8, uint16, or float32 in [0, 1]; floats that are all multiples of 1 / 255 are given as uint8. EXIF
        orientation is applied.

    Raises:
        ImageError: if the image is missing, damaged, too large, or of another shape, dtype or range.
    """
    if isinstance(image, str) and "://" in image:
        raise ImageError(f"{image} is a url: download it yourself and give the file")
    if isinstance(image, (str, os.PathLike)):
        return decode_image(_read_file(Path(image)), image, channels, blue_first)
    if isinstance(image, torch.Tensor):
        return _from_tensor(image)
    if isinstance(image, np.ndarray):
        return _from_array(image)
    if isinstance(image, Image.Image):
        return _from_pil(image, channels)
    raise ImageError(
        f"cannot read an image from a {type(image).__name__}: give a path, a PIL image, an array [H,W,C] (RGB) of "
        "uint8, uint16 or floats in [0,1], or such a tensor [C,H,W]"
    )


def displayable(image: np.ndarray) -> tuple[np.ndarray, str | None]:
    """An image [H, W, C] as [H, W, 3] uint8 RGB, and how that was made; None if it has the values of the image.

    Dark images of 16 bits or floats, such as 12 bits in 16, are brightened.
    """
    said = []
    shape, kind, full = image.shape, image.dtype, white(image)
    if shape[2] not in (1, 3):
        shown = 3 if shape[2] > 3 else 1
        image = image[:, :, :shown]
        said.append(f"the first {shown} of {shape[2]} channels")
    if kind != np.uint8:
        peak = float(image.max())
        top = peak if 0 < peak < DARK * full else full
        image = (image >> 8 if top == full and kind == np.uint16 else np.rint(image * (255 / top))).astype(np.uint8)
        said.append(f"{kind} values 0 to {top:g} as 0 to 255")
    if image.shape[2] == 1:
        image = np.repeat(image, 3, axis=2)
    return np.ascontiguousarray(image), "; ".join(said) or None


def with_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """An image [H, W, C] in a network's channels: grey is repeated for RGB, alpha is dropped; else an ImageError."""
    count = image.shape[2]
    if count == channels:
        return image
    if (count, channels) == (1, 3):
        return np.repeat(image, 3, axis=2)
    if (count, channels) in ((4, 3), (2, 1)):
        return np.ascontiguousarray(image[:, :, :channels])
    raise ImageError(
        f"the image has {count} channels (shape {list(image.shape)}), the model reads {channels}: give an array "
        f"[H,W,{channels}] or a tensor [{channels},H,W]"
    )


def unit_tensor(image: np.ndarray, device: Any = "cpu", dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """An image [H, W, C] as a tensor [C, H, W] in [0, 1]."""
    if image.dtype == np.uint16:
        image = image.astype(np.float32) / 65535
    pixels = torch.from_numpy(image).to(device).permute(2, 0, 1).to(dtype)
    return pixels.div_(255) if image.dtype == np.uint8 else pixels


def _read_file(path: Path) -> bytes:
    try:
        return read_regular(path, MAX_BYTES)
    except FileNotFoundError:
        raise ImageError(f"{path} does not exist: check the path") from None
    except IsADirectoryError:
        raise ImageError(f"{path} is a directory: give the image files in it, e.g. {path}/*.jpg") from None
    except PermissionError as error:
        raise ImageError(f"{path} cannot be read ({error.strerror or error}): check its permissions") from None
    except OSError as error:
        raise ImageError(f"{path} cannot be read ({error.strerror or error}): give an image file") from None


def decode_image(data: bytes, name: str | os.PathLike[str], channels: int = 3, blue_first: bool = False) -> np.ndarray:
    """Decode the bytes of an image file, rotated as its EXIF data say; the first frame only.

    Args:
        data: the whole file; the format is detected from its content.
        name: name of the file in errors.
        channels: 1: the image is read in grey; 3: in colour, or as a single channel if it is grey, without alpha; any
            other number: with all its channels, where a TIFF's pages of one size are channels.
        blue_first: leave an image of four channels in the order BGRA, as Ultralytics' predict call does.

    Returns:
        [H, W, C] as in `read_image`.

    Raises:
        ImageError: if the data are not an image, damaged or too large.
    """
    if not data:
        raise ImageError(f"{name} is empty (0 bytes): give an image file")
    kind, size = verify_image(data, name)
    # The libraries' predict calls decode with OpenCV, but for AVIF and HEIF; other decoders differ in the last bit.
    decoded = None if kind in ("AVIF", "HEIF") else _by_opencv(data, kind == "TIFF", channels)
    if decoded is None:
        return _from_pil(_opened(data), channels)
    if decoded.shape[:2] not in (size, size[::-1]):
        raise ImageError(f"{name} is damaged (its size is ambiguous): save it again or get a complete copy")
    if decoded.ndim == 3 and decoded.shape[2] == 3:
        decoded = cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)
    elif decoded.ndim == 3 and decoded.shape[2] == 4 and not blue_first:
        decoded = cv2.cvtColor(decoded, cv2.COLOR_BGRA2RGBA)
    if channels not in (1, 3) and kind != "TIFF" and not blue_first:  # OpenCV left it as stored
        turn: Any = 1
        with suppress(Exception):  # damaged EXIF data, which OpenCV ignores too
            turn = _opened(data).getexif().get(ORIENTATION)
        decoded = decoded.swapaxes(0, 1) if turn in (5, 6, 7, 8) else decoded
        decoded = decoded[:: -1 if turn in (3, 4, 7, 8) else 1, :: -1 if turn in (2, 3, 6, 7) else 1]
    return _from_array(decoded, str(name))


def _by_opencv(data: bytes, tiff: bool, channels: int) -> np.ndarray | None:
    """[H, W] or [H, W, C] in the order BGR; None if OpenCV cannot decode the file, or reads a larger size from it."""
    buffer = np.frombuffer(data, np.uint8)
    flags = {1: cv2.IMREAD_ANYDEPTH, 3: cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR}.get(channels, cv2.IMREAD_UNCHANGED)
    try:
        if flags == cv2.IMREAD_UNCHANGED and tiff:
            pages = cv2.imdecodemulti(buffer, flags, range=(0, channels))[1]
            if len(pages) > 1 and len({page.shape for page in pages}) == 1 and pages[0].ndim == 2:
                return np.stack(pages, axis=2)
        return cv2.imdecode(buffer, flags)
    except cv2.error:
        return None


def stored_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) in the header of an image file, before rotation by EXIF data; None if it cannot be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            width, height = _opened(data).size
    except Exception:  # `decode_image` reports what is wrong
        return None
    return height, width


def verify_image(data: bytes, path: str | os.PathLike[str]) -> tuple[str | None, tuple[int, int]]:
    """Check that an image file is complete, and return its format and its (height, width) as stored.

    OpenCV would fill missing parts with grey.

    Raises:
        ImageError: if the data are not an image, damaged or too large.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # MAX_PIXELS is checked below
            picture = _opened(data)
            width, height = picture.size
            if width * height > MAX_PIXELS:
                raise Image.DecompressionBombError  # recent versions of Pillow raise it in open()
            scans = data.count(JPEG_SCAN) if data.startswith(b"\xff\xd8") else 0
            if scans > SCANS and scans * width * height > MAX_SCANNED:
                raise ValueError("its scans would take minutes to decode")
            picture.load()
            if picture.format == "PNG" and not _ends(data):
                raise ValueError("a chunk extends beyond the end of the file")
            return picture.format, (height, width)
    except UnidentifiedImageError:
        brand = data[8:12] if data[4:8] == b"ftyp" else b""
        if brand in (b"avif", b"avis"):
            raise ImageError(f"{path} is AVIF, which this Pillow does not read: pip install --upgrade pillow") from None
        if brand in HEIC:
            raise ImageError(f"{path} is HEIC, which Pillow reads by an addition: pip install pillow-heif") from None
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


def _opened(data: bytes) -> Image.Image:
    """An image file opened by Pillow; an UnidentifiedImageError if it has none of FORMATS."""
    # Ultralytics replaces Pillow's `open` by a function that pip-installs a package if a file is not an image.
    patches = sys.modules.get("ultralytics.utils.patches")
    opener: Callable[..., Image.Image] = getattr(patches, "_image_open", Image.open)
    if data[4:8] == b"ftyp" and data[8:12] in HEIC and "HEIF" not in Image.OPEN:
        with suppress(ImportError):
            from pillow_heif import register_heif_opener

            register_heif_opener()
    try:
        return opener(io.BytesIO(data), formats=FORMATS)
    except KeyError:  # a format of the last ones is not installed
        raise UnidentifiedImageError from None


def _from_pil(image: Image.Image, channels: int) -> np.ndarray:
    try:
        image = ImageOps.exif_transpose(image)  # decodes a lazily opened file
        kept = image.mode[0] in "IF" or image.mode in (("L",) if channels in (1, 3) else ("L", "RGBA", "CMYK"))
        array = np.asarray(image if kept else image.convert("L" if channels == 1 else "RGB"))
    except Exception as error:
        raise ImageError(f"PIL image is damaged ({error}): load the complete file again") from None
    if image.mode == "I" and array.size and array.min() >= 0 and array.max() <= 65535:
        array = array.astype(np.uint8 if array.max() <= 255 else np.uint16)  # of a file with no more bits
    return _from_array(array, "PIL image")


def _from_array(image: np.ndarray, name: str = "array") -> np.ndarray:
    if image.ndim == 2:
        image = image[:, :, None]
    if image.ndim != 3 or 0 in image.shape:
        raise ImageError(f"{name}: expected one image [H,W,C], got shape {list(image.shape)}: reorder or crop it")
    image = image.astype(image.dtype.newbyteorder("="), copy=False)
    if image.dtype.kind == "f":
        low, high = float(image.min()), float(image.max())
        if not (low >= 0 and high <= 1):  # also catches NaN
            raise ImageError(f"{name}: expected floats in [0,1], got {low:.3g}..{high:.3g}: scale them first")
        image = image.astype(np.float32, copy=False)
        levels = np.rint(image * 255).astype(np.uint8)
        image = levels if np.array_equal(levels / np.float32(255), image) else image  # 8 bits that lose nothing
    elif image.dtype not in (np.uint8, np.uint16):
        raise ImageError(f"{name}: expected uint8, uint16 or floats in [0,1], got {image.dtype}: convert it first")
    return np.ascontiguousarray(image)


def _from_tensor(image: torch.Tensor) -> np.ndarray:
    if image.ndim != 3 or 0 in image.shape:
        raise ImageError(f"tensor: expected shape [C,H,W], got {list(image.shape)}: give one image at a time")
    image = image.detach().permute(1, 2, 0)
    try:
        array = (image.float() if image.is_floating_point() else image).cpu().numpy()
    except (RuntimeError, TypeError) as error:  # sparse, quantized or without data
        raise ImageError(
            f"tensor: it cannot be read ({error}): give a dense tensor of uint8, uint16 or floats"
        ) from None
    return _from_array(array, "tensor")
