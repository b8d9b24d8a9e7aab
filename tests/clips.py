"""Small videos made for a test, and what is in a video, both by PyAV alone."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

RATE = 44_100


def moving_blobs(seed: int, count: int, height: int, width: int) -> list[np.ndarray]:
    """[height, width, 3] uint8 each: smooth colours that wander, with the frame's number in the grey of a corner."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    places = generator.uniform(0, 1, (5, 2)) * (height, width)
    speeds = generator.uniform(-3, 3, (5, 2))
    colours = generator.uniform(30, 220, (5, 3))
    frames = []
    for i in range(count):
        picture = np.full((height, width, 3), 90.0)
        for place, speed, colour in zip(places, speeds, colours, strict=True):
            py, px = (place + i * speed) % (height, width)
            near = np.exp(-((y - py) ** 2 + (x - px) ** 2) / (2 * (height / 7) ** 2))[..., None]
            picture = picture * (1 - near) + colour * near
        picture[:16, :16] = number_grey(i)
        frames.append(picture.round().astype(np.uint8))
    return frames


def number_grey(i: int) -> int:
    """The grey that stands for frame `i`; neighbours differ by far more than a codec's error."""
    return 20 + (i * 37) % 200


def write_clip(
    path: Path,
    frames: list[np.ndarray],
    ticks: list[int] | None = None,
    time_base: Fraction = Fraction(1, 25),
    codec: str = "libx264",
    sound: str | None = None,
    seconds: float | None = None,
    colorspace: int | None = None,
) -> Path:
    """A video of `frames` at `ticks` (units of `time_base`), with a sine if `sound` names a codec.

    Lossless with the codec "ffv1" (into .mkv).
    """
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=round(1 / time_base) if time_base < 1 else 25)
        context = stream.codec_context
        context.height, context.width = frames[0].shape[:2]
        context.pix_fmt = "bgr0" if codec == "ffv1" else "yuv420p"
        context.time_base = time_base
        if codec == "libx264":
            stream.options = {"crf": "12", "preset": "ultrafast", "g": "10"}
        if colorspace is not None:
            context.colorspace = context.color_primaries = context.color_trc = colorspace
        audio = None
        if sound is not None:
            audio = container.add_stream(sound, rate=RATE)
            audio.codec_context.layout = "mono"
        ticks = list(range(len(frames))) if ticks is None else ticks
        for image, tick in zip(frames, ticks, strict=True):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame = frame.reformat(format=context.pix_fmt, dst_colorspace=colorspace)
            frame.pts, frame.time_base = tick, time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if audio is not None:
            _write_sine(container, audio, seconds or float((ticks[-1] + 1) * time_base))
    return path


def _write_sine(container: av.container.OutputContainer, stream: av.AudioStream, seconds: float) -> None:
    step, wave = 1024, None
    resampler = av.AudioResampler(format=stream.codec_context.format, layout="mono", rate=RATE)
    for start in range(0, round(seconds * RATE), step):
        wave = np.sin(np.arange(start, start + step) * 2 * np.pi * 440 / RATE)[None] * 12_000
        frame = av.AudioFrame.from_ndarray(wave.astype(np.int16), format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = RATE, start, Fraction(1, RATE)
        for ready in resampler.resample(frame):
            container.mux(stream.encode(ready))
    container.mux(stream.encode(None))


def write_sound(path: Path) -> Path:
    """A file with a sine and no video."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=RATE)
        stream.codec_context.layout = "mono"
        _write_sine(container, stream, 0.5)
    return path


def turn_clockwise(path: Path) -> None:
    """Have players turn an .mp4 by 90 degrees clockwise, as a telephone held upright writes it: (x, y) -> (-y, x)."""
    data = bytearray(path.read_bytes())
    header = data.index(b"tkhd") + 4
    assert data[header] == 0, "version 0 of the track header"
    matrix = header + 4 + 20 + 16  # version and flags, times and number, reserved to volume
    one = 1 << 16
    data[matrix : matrix + 36] = struct.pack(">9i", 0, one, 0, -one, 0, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


@dataclass
class Contents:
    """What a video holds."""

    images: list[np.ndarray]
    times: list[Fraction]
    duration: Fraction
    sound: list[bytes]
    sound_times: list[Fraction]

    @classmethod
    def of(cls, path: Path) -> Contents:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            frames = list(container.decode(stream))
            times = [Fraction(f.pts) * f.time_base for f in frames]
            images = [f.to_ndarray(format="rgb24") for f in frames]
            last = (frames[-1].duration or 0) * frames[-1].time_base
            duration = times[-1] + last
        sound, sound_times = [], []
        with av.open(str(path)) as container:
            if container.streams.audio:
                for packet in container.demux(container.streams.audio[0]):
                    if packet.size:
                        sound.append(bytes(packet))
                        sound_times.append(packet.pts * packet.time_base)
        return cls(images, times, duration, sound, sound_times)

    @property
    def greys(self) -> list[int]:
        """What stands in the corner of each frame."""
        return [round(float(image[4:12, 4:12].mean())) for image in self.images]


def near_sound(found: list[Fraction], expected: list[Fraction]) -> bool:
    """Whether times agree to a sample."""
    return len(found) == len(expected) and all(
        abs(a - b) <= Fraction(1, RATE) for a, b in zip(found, expected, strict=True)
    )
