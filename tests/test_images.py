"""Every supported picture decodes as documented; every other gives one line that says what is wrong."""

import io
import os
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps, features
from support import random_picture

from detcam import InputError
from detcam.errors import ImageError
from detcam.images import MAX_PIXELS, displayable, read_image, verify_image, with_channels


@pytest.fixture
def picture(seed: int) -> np.ndarray:
    return random_picture(seed, 37, 53)


def encoded(picture: np.ndarray, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, form, **options)
    return buffer.getvalue()


def header_only_png(width: int, height: int) -> bytes:
    """A valid PNG header that promises more pixels than follow."""
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(b"\0" * 99)]
    framed = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def refuse(source: Any, expected: str) -> None:
    with pytest.raises(ImageError, match=expected) as caught:
        read_image(source)
    assert "\n" not in str(caught.value)
    assert ": " in str(caught.value), "what, and after a colon what to do"
    assert isinstance(caught.value, InputError)


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "WEBP", "GIF", "JPEG"])
def test_files(form: str, picture: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / f"picture.{form.lower()}"
    path.write_bytes(encoded(picture, form, **({"lossless": True} if form == "WEBP" else {})))
    for source in (path, str(path)):
        image = read_image(source)
        assert image.dtype == np.uint8
        assert image.flags.c_contiguous
        if form in ("PNG", "BMP", "TIFF", "WEBP"):
            assert np.array_equal(image, picture)
        else:  # lossy: the same decoder as Ultralytics' own predict call, so the network sees the same pixels
            assert np.array_equal(image, cv2.imread(str(path), cv2.IMREAD_COLOR)[:, :, ::-1])
            assert np.abs(image.astype(int) - picture).mean() < 25


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_in_exif_is_applied(orientation: int, picture: np.ndarray, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.jpg"
    path.write_bytes(encoded(picture, "JPEG", quality=100, subsampling=0, exif=exif))
    upright = {
        1: picture, 2: picture[:, ::-1], 3: picture[::-1, ::-1], 4: picture[::-1], 5: picture.transpose(1, 0, 2),
        6: np.rot90(picture, -1), 7: np.rot90(picture, 2).transpose(1, 0, 2), 8: np.rot90(picture),
    }[orientation]  # fmt: skip
    deep = tmp_path / "turned.png"
    alpha = np.dstack([picture, picture[:, :, 0]])
    Image.fromarray(alpha).save(deep, exif=exif)
    for channels in (1, 3, 4, 13):
        image = read_image(path, channels)
        shown = (
            cv2.cvtColor(np.ascontiguousarray(upright), cv2.COLOR_RGB2GRAY)[:, :, None] if channels == 1 else upright
        )
        assert image.shape == shown.shape
        assert np.abs(image.astype(int) - shown).mean() < 2
    assert np.array_equal(read_image(deep, 4)[:, :, :3], upright)
    assert np.array_equal(read_image(deep, 4), read_image(Image.open(deep), 4))


@pytest.mark.parametrize(
    "tensor",
    [torch.rand(3, 4, 5).to_sparse(), torch.empty(3, 4, 5, device="meta"), torch.ones(3, 4, 5).to(torch.complex64)],
)
def test_tensors_without_plain_values(tensor: torch.Tensor) -> None:
    with pytest.raises(ImageError, match="tensor: "):
        read_image(tensor)


def test_sixteen_bits_grey_alpha_palette_and_cmyk(picture: np.ndarray, tmp_path: Path) -> None:
    deep = tmp_path / "deep.png"
    cv2.imwrite(str(deep), picture[:, :, ::-1].astype(np.uint16) * 257)
    assert np.array_equal(read_image(deep), picture.astype(np.uint16) * 257), "nothing is rounded to 8 bits"
    assert np.array_equal(displayable(read_image(deep))[0], picture)
    cv2.imwrite(str(deep), picture[:, :, 0].astype(np.uint16) * 16)  # 12 bits
    assert np.array_equal(read_image(deep)[:, :, 0], picture[:, :, 0].astype(np.uint16) * 16)

    grey = tmp_path / "grey.png"
    grey.write_bytes(encoded(picture[:, :, 0], "PNG"))
    assert np.array_equal(read_image(grey), picture[:, :, :1])

    clear = tmp_path / "clear.png"
    alpha = np.full((37, 53, 1), 200, np.uint8)
    clear.write_bytes(encoded(np.concatenate([picture, alpha], axis=2), "PNG"))
    assert np.array_equal(read_image(clear), picture), "alpha is dropped, not blended"
    assert np.array_equal(read_image(clear, 4), np.dstack([picture, alpha]))
    assert np.array_equal(read_image(clear, 4, True), np.dstack([picture[:, :, ::-1], alpha])), "as predict reads it"

    pages = tmp_path / "pages.tif"
    bands = [Image.fromarray(picture[:, :, 0] + i) for i in range(13)]
    bands[0].save(pages, save_all=True, append_images=bands[1:])
    assert np.array_equal(read_image(pages, 13), np.dstack([np.asarray(band) for band in bands]))
    assert np.array_equal(read_image(pages), picture[:, :, :1]), "scans are read as their first page"

    few = tmp_path / "palette.png"
    palette = Image.fromarray(picture).quantize(16)
    palette.save(few)
    assert np.array_equal(read_image(few), np.asarray(palette.convert("RGB")))

    ink = tmp_path / "ink.jpg"
    Image.fromarray(picture).convert("CMYK").save(ink, quality=100, subsampling=0)
    assert np.array_equal(read_image(ink), cv2.imread(str(ink), cv2.IMREAD_COLOR)[:, :, ::-1])
    assert np.abs(read_image(ink).astype(int) - picture).mean() < 4


def test_arrays(picture: np.ndarray) -> None:
    assert np.array_equal(read_image(picture), picture)
    assert np.array_equal(read_image(picture[::-1, ::2]), picture[::-1, ::2])
    assert read_image(picture[::-1, ::2]).flags.c_contiguous
    assert np.array_equal(read_image(picture[:, :, 0]), picture[:, :, :1])
    for array in (
        picture[:, :, :1],
        np.dstack([picture] * 5),
        picture.astype(np.uint16) * 16,
        np.float32(picture) / 256,
    ):
        assert np.array_equal(read_image(array), array)
        assert read_image(array).dtype == array.dtype
    assert np.array_equal(read_image(picture.astype(">u2")), picture)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "CMYK", "1", "YCbCr"])
