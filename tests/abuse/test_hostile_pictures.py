"""Images made to break a decoder, and files that only look like images: one line, within limits, without delay."""

import io
import os
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from support import random_picture

from detcam.errors import ImageError, InputError
from detcam.evaluate.labels.read import read_labels
from detcam.images import read_image
from detcam.models.load import load_model
from detcam.video import open_source


def refused(source: object, words: str) -> None:
    began = time.process_time()
    with pytest.raises(ImageError, match=words) as caught:
        read_image(source)
    assert time.process_time() - began < 5
    assert str(caught.value).isprintable()


def jpeg(side: int, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (90, 120, 30)).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def test_a_jpeg_of_endless_scans(tmp_path: Path) -> None:
    """Every 23 bytes are another pass over all pixels: without a limit these 250 kB take minutes."""
    data = jpeg(3000, progressive=True)
    scan = data[data.rfind(b"\xff\xda") : -2]
    path = tmp_path / "scans.jpg"
    path.write_bytes(data[:-2] + scan * 10_000 + b"\xff\xd9")
    assert path.stat().st_size < 400_000
    refused(path, "its scans")
    path.write_bytes(data)
    assert read_image(path).shape == (3000, 3000, 3)


def test_a_png_with_a_chunk_of_gigabytes(tmp_path: Path) -> None:
    """Pillow accepts it, but OpenCV allocates the announced length: 17 seconds and gigabytes for 200 bytes."""
    buffer = io.BytesIO()
    Image.fromarray(random_picture(4, 20, 30)).convert("1").save(buffer, "PNG")
    data = buffer.getvalue()
    assert data[37:41] == b"IDAT"
    path = tmp_path / "long.png"
    path.write_bytes(data[:33] + b"\xff\xff\xff\x7f" + data[37:])
    refused(path, "beyond the end")
    path.write_bytes(data)
    assert read_image(path).shape == (20, 30, 1)


def test_formats_that_are_programs_or_rare_are_not_decoded(tmp_path: Path) -> None:
    """PostScript would start Ghostscript; the others are decoders that are not needed here."""
    canary = tmp_path / "canary"
    eps = f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n({canary}) (w) file closefile\n%%EOF\n"
    (tmp_path / "a.jpg").write_text(eps)
    picture = Image.fromarray(random_picture(1, 20, 20))
    for form in ("PPM", "TGA", "SGI", "PCX", "ICO", "DDS"):
        picture.save(tmp_path / f"{form}.png", form)
        refused(tmp_path / f"{form}.png", "is not an image")
    refused(tmp_path / "a.jpg", "is not an image")
    assert not canary.exists()


def test_polyglots_are_what_their_first_bytes_say(tmp_path: Path) -> None:
    """A zip or a page after an image changes nothing; a page followed by an image is not an image."""
    picture = random_picture(2, 30, 40)
    whole = cv2.imencode(".png", picture)[1].tobytes()
    for tail in (b"PK\x03\x04" + b"x" * 50, b"<script>alert(1)</script>", b"%PDF-1.7"):
        (tmp_path / "both.png").write_bytes(whole + tail)
        assert np.array_equal(read_image(tmp_path / "both.png"), picture[:, :, ::-1])
        (tmp_path / "page.png").write_bytes(tail + whole)
        refused(tmp_path / "page.png", "is not an image")


def test_links_devices_and_pipes(tmp_path: Path) -> None:
    loop, dangling, pipe, good = (tmp_path / name for name in ("loop.png", "gone.png", "pipe.png", "good.png"))
    loop.symlink_to(loop)
    dangling.symlink_to(tmp_path / "nowhere")
    os.mkfifo(pipe)
    (tmp_path / "real.png").write_bytes(cv2.imencode(".png", random_picture(3, 9, 9))[1].tobytes())
    good.symlink_to(tmp_path / "real.png")
    assert read_image(good).shape == (9, 9, 3)
    for path, words in (
        (loop, "cannot be read"), (dangling, "does not exist"), (pipe, "not a regular file"), ("/dev/zero", "not a regular file"),
        (tmp_path / ("x" * 300), "cannot be read"), ("a\0b.png", "cannot be read"), (tmp_path, "is a directory"),
    ):  # fmt: skip
        refused(path, words)


def test_pipes_never_hang_any_reader(tmp_path: Path) -> None:
    """Nothing writes into the pipe: a reader that opened it would wait forever."""
    (tmp_path / "labels").mkdir()
    for name in ("model.pt", "video.mp4", "labels/a.txt", "labels.json"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "labels" / "b.txt").write_text("")
    outcomes: list[BaseException] = []

    def attempt(read: object, *arguments: object) -> None:
        try:
            read(*arguments)  # type: ignore[operator]
        except InputError as error:
            outcomes.append(error)

    readers = [
        (load_model, tmp_path / "model.pt"),
        (open_source, tmp_path / "video.mp4"),
        (read_labels, tmp_path / "labels.json"),
        (lambda folder: read_labels(folder).of(Path("a.jpg"), 9, 9), tmp_path / "labels"),
    ]
    for read, path in readers:
        thread = threading.Thread(target=attempt, args=(read, path), daemon=True)
        thread.start()
        thread.join(60)
        assert not thread.is_alive(), f"{path} hangs"
    assert len(outcomes) == len(readers)
    assert all("regular file" in str(error) for error in outcomes), outcomes


def test_urls_are_not_fetched() -> None:
    for source in ("http://127.0.0.1:9/a.png", "https://example.org/a.png", "file:///etc/passwd", "s3://bucket/a.png"):
        refused(source, "is a url: download it")
        with pytest.raises(InputError, match="is a url: download it"):
            load_model(source)
    for source in ("file:///etc/passwd", "ftp://h/a.mp4", "concat://a", "data://text"):
        with pytest.raises(InputError, match="are not read"):
            open_source(source)


def test_files_without_permission(tmp_path: Path) -> None:
    path = tmp_path / "secret.png"
    path.write_bytes(b"x")
    path.chmod(0)
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    refused(path, "check its permissions")


def test_a_permission_that_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for tests that run as root: the system's answer is simulated."""

    def denied(*_: object) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("detcam.images.read_regular", denied)
    refused(tmp_path / "secret.png", "Permission denied.*check its permissions")


def test_files_longer_than_their_limit(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(2**40)
    refused(path, "longer than")
