"""FFmpeg's containers, opened so that a file is nothing but itself."""

from __future__ import annotations

import os
import sys
from typing import Any

from detcam.errors import DependencyError, InputError

LIVE = ("rtsp", "rtsps", "rtmp", "rtmps", "rtp", "udp", "srt")  # streams that do not wait for whoever reads them
SCHEMES = (*LIVE, "http", "https")
PATIENCE = 15.0  # seconds that a stream may keep silent
# What a file may be. FFmpeg goes by what is in it: a text that calls itself a playlist would open other files and urls.
CONTAINERS = (
    "mov,mp4,3gp,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,flv,live_flv,ogg,asf,gif,apng,mjpeg,mjpeg_2000,h264,hevc,"
    "av1,obu,vc1,ivf,dv,mxf,gxf,nut,rm,wtv,swf,yuv4mpegpipe"
)
MAX_PIXELS = 2**26  # of a frame; 8K has half as many, and a decoder keeps up to sixteen


def open_container(url: str) -> Any:
    """What PyAV opens of a file or url: of a file nothing but that file, as one of `CONTAINERS`.

    Raises:
        InputError: for another kind of url.
        av.error.FFmpegError, OSError, ValueError: if it is no video.
    """
    av = import_av()
    if "://" not in url:
        options = {"protocol_whitelist": "file", "format_whitelist": CONTAINERS}
        return av.open(os.path.abspath(url), options=options)  # a relative `concat:a` would be no file's name
    scheme = url.split("://")[0].lower()
    if scheme not in SCHEMES:
        raise InputError(f"{url}: urls of {scheme!r} are not read: give a file, or one of {' '.join(SCHEMES)}")
    options = {"rtsp_transport": "tcp"} if scheme.startswith("rtsp") else {}
    return av.open(url, timeout=PATIENCE, options=options)


def import_av() -> Any:
    """PyAV, with FFmpeg's own messages off.

    Raises:
        DependencyError: if it is not installed.
    """
    fresh = "av" not in sys.modules
    try:
        import av
    except ImportError:
        raise DependencyError('videos need PyAV, which is not installed: pip install "detcam[video]"') from None
    if fresh:
        av.logging.set_level(None)
    return av


def reason(error: Exception) -> str:
    """What FFmpeg or the system complains about, in a few words."""
    number = getattr(error, "errno", None)
    if isinstance(error, OSError) and isinstance(number, int) and number > 0:
        return os.strerror(number).lower()
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0].lower()