def test_pil_images(mode: str, picture: np.ndarray) -> None:
    image = Image.fromarray(picture).convert(mode)
    expected = np.asarray(image if mode == "L" else image.convert("RGB")).reshape(37, 53, -1)
    assert np.array_equal(read_image(image), expected)
    assert np.array_equal(read_image(image, 1)[:, :, 0], np.asarray(image.convert("L")))
    exif = image.getexif()
    exif[0x0112] = 6
    assert np.array_equal(read_image(image), np.rot90(expected, -1)), "a phone's upright photo"


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I", "F"])
def test_pil_images_of_more_than_8_bits(mode: str, picture: np.ndarray) -> None:
    deep = picture[:, :, 0].astype(np.uint16) * 16
    if mode == "F":
        image = Image.fromarray(np.float32(deep) / 65535)
        assert np.array_equal(read_image(image)[:, :, 0], np.float32(deep) / 65535)
        return
    image = Image.fromarray(deep.astype({"I": np.int32, "I;16B": ">u2"}.get(mode, np.uint16)))
    assert image.mode == mode
    assert np.array_equal(read_image(image)[:, :, 0], deep)
    assert read_image(image).dtype == np.uint16


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_tensors(dtype: torch.dtype, picture: np.ndarray) -> None:
    tensor = (torch.from_numpy(picture).permute(2, 0, 1).double() / 255).to(dtype).requires_grad_()
    image = read_image(tensor)
    if dtype in (torch.float32, torch.float64):
        assert np.array_equal(image, picture), "8 bits that lose nothing"
    dark = read_image(tensor * 0.1)
    assert np.array_equal(dark, (tensor * 0.1).detach().float().permute(1, 2, 0).numpy()), (
        "nothing is rounded to 8 bits"
    )
    assert np.array_equal(read_image(tensor[:1]), image[:, :, :1])
    whole = torch.from_numpy(picture).permute(2, 0, 1)  # as torchvision.io.decode_image gives it
    assert np.array_equal(read_image(whole), picture)


