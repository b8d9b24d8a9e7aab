"""Sound: copied packet by packet from the source to the output, without decoding."""

from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from typing import Any

from detcam.video.container import import_av, open_container


class Sound:
    """Copies the sound of a file into another container.

    Args:
        url: the file with the sound.
        output: PyAV's output container, before its header is written.
    """

    def __init__(self, url: str, output: Any) -> None:
        av = import_av()
        self._error: Any = av.error.FFmpegError
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
        with suppress(self._error, OSError):
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
