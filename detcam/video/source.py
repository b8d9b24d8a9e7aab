"""Video source: the interface of everything that yields frames."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np


@dataclass(frozen=True)
class Picture:
    """A decoded frame.

    Attributes:
        image: [H, W, 3] uint8 RGB, upright.
        time: seconds since the start of the source.
        duration: seconds for which it is shown, or None.
    """

    image: np.ndarray = field(repr=False)
    time: float
    duration: float | None = None


@dataclass(frozen=True)
class Colours:
    """Colour space of a video, in FFmpeg's numbers; 2 is "unspecified"."""

    matrix: int = 2
    primaries: int = 2
    transfer: int = 2


class Source(AbstractContextManager["Source"]):
    """A source of frames: an iterable for a single iteration, and a context manager.

    Attributes:
        name: name of the source in messages.
        frames: number of frames that the source announces, or None.
        rate: mean frames per second, or None.
        time_base: unit of the frame times in seconds, or None.
        live: whether frames are lost when they are not read in time.
        audio: path or URL of the sound, or None.
        aspect: width of a pixel divided by its height.
        colours: colour space.
        decoded: number of frames read so far.
        damaged: number of packets or images that could not be decoded, and of frames that the decoder marks as corrupt.
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
        """Number of announced frames that were not found; meaningful after the last frame."""
        return max((self.frames or 0) - self.decoded, 0)

    def close(self) -> None:
        """Release files and devices."""

    def __exit__(self, *reason: object) -> None:
        self.close()
