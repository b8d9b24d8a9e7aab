"""What comes in: every frame, in order, upright, at its time; and one clear error where there is none."""

from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from clips import Contents, moving_blobs, number_grey, turn_clockwise, write_clip, write_sound

from detcam.errors import InputError
from detcam.video import open_source


def test_every_frame_in_order_at_its_own_time(tmp_path: Path, seed: int) -> None:
    """Lossless, and at a rate that varies."""
    frames = moving_blobs(seed, 12, 36, 52)
    ticks = np.cumsum(np.random.default_rng(seed).integers(10, 90, 12)).tolist()
    ticks = [tick - ticks[0] for tick in ticks]
    clip = write_clip(tmp_path / "in.mkv", frames, ticks, Fraction(1, 1000), codec="ffv1")
    with open_source(clip) as source:
        pictures = list(source)
        assert (source.decoded, source.damaged, source.missing) == (12, 0, 0)
    for picture, frame in zip(pictures, frames, strict=True):
        np.testing.assert_array_equal(picture.image, frame)
    np.testing.assert_allclose([p.time for p in pictures], [t / 1000 for t in ticks], rtol=0, atol=1e-9)


def test_a_turned_video_comes_upright(tmp_path: Path, seed: int) -> None:
    frames = moving_blobs(seed, 3, 48, 80)
    clip = write_clip(tmp_path / "in.mp4", frames)
    turn_clockwise(clip)
    with open_source(clip) as source:
        for picture, frame in zip(source, frames, strict=True):
            expected = np.rot90(frame, -1)
            assert picture.image.shape == expected.shape == (80, 48, 3)
            assert np.abs(picture.image.astype(int) - expected).mean() < 6
            assert picture.image.flags.c_contiguous


def test_a_file_that_breaks_off_yields_what_is_there(tmp_path: Path, seed: int) -> None:
    clip = write_clip(tmp_path / "in.mkv", moving_blobs(seed, 40, 64, 96), sound="aac")
    whole = Contents.of(clip)
    clip.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
    with open_source(clip) as source:
        pictures = list(source)
    assert 5 <= len(pictures) < 40
    for picture, image in zip(pictures[:-2], whole.images, strict=False):
        np.testing.assert_array_equal(picture.image, image)


def test_a_truncated_avi_says_how_many_frames_are_missing(tmp_path: Path, seed: int) -> None:
    clip = write_clip(tmp_path / "in.avi", moving_blobs(seed, 40, 64, 96))
    clip.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
    with open_source(clip) as source:
        count = len(list(source))
        assert source.decoded == count
        assert source.missing == 40 - count > 0


def test_flipped_bytes_are_counted_and_passed_over(tmp_path: Path, seed: int) -> None:
    clip = write_clip(tmp_path / "in.mkv", moving_blobs(seed, 60, 64, 96))
    data = bytearray(clip.read_bytes())
    generator = np.random.default_rng(seed)
    middle = range(len(data) // 5, len(data))
    for place in generator.choice(middle, len(data) // 40, replace=False):
        data[place] ^= int(generator.integers(1, 256))
    clip.write_bytes(data)
    with open_source(clip) as source:
        pictures = list(source)
    assert pictures
    assert source.damaged > 0
    assert all(a.time < b.time for a, b in pairwise(pictures))


def test_a_folder_in_the_order_of_its_numbers(tmp_path: Path, seed: int) -> None:
    frames = moving_blobs(seed, 12, 20, 30)
    for i, frame in enumerate(frames):
        cv2.imwrite(str(tmp_path / f"frame{i}.png"), frame[:, :, ::-1])
    (tmp_path / "frame3.png").write_bytes(b"damaged")
    cv2.imwrite(str(tmp_path / "frame5.png"), frames[5][:10])
    (tmp_path / "notes.txt").write_text("no picture")
    with open_source(tmp_path) as source:
        pictures = list(source)
        assert (source.decoded, source.damaged, source.missing) == (10, 2, 2)
    kept = [i for i in range(12) if i not in (3, 5)]
    for picture, i in zip(pictures, kept, strict=True):
        np.testing.assert_array_equal(picture.image, frames[i])
    assert [p.time for p in pictures] == pytest.approx([i / 10 for i in range(10)])


def test_a_list_of_pictures(tmp_path: Path, seed: int) -> None:
    frames = moving_blobs(seed, 2, 20, 30)
    paths = [tmp_path / "b.png", tmp_path / "a.png"]
    for path, frame in zip(paths, frames, strict=True):
        cv2.imwrite(str(path), frame[:, :, ::-1])
    for picture, frame in zip(open_source(paths), frames, strict=True):
        np.testing.assert_array_equal(picture.image, frame)


def test_greys_tell_frames_apart() -> None:
    """The corner that the other tests read."""
    greys = [number_grey(i) for i in range(200)]
    assert all(abs(a - b) > 12 for a, b in pairwise(greys))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing.mp4", "does not exist"),
        ("empty.mp4", "empty"),
        ("text.mp4", "cannot be read"),
        ("sound.m4a", "sound only"),
        ("folder", "no image"),
        ("rtsp://127.0.0.1:9/none", "cannot be read"),
        ("97", "camera 97 cannot be opened"),
        ("hollow.mp4", "not a single frame"),
    ],
)
def test_one_clear_error(tmp_path: Path, name: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.mp4").touch()
    Path("text.mp4").write_text("this is no video " * 100)
    write_sound(Path("sound.m4a"))
    Path("folder").mkdir()
    data = bytearray(write_clip(Path("hollow.mp4"), moving_blobs(1, 5, 64, 64)).read_bytes())
    start, stop = data.index(b"mdat") + 4, data.index(b"moov") - 4
    data[start:stop] = bytes(stop - start)  # the index stays, the frames go
    Path("hollow.mp4").write_bytes(data)
    with pytest.raises(InputError, match=words) as error:
        list(open_source(name))
    assert name in str(error.value)
    assert "\n" not in str(error.value)
