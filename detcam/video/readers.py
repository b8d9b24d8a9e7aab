"""Readers: frames from video files and streams, cameras and folders of images, and which one reads a source."""

import re
import time
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from detcam.errors import ImageError, InputError
from detcam.images import SUFFIXES, displayable, read_image
from detcam.video.source import LIVE, MAX_PIXELS, Colours, Picture, Source, import_av, open_container, reason

FOLDER_RATE = Fraction(10)  # images in a folder have no times


class Video(Source):
    """A video file or stream, decoded by FFmpeg."""

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
            problem = "holds sound only" if streams.audio else "holds no video"
            self._container.close()
            raise InputError(f"{url} {problem}: give a file with a video in it")
        self._stream = streams.video[0]
        if self._stream.codec_context is None:
            self._container.close()
            raise InputError(f"{url} holds video of an unknown codec: convert it to H.264")
        self._stream.thread_type = "AUTO"
        if self._stream.width * self._stream.height > MAX_PIXELS:
            self._container.close()
            raise InputError(f"{url} has frames of more pixels than the limit of {MAX_PIXELS:,}: shrink it first")
        self._stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}  # the frame size may change inside a file
        self.frames = self._stream.frames or None
        self.rate = self._stream.average_rate or self._stream.guessed_rate
        self.time_base = self._stream.time_base
        self.aspect = self._stream.sample_aspect_ratio or Fraction(1)
        if streams.audio and not self.live:
            self.audio = url
        self._start = Fraction(self._container.start_time or 0, av.time_base)
        self._size: tuple[int, int] | None = None  # width and height of the first frame, before rotation
        self._last = -1.0
        self._reading = self._closed = False

    def __iter__(self) -> Iterator[Picture]:
        """Frames in display order; an InputError if no frame can be decoded."""
        self._reading = True
        try:
            for frame in self._decoded():
                picture = self._picture(frame)
                self.decoded += 1
                yield picture
            if not self.decoded:
                raise InputError(f"{self.name}: not a single frame can be decoded: get a complete copy")
        finally:
            self._reading = False
            if self._closed:
                self._container.close()

    def _decoded(self) -> Iterator[Any]:
        """Decoded frames; damaged packets are skipped and counted."""
        av = import_av()
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets)
            except (StopIteration, av.error.EOFError):
                return
            except (av.error.FFmpegError, OSError):  # the file or the connection ends early
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
        if turns := round(frame.rotation / 90) % 4:
            image = np.ascontiguousarray(np.rot90(image, turns))
        step = float(1 / self.rate) if self.rate else 0.04
        when = self._last + step if self._last >= 0 else 0.0
        if frame.pts is not None and frame.time_base:
            when = float(frame.pts * frame.time_base - self._start)
        if when <= self._last:  # times must increase; in damaged files they may not
            when = self._last + float(self.time_base or Fraction(1, 1000))
        self._last = when
        duration = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else None
        return Picture(image, when, duration)

    def close(self) -> None:
        """See `Source.close`. While a thread waits for the stream, that thread closes it when the wait ends."""
        self._closed = True
        if not self._reading:
            self._container.close()


class Camera(Source):
    """A local camera, by its number."""

    live = True
    time_base = Fraction(1, 90_000)

    def __init__(self, number: int) -> None:
        self.name = f"camera {number}"
        self._capture = cv2.VideoCapture(number)
        if not self._capture.isOpened():
            raise InputError(f"camera {number} cannot be opened: check its number, and that no other program uses it")
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.rate = Fraction(rate).limit_denominator(1001) if rate > 0 else None

    def __iter__(self) -> Iterator[Picture]:
        """Frames until the camera ends."""
        began = time.monotonic()
        while True:
            ok, image = self._capture.read()
            if not ok:
                return
            self.decoded += 1
            yield Picture(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), time.monotonic() - began)

    def close(self) -> None:
        self._capture.release()


class Folder(Source):
    """Image files as frames, `FOLDER_RATE` per second; images that are damaged or of another size are skipped."""

    rate = FOLDER_RATE
    time_base = 1 / FOLDER_RATE

    def __init__(self, paths: Sequence[Path], name: str) -> None:
        if not paths:
            raise InputError(f"{name} holds no image: give a video or a folder of {' '.join(SUFFIXES)}")
        self.name, self._paths, self.frames = name, paths, len(paths)

    def __iter__(self) -> Iterator[Picture]:
        """A frame for each image; an InputError if no image can be read."""
        shape: tuple[int, ...] | None = None
        for path in self._paths:
            try:
                image, _ = displayable(read_image(path))
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
            raise InputError(f"{self.name}: not a single image can be read: check the files")


def open_source(source: Any) -> Source:
    """Open a video source.

    Args:
        source: a video file; a URL that FFmpeg reads, e.g. `rtsp://...`; a camera number (0 or "0"); a folder of
            images, read in the order of their names (2 before 10); a list of image files; or a `Source`, which is
            returned.

    Raises:
        InputError: if the source is missing, empty or unreadable.
        DependencyError: if PyAV is needed and not installed.
    """
    if isinstance(source, Source):
        return source
    if isinstance(source, (list, tuple)):
        return Folder([Path(path) for path in source], "the list of images")
    if isinstance(source, int) or (str(source).isdecimal() and not Path(source).exists()):
        return Camera(int(source))
    if "://" not in str(source):
        path = Path(source)
        try:
            path.stat()
        except FileNotFoundError:
            raise InputError(f"{path} does not exist: check the path") from None
        except (OSError, ValueError) as error:  # a loop of links, no permission, a NUL character
            raise InputError(f"{path} cannot be read ({getattr(error, 'strerror', error)}): check the path") from None
        if path.is_dir():
            images = [p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")]
            return Folder(sorted(images, key=_natural), str(path))
        if not path.is_file():
            raise InputError(f"{path} is not a regular file: give a video file, a URL or a camera number")
        if not path.stat().st_size:
            raise InputError(f"{path} is empty (0 bytes): give a video file")
    return Video(str(source))


def _natural(path: Path) -> list[Any]:
    """Sort key that orders numbers in file names by value."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", path.name)]
