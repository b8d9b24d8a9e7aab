"""What goes out: the input's frames, order, times, length and sound; whole under its name or not there."""

import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from clips import Contents, moving_blobs, near_sound, number_grey, turn_clockwise, write_clip

from detcam.errors import OutputError
from detcam.video import Sink, open_source


def copied(clip: Path, out: Path, quality: int = 12) -> Contents:
    """The clip through a source and a sink, nothing drawn."""
    with open_source(clip) as source, Sink(out, source, quality=quality) as sink:
        for picture in source:
            sink.write(picture.image, picture.time, picture.duration)
    assert not list(out.parent.glob(".*"))
    return Contents.of(out)


def assert_same_run(found: Contents, given: Contents) -> None:
    assert found.times == given.times
    assert found.duration == given.duration
    assert found.greys == pytest.approx([number_grey(i) for i in range(len(found.images))], abs=4)


@pytest.mark.parametrize("rate", [Fraction(25), Fraction(30_000, 1001), Fraction(10)])
def test_frames_times_length_and_sound_are_the_inputs(tmp_path: Path, seed: int, rate: Fraction) -> None:
    clip = write_clip(tmp_path / "in.mp4", moving_blobs(seed, 23, 48, 64), time_base=1 / rate, sound="aac", seconds=1.3)
    given, found = Contents.of(clip), copied(clip, tmp_path / "out.mp4")
    assert len(found.images) == 23
    assert_same_run(found, given)
    assert found.sound == given.sound
    assert len(given.sound) > 20
    assert near_sound(found.sound_times, given.sound_times)


def test_a_rate_that_varies(tmp_path: Path, seed: int) -> None:
    steps = np.random.default_rng(seed).integers(700, 9000, 19)
    ticks = [0, *np.cumsum(steps).tolist()]
    clip = write_clip(tmp_path / "in.mp4", moving_blobs(seed, 20, 48, 64), ticks, Fraction(1, 90_000))
    given = Contents.of(clip)
    assert given.times == [Fraction(tick, 90_000) for tick in ticks]
    assert_same_run(copied(clip, tmp_path / "out.mp4"), given)


def test_pixels_are_the_inputs_within_the_codecs_error(tmp_path: Path, seed: int) -> None:
    """With the same matrix both ways, whatever it is: 1 is that of high definition, 5 that of standard definition."""
    for matrix in (None, 1, 5):
        clip = write_clip(tmp_path / f"in{matrix}.mp4", moving_blobs(seed, 6, 64, 80), colorspace=matrix)
        given, found = Contents.of(clip), copied(clip, tmp_path / f"out{matrix}.mp4", quality=4)
        errors = [np.abs(a.astype(int) - b).mean() for a, b in zip(given.images, found.images, strict=True)]
        assert max(errors) < 2.5
        with av.open(str(tmp_path / f"out{matrix}.mp4")) as container:
            assert container.streams.video[0].codec_context.colorspace == (2 if matrix is None else matrix)


def test_it_plays_in_browsers(tmp_path: Path, seed: int) -> None:
    """H.264, yuv420p, the index before the frames; odd sides are continued by their last row and column."""
    frames = moving_blobs(seed, 4, 37, 51)
    with Sink(tmp_path / "out.mp4", fps=8, quality=4) as sink:
        for frame in frames:
            sink.write(frame)
    data = (tmp_path / "out.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    with av.open(str(tmp_path / "out.mp4")) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt, context.width, context.height) == ("h264", "yuv420p", 52, 38)
    found = Contents.of(tmp_path / "out.mp4")
    assert found.times == [Fraction(i, 8) for i in range(4)]
    assert found.duration == Fraction(1, 2)
    for image, frame in zip(found.images, frames, strict=True):
        assert np.abs(image[:37, :51].astype(int) - frame).mean() < 3
        assert np.abs(image[37].astype(int) - image[36]).mean() < 12


def test_a_turned_video_goes_out_upright(tmp_path: Path, seed: int) -> None:
    frames = moving_blobs(seed, 3, 48, 80)
    clip = write_clip(tmp_path / "in.mp4", frames)
    turn_clockwise(clip)
    found = copied(clip, tmp_path / "out.mp4")
    for image, frame in zip(found.images, frames, strict=True):
        assert np.abs(image.astype(int) - np.rot90(frame, -1)).mean() < 8


@pytest.mark.parametrize("kind", [".mp4", ".mkv"])
def test_sound_that_does_not_fit_is_named(tmp_path: Path, seed: int, kind: str) -> None:
    clip = write_clip(tmp_path / "in.mkv", moving_blobs(seed, 5, 32, 32), sound="pcm_s16le")
    with open_source(clip) as source, Sink(tmp_path / f"out{kind}", source) as sink:
        for picture in source:
            sink.write(picture.image, picture.time)
    with av.open(str(tmp_path / f"out{kind}")) as container:
        assert bool(container.streams.audio) == (sink.left_out == []) == (kind == ".mkv" or not sink.left_out)
        assert kind == ".mp4" or container.streams.audio


def test_a_file_that_was_stopped_has_no_sound_beyond_its_last_frame(tmp_path: Path, seed: int) -> None:
    clip = write_clip(tmp_path / "in.mp4", moving_blobs(seed, 50, 32, 32), sound="aac")
    sink = Sink(tmp_path / "out.mp4", source := open_source(clip))
    for picture, _ in zip(source, range(10), strict=False):
        sink.write(picture.image, picture.time, picture.duration)
    sink.close(whole=False)
    found = Contents.of(tmp_path / "out.mp4")
    assert len(found.images) == 10
    assert 0.3 < found.sound_times[-1] <= found.duration


def test_an_error_leaves_what_was_there(tmp_path: Path) -> None:
    out = tmp_path / "out.mp4"
    out.write_text("an older file")
    with suppress(RuntimeError), Sink(out) as sink:
        sink.write(np.zeros((32, 32, 3), np.uint8))
        raise RuntimeError
    assert out.read_text() == "an older file"
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("out.webm", "not a supported format"),
        ("out", "not a supported format"),
        ("folder.mp4", "directory"),
        ("no/such/out.mp4", "cannot be written"),
    ],
)
def test_one_clear_error(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(OutputError, match=words):
        Sink(tmp_path / name)


def test_nothing_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no frame"), Sink(tmp_path / "out.mp4"):
        pass
    assert not list(tmp_path.iterdir())


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    options = ["-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(["mount", *options], capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@contextmanager
def small_files(folder: Path) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def write_noise(path: Path) -> None:
    """A megabyte and more."""
    noise = np.random.default_rng(0).integers(0, 256, (160, 160, 3), dtype=np.uint8)
    with Sink(path, quality=1) as sink:
        for i in range(60):
            sink.write(np.roll(noise, i * 7, axis=1))


@pytest.mark.parametrize(("limited", "words"), [(small_disk, "no space left"), (small_files, "file too large")])
def test_a_full_disk_is_one_clear_error_and_no_file(
    tmp_path: Path, limited: Callable[[Path], AbstractContextManager[None]], words: str
) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    with limited(folder):
        with pytest.raises(OutputError, match=words) as error:
            write_noise(folder / "out.mp4")
        assert "out.mp4 cannot be written" in str(error.value)
        assert not list(folder.iterdir())
    write_noise(folder / "out.mp4")
    assert (folder / "out.mp4").stat().st_size > 600_000
