"""Frames in: video files, streams, cameras and folders of pictures, one after the other, upright, with their times."""

from __future__ import annotations

import re
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from detcam.errors import ImageError, InputError
from detcam.images import SUFFIXES, read_image
from detcam.video.container import LIVE, MAX_PIXELS, import_av, open_container, reason

FOLDER_RATE = Fraction(10)  # pictures of a folder have no times of their own


@dataclass(frozen=True)
class Picture:
    """One decoded frame.

    Attributes:
        image: [H, W, 3] uint8 RGB, upright.
        time: seconds since the source began.
        duration: seconds that it is shown, or None.
    """

    image: np.ndarray = field(repr=False)
    time: float
    duration: float | None = None


@dataclass(frozen=True)
class Colours:
    """How a file's numbers mean colours, as FFmpeg numbers it; 2 is "unspecified"."""

    matrix: int = 2
    primaries: int = 2
    transfer: int = 2


class Source(ABC):
    """Something that frames come from. Iterate over it once; it is a context manager, too.

    Attributes:
        name: what to call it in messages.
        frames: how many frames it says it has, or None.
        rate: frames per second on average, or None.
        time_base: the unit of its times in seconds, or None.
        live: whether frames are lost when nobody takes them.
        audio: a path or url to read its sound from, or None.
        aspect: width of a pixel over its height.
        colours: how its numbers mean colours.
        decoded: frames that came out so far.
        damaged: packets or pictures that could not be decoded, and frames that the decoder calls corrupt.
    """

    name: str
    frames: int | None = None
    rate: Fraction | None = None
    time_base: Fraction | None = None
    live = False
    audio: str | None = None
    aspect = Fraction(1)
    colours = Colours()
    decoded = 0
    damaged = 0

    @abstractmethod
    def __iter__(self) -> Iterator[Picture]: ...

    @property
    def missing(self) -> int:
        """Frames that were announced and never came; meaningful once all are read."""
        return max((self.frames or 0) - self.decoded, 0)

    def close(self) -> None:  # noqa: B027
        """Let go of files and devices."""

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *reason: object) -> None:
        self.close()


