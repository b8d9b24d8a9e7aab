"""Sink: writes frames and sound to an H.264 file that plays in browsers, completely or not at all."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from detcam.errors import OutputError
from detcam.files import unfinished
from detcam.video.source import Source, import_av, open_container, reason

FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}
SCALER_MATRIX = {1: 1, 5: 5, 6: 5, 7: 7, 9: 9}  # FFmpeg's number of a colour matrix -> that of its scaler


class Sound:
    """Copies the sound of the file `url` into PyAV's container `output`, whose header is not written yet."""

    def __init__(self, url: str, output: Any) -> None:
        av = import_av()
        self._output = output
        self._input = open_container(url)
        self._start = Fraction(self._input.start_time or 0, av.time_base)
        self._streams: dict[int, Any] = {}
        self.left_out: list[str] = []  # codecs that the output format does not support
        for stream in self._input.streams.audio:
            if stream.codec_context.name in output.supported_codecs:
                self._streams[stream.index] = output.add_stream_from_template(stream)
            else:
                self.left_out.append(stream.codec_context.name)
        self._packets = self._read()
        self._next = next(self._packets, None)

    def _read(self) -> Iterator[tuple[Fraction, Any]]:
        """(start time, packet), until the end of the file or the first damage."""
        chosen = [stream for stream in self._input.streams.audio if stream.index in self._streams]
        if not chosen:
            return
        with suppress(import_av().error.FFmpegError, OSError):
            for packet in self._input.demux(*chosen):
                if packet.dts is not None and not packet.is_corrupt:
                    start = round(self._start / packet.time_base)
                    time = packet.dts * packet.time_base - self._start
                    packet.dts -= start
                    packet.pts = packet.dts if packet.pts is None else packet.pts - start
                    yield time, packet

    def copy(self, until: float | None = None) -> None:
        """Copy the packets that start before `until` seconds, or all remaining packets."""
        while self._next is not None and (until is None or self._next[0] < until):
            packet = self._next[1]
            packet.stream = self._streams[packet.stream_index]
            self._output.mux(packet)
            self._next = next(self._packets, None)

    def close(self) -> None:
        """Close the file."""
        self._input.close()


class Sink(AbstractContextManager["Sink"]):
    """Writer of a video file: H.264, yuv420p, index in front, sound copied from the source.

    A context manager. Frames are written to a hidden file beside `path`, which is renamed at the end: an error leaves
    no partial file, and an existing file of that name unchanged.

    Args:
        path: the file, .mp4, .m4v, .mov or .mkv.
        like: the source of the frames; gives sound, frame times, colour space and pixel aspect ratio.
        fps: frames per second, for frames written without a time.
        quality: x264's constant rate factor, 0 (lossless) to 51; 18 to 23 is usual.

    Attributes:
        frames: number of frames written so far.
        left_out: sound codecs of the source that the format does not support.

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
            raise OutputError(f"{self.path}: {self.path.suffix or 'no suffix'!r} is not a supported format: use .mp4")
        if self.path.is_dir():
            raise OutputError(f"{self.path} is a directory: give the name of a file")
        self.frames = 0
        self.left_out: list[str] = []
        self._like = like
        self._rate = like.rate if like is not None and like.rate else Fraction(fps).limit_denominator(1001)
        self._step = float(1 / self._rate)
        self._time_base = like.time_base if like is not None and like.time_base else 1 / self._rate
        self._quality = quality
        self._hidden = unfinished(self.path)
        self._container: Any = None
        self._stream: Any = None
        self._sound: Sound | None = None
        self._durations: dict[int, int] = {}  # by time: the encoder drops the durations of frames
        self._last = -1  # time of the last frame in units of the time base
        self._end = 0.0
        try:  # fail before hours of work, not after
            self._hidden.touch()
            self._hidden.unlink()
        except OSError as error:
            raise OutputError(f"{self.path} cannot be written ({reason(error)}): choose another place") from None

    def write(self, image: np.ndarray, time: float | None = None, duration: float | None = None) -> None:
        """Append a frame.

        Args:
            image: [H, W, 3] uint8 RGB, always of the same size; for an odd side the last row or column is repeated.
            time: seconds at which it is shown, later than the previous frame; None: one step after it.
            duration: seconds for which it is shown; None: one step.

        Raises:
            OutputError: if the frame cannot be written.
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
        # Without B-frames, packets have the times of frames, which keeps the times in the file exact.
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
        """The image as a frame for the encoder."""
        height, width = image.shape[0], image.shape[1]
        if width % 2 or height % 2:
            image = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        matrix = SCALER_MATRIX.get(self._like.colours.matrix) if self._like is not None else None
        rgb = import_av().VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        return rgb.reformat(format="yuv420p", dst_colorspace=matrix)

    def _encode(self, frame: Any) -> None:
        """Encode a frame, or for None the last frames in the encoder's buffer."""
        for packet in self._stream.encode(frame):
            packet.duration = self._durations.pop(packet.pts)
            self._container.mux(packet)

    def close(self, whole: bool = True) -> None:
        """Finish the file and rename it.

        Args:
            whole: whether the source was read to its end; if not, sound after the last frame is left out.

        Raises:
            OutputError: if the file cannot be finished, or no frame was written.
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
        """Delete the unfinished file."""
        if self._sound is not None:
            self._sound.close()
        if self._container is not None:
            with suppress(OSError):  # the data are discarded anyway
                self._container.close()
            self._container = None
        self._hidden.unlink(missing_ok=True)

    def _failed(self, error: OSError) -> OutputError:
        self.discard()
        return OutputError(
            f"{self.path} cannot be written ({reason(error)}): free some space or choose another place; nothing is "
            "left under that name"
        )

    def __exit__(self, kind: object, *reason: object) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()