def test_damaged_files(picture: np.ndarray, tmp_path: Path) -> None:
    for form in ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"):
        data = encoded(picture, form)
        for share in (0.5, 0.9):
            path = tmp_path / f"cut.{form.lower()}"
            path.write_bytes(data[: int(len(data) * share)])
            refuse(path, f"{path.name} is (damaged|not an image)")
    flipped = bytearray(encoded(picture, "PNG"))
    flipped[len(flipped) // 2] ^= 0xFF
    path = tmp_path / "flipped.png"
    path.write_bytes(flipped)
    refuse(path, "damaged")


def test_files_that_are_no_pictures(tmp_path: Path) -> None:
    empty, text = tmp_path / "empty.jpg", tmp_path / "text.jpg"
    empty.write_bytes(b"")
    text.write_text("not a picture at all\n" * 50)
    refuse(empty, r"empty\.jpg is empty \(0 bytes\)")
    refuse(text, r"text\.jpg is not an image")
    refuse(tmp_path / "gone.jpg", r"gone\.jpg does not exist")
    refuse(tmp_path, "is a directory")
    refuse(tmp_path / "x" / "gone.jpg", "does not exist")
    refuse(text / "inside.jpg", "cannot be read|does not exist")
    refuse(tmp_path / ("a" * 5000), "cannot be read")
    refuse(str(tmp_path / "nul\0byte.jpg"), "cannot be read")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="permissions do not bind this user")
def test_unreadable_files(picture: np.ndarray, tmp_path: Path) -> None:
    folder = tmp_path / "closed"
    folder.mkdir()
    path = folder / "secret.png"
    path.write_bytes(encoded(picture, "PNG"))
    path.chmod(0)
    refuse(path, "cannot be read.*permission")
    folder.chmod(0)
    refuse(path, "cannot be read.*permission")
    folder.chmod(0o700)


@pytest.mark.parametrize("side", [15_000, 30_000, 60_000])
def test_pictures_too_large_are_refused_before_they_are_decoded(side: int, tmp_path: Path) -> None:
    assert side * side > MAX_PIXELS
    path = tmp_path / "huge.png"
    path.write_bytes(header_only_png(side, side))
    refuse(path, "more pixels than the limit")


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.full((4, 4, 3), 255.0), "255"),
        (np.full((4, 4, 3), np.nan), "nan"),
        (np.zeros((4, 4, 3), np.int64), "int64"),
        (np.zeros((4, 4, 3), bool), "bool"),
        (np.zeros((3, 4, 4), np.uint8)[:, :, :0], r"\[3, 4, 0\]"),
        (np.zeros((0, 4, 3), np.uint8), r"\[0, 4, 3\]"),
        (np.zeros((2, 4, 4, 3), np.uint8), r"\[2, 4, 4, 3\]"),
        (np.zeros(7, np.uint8), r"\[7\]"),
    ],
    ids=str,
)
def test_arrays_of_another_kind(array: np.ndarray, expected: str) -> None:
    refuse(array, expected)


