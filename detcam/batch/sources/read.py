"""Reads the bytes of an image: a file, a span of a larger file, or a cell of a table."""

import errno
import re
from pathlib import Path
from typing import Any

from detcam.batch.items import Item
from detcam.batch.sources.storage import open_file, opened_store, path_on_disk
from detcam.errors import ImageError, InputError
from detcam.files import read_regular
from detcam.images import MAX_BYTES

AT_ONCE = 16 << 20  # bytes of the first request to a store: nearly every image is smaller and costs one request
PART = re.compile(r"#(?:bytes=(?P<first>\d+)\+(?P<count>\d+)|row=(?P<row>\d+)&column=(?P<column>.+))$")


def read_bytes(item: Item) -> bytes:
    """The bytes of an image; an ImageError if they cannot be read."""
    return read_uri(item.uri) if item.data is None else item.data


def read_uri(uri: str) -> bytes:
    """The bytes of the image at an `Item.uri`; an ImageError if they cannot be read."""
    part = PART.search(uri)
    try:
        if part is None:
            return _whole(uri)
        file = uri[: part.start()]
        if part["row"] is None:
            return _span(file, int(part["first"]), int(part["count"]))
        return _row(file, int(part["row"]), part["column"])
    except InputError as error:
        raise ImageError(str(error)) from None
    except FileNotFoundError:
        raise ImageError(f"{uri} does not exist: check the path") from None
    except Exception as error:  # file systems of stores raise their library's errors
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ImageError(f"{uri} cannot be read ({reason}): check the path and its permissions") from None


def _whole(file: str) -> bytes:
    if (path := path_on_disk(file)) is not None:
        return read_regular(Path(path), MAX_BYTES)
    if file.startswith(("http://", "https://")):
        return _streamed(file)
    data = _start(file)
    if len(data) < AT_ONCE:
        return data
    system, key = opened_store(file)
    return data + _span(file, len(data), _checked(system.size(key)) - len(data))


def _start(file: str) -> bytes:
    """The first bytes of a file in a store, without asking for its size, which would be another request."""
    system, path = opened_store(file)
    try:
        data: bytes = system.cat_file(path, start=0, end=AT_ONCE)
    except (FileNotFoundError, PermissionError):
        raise
    except Exception:
        if system.size(path) == 0:  # an error in some stores: the file has no first byte
            return b""
        raise
    return data


def _streamed(file: str) -> bytes:
    """A file on the web, whose server may ignore ranges and send without end."""
    system, path = opened_store(file)
    data = bytearray()
    with system.open(path, "rb", block_size=0, size=1) as opened:  # any size, else it would be asked for
        while part := opened.read(AT_ONCE):
            data += part
            _checked(len(data))
    return bytes(data)


def _span(file: str, first: int, count: int) -> bytes:
    if not _checked(count):
        return b""
    system, path = opened_store(file)
    return bytes(system.cat_file(path, start=first, end=first + count))


def _checked(size: int) -> int:
    """The size in bytes if an image may have it, else OSError."""
    if size > MAX_BYTES:
        raise OSError(errno.EFBIG, f"longer than {MAX_BYTES:,} bytes")
    return size


def _row(file: str, row: int, column: str) -> bytes:
    """A cell of a Parquet file: bytes, or the struct {bytes, path} that `datasets` writes."""
    import pyarrow.parquet as pq

    with open_file(file) as opened:
        table = pq.ParquetFile(opened)
        for group in range(table.num_row_groups):
            rows = table.metadata.row_group(group).num_rows
            if row < rows:
                value: Any = table.read_row_group(group, columns=[column]).column(0)[row].as_py()
                break
            row -= rows
        else:
            raise ImageError(f"{file} has no such row: it changed since it was listed")
    value = value["bytes"] if isinstance(value, dict) else value
    if not isinstance(value, bytes):
        raise ImageError(f"{file}: column {column!r} has no bytes in that row")
    return value
