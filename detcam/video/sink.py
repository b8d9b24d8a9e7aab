"""Frames out: an H.264 file that plays in browsers, whole under its name or not there at all."""

from __future__ import annotations

import os
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from detcam.errors import OutputError
from detcam.files import unfinished
from detcam.video.audio import Sound
from detcam.video.source import Source, import_av, reason

FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}
SCALER_MATRIX = {1: 1, 5: 5, 6: 5, 7: 7, 9: 9}  # FFmpeg's number of a colour matrix -> that of its scaler


class Sink:
    """A video file that frames are written to: H.264, yuv420p, index in front, the source's sound copied.

    It is a context manager. What is written goes to a hidden file beside `path` and gets its name at the end, so an
    error leaves nothing under it, and an older file of that name as it was.

    Args:
        path: the file, .mp4, .m4v, .mov or .mkv.
        like: the source that the frames come from: for its sound, times, colours and the shape of its pixels.
        fps: frames per second, for frames that are written without a time.
        quality: x264's constant rate factor, 0 (lossless) to 51; 18 to 23 is usual.

    Attributes:
        frames: frames written so far.
        left_out: codecs of the source's sound that the format cannot hold.

    Raises:
        OutputError: if the file cannot be written, e.g. because the disk is full.
        ImportError: if PyAV is not installed.
    """

    def __init__(
        self, path: str | os.PathLike[str], like: Source | None = None, fps: float = 25, quality: int = 20
    ) -> None:
        import_av()
        self.path = Path(path)
        if self.path.suffix.lower() not in FORMATS:
            raise OutputError(f"{self.path}: {self.path.suffix or 'no suffix'!r} is no format to write: use .mp4")
        if self.path.is_dir():
            raise OutputError(f"{self.path} is a directory: give the name of a file")
        self.frames = 0
        self.left_out: list[str] = []
        self._like = like
        rate = like.rate if like is not None and like.rate else Fraction(fps).limit_denominator(1001)
        self._step = float(1 / rate)
        self._rate = rate
        self._time_base = like.time_base if like is not None and like.time_base else 1 / rate
        self._quality = quality
        self._hidden = unfinished(self.path)
        self._container: Any = None
        self._stream: Any = None
        self._sound: Sound | None = None
        self._durations: dict[int, int] = {}  # of the frames inside the encoder, which drops them, by time
        self._last = -1  # the last frame's time, in units of the time base
        self._end = 0.0
        try:  # complain before hours of work, not after them
            self._hidden.touch()
            self._hidden.unlink()
        except OSError as error:
            raise OutputError(f"{self.path} cannot be written ({reason(error)}): choose another place") from None

    def write(self, image: np.ndarray, time: float | None = None, duration: float | None = None) -> None:
        """Append one frame.

        Args:
            image: [H, W, 3] uint8 RGB, always of the same size; an odd side gets its last row or column twice.
            time: seconds at which it is shown, later than the one before; None: one step after it.
            duration: seconds that it is shown; None: until the next, the last for one step.

        Raises:
            OutputError: if it cannot be written.
        """
        try:
            if self._container is None:
                self._open(image)
            at = self._end if time is None else time
            frame = self._frame(image)
            frame.pts = self._last = max(round(Fraction(at) / self._time_base), self._last + 1)
            frame.time_base = self._time_base
            shown = max(round(Fraction(duration or self._step) / self._time_base), 1)
            self._durations[frame.pts] = shown
            self._end = float((frame.pts + shown) * self._time_base)
            self._encode(frame)
            if self._sound is not None:
                self._sound.copy(until=at)
        except OSError as error:
            raise self._failed(error) from None
        self.frames += 1

    def _open(self, image: np.ndarray) -> None:
        av = import_av()
        height, width = image.shape[0], image.shape[1]
        kind = FORMATS[self.path.suffix.lower()]
        options = {"movflags": "+faststart"} if kind in ("mp4", "mov") else {}
        self._container = av.open(str(self._hidden), "w", format=kind, options=options)
        self._stream = self._container.add_stream("libx264", rate=self._rate)
        # Without B-frames the time between packets is that between frames, and the file's times stay exact.
        self._stream.options = {"crf": str(self._quality), "preset": "veryfast", "bf": "0"}
        context = self._stream.codec_context
        context.width, context.height = width + width % 2, height + height % 2
        context.pix_fmt, context.time_base = "yuv420p", self._time_base
        if self._like is not None:
            context.sample_aspect_ratio = self._like.aspect
            colours = self._like.colours
            context.colorspace, context.color_primaries = colours.matrix, colours.primaries
            context.color_trc = colours.transfer
            if self._like.audio is not None:
                self._sound = Sound(self._like.audio, self._container)
                self.left_out = self._sound.left_out

    def _frame(self, image: np.ndarray) -> Any:
        """The picture as the encoder takes it."""
        height, width = image.shape[0], image.shape[1]
        if width % 2 or height % 2:
            image = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        matrix = SCALER_MATRIX.get(self._like.colours.matrix) if self._like is not None else None
        rgb = import_av().VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        return rgb.reformat(format="yuv420p", dst_colorspace=matrix)

    def _encode(self, frame: Any) -> None:
        """Hand on a frame, or None for the last ones that the encoder holds back."""
        for packet in self._stream.encode(frame):
            packet.duration = self._durations.pop(packet.pts)
            self._container.mux(packet)

    def close(self, whole: bool = True) -> None:
        """Finish the file and give it its name.

        Args:
            whole: whether the source came to its end; if not, sound beyond the last frame is left out.

        Raises:
            OutputError: if it cannot be finished, or no frame was written.
        """
        if self._container is None:
            raise OutputError(f"{self.path}: no frame was written, so there is no video to finish")
        try:
            self._encode(None)
            if self._sound is not None:
                self._sound.copy(until=None if whole else self._end)
                self._sound.close()
            self._container.close()
            os.replace(self._hidden, self.path)
        except OSError as error:
            raise self._failed(error) from None
        self._container = None

    def discard(self) -> None:
        """Leave nothing of the file behind."""
        if self._sound is not None:
            self._sound.close()
        if self._container is not None:
            with suppress(OSError):  # what cannot be written any more is thrown away
                self._container.close()
            self._container = None
        self._hidden.unlink(missing_ok=True)

    def _failed(self, error: OSError) -> OutputError:
        self.discard()
        return OutputError(
            f"{self.path} cannot be written ({reason(error)}): free some space or choose another place; nothing is "
            "left under that name"
        )

    def __enter__(self) -> Sink:
        return self

    def __exit__(self, kind: object, *reason: object) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()
