"""The bytes of one picture, wherever it lies: a file, a part of a larger file, or a row of a table."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from detcam.errors import ImageError, InputError
from detcam.images import MAX_BYTES
from detcam.reading import read_regular
from detcam.scale.items import Item
from detcam.scale.places import is_url, open_file, opened_store

PART = re.compile(r"#(?:bytes=(?P<first>\d+)\+(?P<count>\d+)|row=(?P<row>\d+)&column=(?P<column>.+))$")


def read_bytes(item: Item) -> bytes:
    """The bytes of an item's file.

    Raises:
        ImageError: if they cannot be read.
    """
    return read_uri(item.uri) if item.data is None else item.data


def read_uri(uri: str) -> bytes:
    """The bytes that a `uri` of `Item` stands for.

    Raises:
        ImageError: if they cannot be read.
    """
    part = PART.search(uri)
    try:
        if part is None:
            return _span(uri, None, None)
        file = uri[: part.start()]
        if part["row"] is None:
            first = int(part["first"])
            return _span(file, first, first + int(part["count"]))
        return _row(file, int(part["row"]), part["column"])
    except InputError as error:
        raise ImageError(str(error)) from None
    except FileNotFoundError:
        raise ImageError(f"{uri} does not exist: check the path") from None
    except Exception as error:  # file systems of object stores raise whatever their library raises
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ImageError(f"{uri} cannot be read ({reason}): check the path and its permissions") from None


def _span(file: str, first: int | None, stop: int | None) -> bytes:
    if is_url(file):
        system, path = opened_store(file)
        data: bytes = system.cat_file(path, start=first, end=stop)
        return data
    if first is None or stop is None:
        return read_regular(Path(file), MAX_BYTES)
    with open(file, "rb") as opened:
        opened.seek(first)
        return opened.read(stop - first)


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
        raise ImageError(f"{file}: column {column!r} holds no bytes in that row")
    return value
