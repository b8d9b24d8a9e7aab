"""Videos made to break a decoder, and files that only look like videos: one line, within limits, no other file opened."""

import contextlib
import os
import struct
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("av")
sys.path.append(str(Path(__file__).parents[1] / "video"))

from clips import moving_blobs, write_clip

from detcam.errors import InputError
from detcam.video import open_source


@pytest.fixture
def clip(seed: int, tmp_path: Path) -> Path:
    return write_clip(tmp_path / "clip.mp4", moving_blobs(seed, 8, 32, 48))


def frames(path: Path | str) -> list[np.ndarray]:
    with open_source(str(path)) as source:
        return [frame.image for frame in source]


def refused(path: Path | str, words: str) -> None:
    began = time.process_time()
    with pytest.raises(InputError, match=words) as caught:
        frames(path)
    assert time.process_time() - began < 5
    assert str(caught.value).isprintable()


def test_playlists_open_nothing(clip: Path, tmp_path: Path) -> None:
    """FFmpeg goes by content: text in a file called .mp4 could make it read other files or URLs."""
    assert len(frames(clip)) == 8
    header = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n"
    for name, text in (
        ("hls.mp4", f"{header}{clip}\n#EXT-X-ENDLIST\n"),
        ("url.mp4", f"{header}http://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n"),
        ("concat.mp4", f"ffconcat version 1.0\nfile {clip.name}\n"),
        ("session.mp4", "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\n"),
        ("dash.mp4", f'<?xml version="1.0"?><MPD><Period><BaseURL>{clip}</BaseURL></Period></MPD>'),
        ("page.mp4", "<html></html>"),
    ):
        (tmp_path / name).write_text(text)
        refused(tmp_path / name, "cannot be read as a video")


def test_names_that_ffmpeg_takes_for_protocols(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = ("concat:clip.mp4", "file:clip.mp4", "subfile,,start,0,end,0,,:clip.mp4", "-i.mp4", "%03d.mp4", "pipe:0")
    for name in names:
        Path(name).write_bytes(clip.read_bytes())
        assert len(frames(name)) == 8, name
        Path(name).write_bytes(b"no video")
        refused(name, "cannot be read as a video")


def test_links_pipes_and_devices(tmp_path: Path) -> None:
    loop, pipe = tmp_path / "loop.mp4", tmp_path / "pipe.mp4"
    loop.symlink_to(loop)
    os.mkfifo(pipe)
    for path, words in (
        (loop, "cannot be read"), (pipe, "not a regular file"), ("/dev/zero", "not a regular file"), ("a\0b.mp4", "cannot be read"),
        (tmp_path / "gone.mp4", "does not exist"),
    ):  # fmt: skip
        refused(path, words)


def test_headers_of_absurd_size(clip: Path, tmp_path: Path) -> None:
    data = clip.read_bytes()
    at = data.rfind(b"avc1") + 28  # width and height in the sample entry
    assert struct.unpack(">HH", data[at : at + 4]) == (48, 32)
    for width, height in ((65535, 65535), (30_000, 30_000)):
        path = tmp_path / "wide.mp4"
        path.write_bytes(data[:at] + struct.pack(">HH", width, height) + data[at + 4 :])
        with contextlib.suppress(InputError):  # refused because of the header, or read with the size in the stream
            assert all(image.shape == (32, 48, 3) for image in frames(path))
    raw = tmp_path / "raw.y4m"
    raw.write_bytes(b"YUV4MPEG2 W30000 H30000 F25:1 C420\nFRAME\n" + b"x" * 1000)
    refused(raw, "more pixels|not a single frame|cannot be read")


def test_damaged_and_misnamed_videos(clip: Path, tmp_path: Path) -> None:
    data = clip.read_bytes()
    for cut in (1, 8, 40, len(data) // 3):
        (tmp_path / "cut.mp4").write_bytes(data[:cut])
        refused(tmp_path / "cut.mp4", "cannot be read|not a single frame|no video")
    for name in ("clip.jpg", "clip.txt", "clip", "clip.mkv"):
        (tmp_path / name).write_bytes(data)
        assert len(frames(tmp_path / name)) == 8, "the content counts, not the name"
    write_clip(tmp_path / "none.mp4", moving_blobs(1, 1, 32, 48))
    whole = (tmp_path / "none.mp4").read_bytes()
    start = whole.index(b"mdat") + 4
    (tmp_path / "none.mp4").write_bytes(whole[:start] + bytes(len(whole) - start))
    refused(tmp_path / "none.mp4", "not a single frame|cannot be read|no video")
