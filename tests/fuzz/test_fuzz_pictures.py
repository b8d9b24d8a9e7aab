"""Mutated files of every supported format give an image or an error."""

import io
import random
import struct
import zlib
from collections.abc import Sequence

import cv2
import numpy as np
from fuzzing import fuzz, mutated
from PIL import Image
from support import random_picture

from detcam.images import decode_image, stored_size

HEIGHT, WIDTH = 23, 31


def corpus(seed: int) -> list[bytes]:
    """Small valid files: each format with its peculiarities."""
    picture = Image.fromarray(random_picture(seed, HEIGHT, WIDTH))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = [picture.rotate(90 * i) for i in range(3)]
    files = [
        saved(picture, "JPEG"), saved(picture, "JPEG", progressive=True, exif=exif), saved(picture.convert("CMYK"), "JPEG"),
        saved(picture.convert("L"), "JPEG"), saved(turned[0], "MPO", save_all=True, append_images=turned[1:]),
        saved(picture, "PNG"), saved(picture.convert("P"), "PNG"), saved(picture.convert("RGBA"), "PNG"),
        saved(picture.convert("L").convert("1"), "PNG"), saved(picture, "BMP"), saved(picture.convert("P"), "BMP"),
        saved(picture, "WEBP"), saved(picture, "WEBP", lossless=True, exif=exif),
        saved(turned[0], "WEBP", save_all=True, append_images=turned[1:]),
        saved(turned[0], "GIF", save_all=True, append_images=turned[1:], duration=50),
        saved(picture, "TIFF"), saved(picture, "TIFF", compression="tiff_lzw"),
        saved(picture, "TIFF", compression="tiff_deflate"), saved(picture, "TIFF", compression="jpeg"),
        saved(picture.convert("1"), "TIFF", compression="group4"),
        saved(turned[0], "TIFF", save_all=True, append_images=turned[1:]),
    ]  # fmt: skip
    deep = np.asarray(picture).astype(np.uint16) * 257
    files += [cv2.imencode(suffix, deep)[1].tobytes() for suffix in (".png", ".tiff")]
    return files


def saved(picture: Image.Image, form: str, append_images: Sequence[Image.Image] = (), **options: object) -> bytes:
    """The bytes of a file; saves copies, because a saved image keeps options that break the next format."""
    buffer = io.BytesIO()
    more = {"append_images": [other.copy() for other in append_images]} if append_images else {}
    picture.copy().save(buffer, form, **options, **more)
    return buffer.getvalue()


def repaired(data: bytes) -> bytes:
    """The file; a PNG with its checksums corrected, so that its mutation is read."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    parts, place = [data[:8]], 8
    while place + 12 <= len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        chunk = data[place + 4 : place + 8 + length]
        if len(chunk) < 4 + length:
            break
        parts.append(struct.pack(">I", length) + chunk + struct.pack(">I", zlib.crc32(chunk)))
        place += 12 + length
    return b"".join([*parts, data[place:]])


def test_mutated_pictures(seed: int) -> None:
    files = corpus(seed)

    def made(random: random.Random) -> bytes:
        data = mutated(random.choice(files), random, files)
        return repaired(data) if random.random() < 0.7 else data

    def read(data: bytes) -> tuple[bytes, np.ndarray]:
        return data, decode_image(data, "fuzzed")

    def check(result: object) -> None:
        data, image = result  # type: ignore[misc]
        assert image.dtype in (np.uint8, np.uint16)
        assert image.ndim == 3
        assert image.shape[2] in (1, 3)
        assert sorted(image.shape[:2]) == sorted(stored_size(data))

    fuzz("pictures", seed, 400, made, read, check, expected=("read", "ImageError"))
