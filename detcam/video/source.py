"""Video sources: the interface of everything that yields frames, and FFmpeg's containers, without other files."""

import os
import sys
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from detcam.errors import InputError, needing

LIVE = ("rtsp", "rtsps", "rtmp", "rtmps", "rtp", "udp", "srt")  # live streams, which do not wait for the reader
SCHEMES = (*LIVE, "http", "https")
TIMEOUT = 15.0  # seconds without data after which a stream has failed
# Formats of files. FFmpeg detects the format from the content, and a playlist would open other files and URLs.
CONTAINERS = (
    "mov,mp4,3gp,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,flv,live_flv,ogg,asf,gif,apng,mjpeg,mjpeg_2000,h264,hevc,"
    "av1,obu,vc1,ivf,dv,mxf,gxf,nut,rm,wtv,swf,yuv4mpegpipe"
)
MAX_PIXELS = 2**26  # of a frame: twice as many as 8K; a decoder keeps up to sixteen frames


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


def open_container(url: str) -> Any:
    """Open a file or URL with PyAV; a file must be in one of the formats `CONTAINERS`, and cannot refer to other files.

    Raises:
        InputError: for a URL of another scheme than `SCHEMES`.
        av.error.FFmpegError, OSError, ValueError: if it is not a video.
    """
    av = import_av()
    if "://" not in url:
        options = {"protocol_whitelist": "file", "format_whitelist": CONTAINERS}
        return av.open(os.path.abspath(url), options=options)  # a relative `concat:a` would be taken for a URL
    scheme = url.split("://")[0].lower()
    if scheme not in SCHEMES:
        raise InputError(f"{url}: URLs of {scheme!r} are not read: give a file, or a URL of {' '.join(SCHEMES)}")
    options = {"rtsp_transport": "tcp"} if scheme.startswith("rtsp") else {}
    return av.open(url, timeout=TIMEOUT, options=options)


def import_av() -> Any:
    """Import PyAV, with FFmpeg's log messages off; a DependencyError if PyAV is not installed."""
    fresh = "av" not in sys.modules
    with needing('videos need PyAV, which is not installed: pip install "detcam[video]"'):
        import av
    if fresh:
        av.logging.set_level(None)
    return av


def reason(error: Exception) -> str:
    """The message of an error of FFmpeg or the system, in a few words."""
    number = getattr(error, "errno", None)
    if isinstance(error, OSError) and isinstance(number, int) and number > 0:
        return os.strerror(number).lower()
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0].lower()
