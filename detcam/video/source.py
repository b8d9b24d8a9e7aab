"""Video source: the interface of everything that yields frames."""

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np


@dataclass(frozen=True)
class Picture:
    """A decoded frame."""

    image: np.ndarray = field(repr=False)  # [H, W, 3] uint8 RGB, upright
    time: float  # seconds since the start of the source
    duration: float | None = None  # seconds for which it is shown, or None


@dataclass(frozen=True)
class Colours:
    """Colour space of a video, in FFmpeg's numbers; 2 is "unspecified"."""

    matrix: int = 2
    primaries: int = 2
    transfer: int = 2


class Source(AbstractContextManager["Source"]):
    """A source of frames: an iterable for a single iteration, and a context manager."""

    name: str  # in messages
    frames: int | None = None  # number of frames that the source announces
    rate: Fraction | None = None  # mean frames per second
    time_base: Fraction | None = None  # unit of the frame times in seconds
    live = False  # whether frames are lost when they are not read in time
    audio: str | None = None  # path or URL of the sound
    aspect = Fraction(1)  # width of a pixel divided by its height
    colours = Colours()
    decoded = 0  # number of frames read so far
    damaged = 0  # number of packets or images that could not be decoded, and of frames that are marked as corrupt

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