@pytest.mark.parametrize(
    ("tensor", "expected"),
    [
        (torch.zeros(3, 4, 4, dtype=torch.int64), "int64"),
        (torch.zeros(3, 4, 4, dtype=torch.bool), "bool"),
        (torch.zeros(1, 3, 4, 4), r"\[1, 3, 4, 4\]"),
        (torch.zeros(3, 0, 4), r"\[3, 0, 4\]"),
        (torch.full((3, 4, 4), 255.0), "255"),
        (torch.full((3, 4, 4), -0.1), "-0.1"),
        (torch.full((3, 4, 4), float("nan")), "nan"),
        (torch.full((3, 4, 4), float("inf")), "inf"),
    ],
    ids=str,
)
def test_tensors_of_another_kind(tensor: torch.Tensor, expected: str) -> None:
    refuse(tensor, expected)


@pytest.mark.parametrize("source", [None, 3, b"bytes", [1, 2], {"a": 1}, Path], ids=str)
def test_things_that_are_no_pictures(source: Any) -> None:
    refuse(source, f"cannot read an image from a {type(source).__name__}")


def test_broken_pil_images(picture: np.ndarray) -> None:
    data = encoded(picture, "PNG")
    refuse(Image.open(io.BytesIO(data[: len(data) // 2])), "damaged")
    refuse(Image.new("RGB", (0, 5)), "0")


def test_how_an_image_is_shown_is_said(picture: np.ndarray) -> None:
    shown, said = displayable(picture)
    assert shown is picture
    assert said is None
    assert displayable(picture[:, :, :1])[1] is None, "grey is shown as it is"
    bands, said = displayable(np.dstack([picture, picture[:, :, :1]]))
    assert np.array_equal(bands, picture)
    assert said == "the first 3 of 4 channels"
    twelve = picture.astype(np.uint16) * 16
    twelve[0, 0] = 4080
    shown, said = displayable(twelve)
    assert np.array_equal(shown, np.rint(twelve * (255 / 4080)).astype(np.uint8)), "dark values are shown brighter"
    assert said == "uint16 values 0 to 4080 as 0 to 255"
    whole, said = displayable(picture.astype(np.uint16) * 256 + 255)
    assert np.array_equal(whole, picture), "the high byte, as predict converts"
    assert said == "uint16 values 0 to 65535 as 0 to 255"


def test_channels_that_a_network_does_not_read() -> None:
    grey, colour = np.zeros((4, 5, 1), np.uint8), np.zeros((4, 5, 3), np.uint8)
    assert with_channels(grey, 3).shape == (4, 5, 3)
    assert with_channels(np.dstack([colour, grey]), 3).shape == (4, 5, 3)
    with pytest.raises(ImageError, match=r"the image has 3 channels \(shape \[4, 5, 3\]\), the model reads 13: give"):
        with_channels(colour, 13)
    with pytest.raises(ImageError, match=r"has 13 channels .*, the model reads 4: "):
        with_channels(np.dstack([grey] * 13), 4)


def test_avif_and_jpeg_2000(picture: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "picture.jp2"
    path.write_bytes(encoded(picture, "JPEG2000"))
    assert np.array_equal(read_image(path), picture)
    if features.check("avif"):
        exif = Image.Exif()
        exif[0x0112] = 6
        path = tmp_path / "picture.avif"
        path.write_bytes(encoded(picture, "AVIF", quality=100, subsampling="4:4:4", exif=exif))
        with Image.open(path) as opened:
            expected = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
        assert np.array_equal(read_image(path), expected)
        assert np.abs(read_image(path).astype(int) - np.rot90(picture, -1)).mean() < 4


@pytest.mark.parametrize(
    ("brand", "expected"), [(b"avif", "Pillow does not read: pip install"), (b"heic", "pip install pillow-heif")]
)
def test_formats_that_this_pillow_lacks(brand: bytes, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "OPEN", {k: v for k, v in Image.OPEN.items() if k not in ("AVIF", "HEIF")})
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # type: ignore[arg-type]
    with pytest.raises(ImageError, match=expected):
        verify_image(b"\0\0\0\x1cftyp" + brand + bytes(100), "photo")