def open_source(source: Any) -> Source:
    """The source behind a path, a url, a camera's number, a folder or a list of pictures.

    Args:
        source: a video file; a url that FFmpeg reads, e.g. `rtsp://...`; a camera's number (0 or "0"); a folder of
            pictures, taken in the order of their names (2 before 10); a list of picture files; or a `Source`.

    Raises:
        InputError: if there is nothing to read, or nothing that can be read.
        DependencyError: if PyAV is needed and not installed.
    """
    if isinstance(source, Source):
        return source
    if isinstance(source, (list, tuple)):
        return Folder([Path(path) for path in source], "the list of pictures")
    if isinstance(source, int) or (str(source).isdecimal() and not Path(source).exists()):
        return Camera(int(source))
    if "://" not in str(source):
        path = _existing(Path(source))
        if path.is_dir():
            pictures = [p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")]
            return Folder(sorted(pictures, key=_natural), str(path))
        if not path.is_file():
            raise InputError(f"{path} is no regular file: give a video file, a url or a camera's number")
        if not path.stat().st_size:
            raise InputError(f"{path} is empty (0 bytes): give a video file")
    return Video(str(source))


def _existing(path: Path) -> Path:
    try:
        path.stat()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: check the path") from None
    except (OSError, ValueError) as error:  # a loop of links, no permission, a NUL character
        raise InputError(f"{path} cannot be read ({getattr(error, 'strerror', error)}): check the path") from None
    return path


def _natural(path: Path) -> list[Any]:
    """Sorts numbers inside names by their value."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", path.name)]


class Video(Source):
    """A file or stream that FFmpeg decodes."""

    def __init__(self, url: str) -> None:
        av = import_av()
        scheme = url.split("://")[0].lower() if "://" in url else ""
        self.name = url
        self.live = scheme in LIVE
        try:
            self._container = open_container(url)
        except InputError:
            raise
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise InputError(f"{url} cannot be read as a video ({reason(error)}): give a video file") from None
        streams = self._container.streams
        if not streams.video:
            what = "holds sound only" if streams.audio else "holds no video"
            self._container.close()
            raise InputError(f"{url} {what}: give a file with a video in it")
        self._stream = streams.video[0]
        if self._stream.codec_context is None:
            self._container.close()
            raise InputError(f"{url} holds video of an unknown codec: convert it to H.264")
        self._stream.thread_type = "AUTO"
        if self._stream.width * self._stream.height > MAX_PIXELS:
            self._container.close()
            raise InputError(f"{url} has frames of more pixels than the limit of {MAX_PIXELS:,}: shrink it first")
        self._stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}  # its sides may change on the way
        self.frames = self._stream.frames or None
        self.rate = self._stream.average_rate or self._stream.guessed_rate
        self.time_base = self._stream.time_base
        self.aspect = self._stream.sample_aspect_ratio or Fraction(1)
        if streams.audio and not self.live:
            self.audio = url
        self._start = Fraction(self._container.start_time or 0, av.time_base)
        self._size: tuple[int, int] | None = None  # width and height of the first frame, before it is turned
        self._last = -1.0
        self._reading = self._closed = False

    def __iter__(self) -> Iterator[Picture]:
        """Frames in the order that they are shown.

        Raises:
            InputError: if not a single frame can be decoded.
        """
        self._reading = True
        try:
            for frame in self._decoded():
                picture = self._picture(frame)
                self.decoded += 1
                yield picture
            if not self.decoded:
                raise InputError(f"{self.name}: not a single frame can be decoded: get a whole copy")
        finally:
            self._reading = False
            if self._closed:
                self._container.close()

    def _decoded(self) -> Iterator[Any]:
        """What the decoder makes of the packets, damaged ones passed over."""
        av = import_av()
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets)
            except (StopIteration, av.error.EOFError):
                return
            except (av.error.FFmpegError, OSError):  # the file breaks off, or the connection does
                self.damaged += 1
                packet = None
            try:
                frames = self._stream.codec_context.decode(packet)
            except av.error.EOFError:
                return
            except (av.error.FFmpegError, ValueError):
                self.damaged += 1
                frames = []
            yield from frames
            if packet is None:
                return

    def _picture(self, frame: Any) -> Picture:
        self.damaged += bool(frame.is_corrupt)
        if self._size is None:
            self._size = frame.width, frame.height
            self.colours = Colours(int(frame.colorspace), int(frame.color_primaries), int(frame.color_trc))
            if frame.rotation % 180:
                self.aspect = 1 / self.aspect
        image = frame.to_ndarray(format="rgb24", width=self._size[0], height=self._size[1])
        turns = round(frame.rotation / 90) % 4
        if turns:
            image = np.ascontiguousarray(np.rot90(image, turns))
        step = float(1 / self.rate) if self.rate else 0.04
        when = self._last + step if self._last >= 0 else 0.0
        if frame.pts is not None and frame.time_base:
            when = float(frame.pts * frame.time_base - self._start)
        if when <= self._last:  # a broken file may go back in time; a video cannot
            when = self._last + float(self.time_base or Fraction(1, 1000))
        self._last = when
        return Picture(
            image, when, float(frame.duration * frame.time_base) if frame.duration and frame.time_base else None
        )

    def close(self) -> None:
        """See `Source.close`. A thread that still waits for a silent stream lets go of it when that ends."""
        self._closed = True
        if not self._reading:
            self._container.close()


class Camera(Source):
    """A camera at this machine, by its number."""

    live = True
    time_base = Fraction(1, 90_000)

    def __init__(self, number: int) -> None:
        self.name = f"camera {number}"
        self._capture = cv2.VideoCapture(number)
        if not self._capture.isOpened():
            raise InputError(f"camera {number} cannot be opened: check its number, and that no other program has it")
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.rate = Fraction(rate).limit_denominator(1001) if rate > 0 else None

    def __iter__(self) -> Iterator[Picture]:
        """Frames until the camera gives no more."""
        began = time.monotonic()
        while True:
            there, image = self._capture.read()
            if not there:
                return
            self.decoded += 1
            yield Picture(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), time.monotonic() - began)

    def close(self) -> None:
        """See `Source.close`."""
        self._capture.release()


class Folder(Source):
    """Pictures as frames, `FOLDER_RATE` a second; those that are damaged or of another size are passed over."""

    rate = FOLDER_RATE
    time_base = 1 / FOLDER_RATE

    def __init__(self, paths: Sequence[Path], name: str) -> None:
        if not paths:
            raise InputError(f"{name} holds no picture: give a video or a folder of {' '.join(SUFFIXES)}")
        self.name, self._paths, self.frames = name, paths, len(paths)

    def __iter__(self) -> Iterator[Picture]:
        """One frame for each picture.

        Raises:
            InputError: if none can be read.
        """
        shape: tuple[int, ...] | None = None
        for path in self._paths:
            try:
                image = read_image(path)
            except ImageError:
                self.damaged += 1
                continue
            shape = shape or image.shape
            if image.shape != shape:
                self.damaged += 1
                continue
            yield Picture(image, float(self.decoded / FOLDER_RATE), float(1 / FOLDER_RATE))
            self.decoded += 1
        if not self.decoded:
            raise InputError(f"{self.name}: not a single picture can be read: check the files")
