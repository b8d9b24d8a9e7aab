"""Files read whole, within bounds."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


def read_regular(path: Path, limit: int) -> bytes:
    """The bytes of a regular file of at most `limit` bytes. Devices and pipes may have no end and are refused.

    Raises:
        OSError: if it cannot be read, is longer, or is no regular file; `strerror` says which.
    """
    try:
        mode, size = path.stat().st_mode, path.stat().st_size
    except ValueError as error:  # a NUL character in the name
        raise OSError(errno.EINVAL, str(error)) from None
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "no regular file")
    with path.open("rb") as file:
        data = file.read(limit + 1) if size <= limit else None
    if data is None or len(data) > limit:
        raise OSError(errno.EFBIG, f"longer than {limit:,} bytes")
    return data
