"""Files read whole within bounds, and files and folders that are written whole or not at all."""

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


def read_regular(path: Path, limit: int) -> bytes:
    """The bytes of a regular file of at most `limit` bytes. Devices and pipes may have no end and are refused.

    Raises:
        OSError: if the file cannot be read, is longer, or is not a regular file; `strerror` says which.
    """
    try:
        mode, size = path.stat().st_mode, path.stat().st_size
    except ValueError as error:  # a NUL character in the name
        raise OSError(errno.EINVAL, str(error)) from None
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "not a regular file")
    with path.open("rb") as file:
        data = file.read(limit + 1) if size <= limit else None
    if data is None or len(data) > limit:
        raise OSError(errno.EFBIG, f"longer than {limit:,} bytes")
    return data


def unfinished(path: Path) -> Path:
    """The hidden name beside `path` under which a file is written until it is complete."""
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def write_whole(path: Path, data: bytes) -> None:
    """Write or replace a file; readers see old or new content, also after a crash; an OSError leaves nothing."""
    work = unfinished(path)
    try:
        with work.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        work.replace(path)
    finally:
        work.unlink(missing_ok=True)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A hidden folder to write files into, which becomes `folder` at the end of the block.

    If `folder` exists already, the new files are moved into it. After an error it is as it was before.

    Raises:
        OSError: if the folder cannot be written.
    """
    is_new = not folder.exists()
    parent = folder.parent if is_new else folder
    parent.mkdir(parents=True, exist_ok=True)
    work = parent / f".detcam-{uuid4().hex}"
    work.mkdir()
    try:
        yield work
        if is_new:
            work.rename(folder)
        else:
            for path in sorted(work.iterdir()):
                path.replace(folder / path.name)
    finally:
        shutil.rmtree(work, ignore_errors=True)
