"""Opening a video source: the reader for a path, a URL, a camera, a folder or a list of images."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from detcam.errors import InputError
from detcam.images import SUFFIXES
from detcam.video.readers import Camera, Folder, Video
from detcam.video.source import Source


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
