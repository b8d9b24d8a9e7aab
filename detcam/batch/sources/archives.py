"""Sources of images inside larger files: WebDataset tar files and Parquet tables."""

from __future__ import annotations

import json
import re
import tarfile
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from detcam.batch.items import Item, Source
from detcam.batch.sources import storage
from detcam.errors import InputError, nearest, needing
from detcam.images import SUFFIXES

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

FILES_AT_ONCE = 8  # files whose headers are read in parallel: an object store answers slowly
ROWS_AT_ONCE = 16  # images of a Parquet file in memory
NAME = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")  # WebDataset's key and suffix: up to the first dot of the last name
USUAL = ("image", "img", "picture", "jpg", "png", "path", "image_path", "file_name", "uri", "url")  # column names


def tar_source(name: str, folder: str, tars: Sequence[str], suffix: str | None = None) -> Source:
    """The images in WebDataset tar files, each read by its byte range; only headers are read here.

    `tars` are relative to `folder`; `name` is SRC as the user gave it. The members `KEY.suffix` are taken, without
    `suffix` those with an image's suffix. Raises an InputError for a damaged file, two images in a sample, and two
    images with the same key.
    """
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        listed = list(pool.map(lambda tar: _members(storage.join(folder, tar), suffix), tars))
    firsts = list(accumulate((len(keys) for keys, _ in listed), initial=0))
    keys = [key for keys, _ in listed for key in keys]

    def item(i: int) -> Item:
        tar = bisect_right(firsts, i) - 1
        spans = listed[tar][1]
        place = 2 * (i - firsts[tar])
        return Item(keys[i], f"{storage.join(folder, tars[tar])}#bytes={spans[place]}+{spans[place + 1]}")

    return Source(name, keys, item)


def _members(place: str, suffix: str | None) -> tuple[list[str], array[int]]:
    """The keys of a tar's images, and the spans [first byte, size, first byte, size, ...]."""
    keys: list[str] = []
    spans = array("Q")
    last = ""
    with storage.readable_errors(place), storage.open_file(place) as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                while (member := tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined]  # else it would keep all members
                    parts = NAME.match(member.name)
                    if parts is None or not member.isreg() or not _is_wanted(parts[2].lower(), suffix):
                        continue
                    key = storage.text(storage.normal(parts[1])).lstrip("/")
                    if keys and key == keys[-1]:
                        raise InputError(
                            f"{place}: {key!r} has two images ({last} and {parts[2]}): choose one with --column"
                        )
                    keys.append(key)
                    spans.extend((member.offset_data, member.size))
                    last = parts[2]
        except (tarfile.TarError, UnicodeError) as error:
            raise InputError(f"{place} is not a tar file, or is damaged ({error}): get a complete copy") from None
    return keys, spans


def _is_wanted(actual: str, suffix: str | None) -> bool:
    return "." + actual.rpartition(".")[2] in SUFFIXES if suffix is None else actual == suffix.lower().lstrip(".")


def parquet_source(
    name: str,
    folder: str,
    tables: Sequence[str],
    root: str | None = None,
    column: str | None = None,
    key: str | None = None,
    web: bool = False,
) -> Source:
    """The images in the rows of Parquet files: bytes, paths, or the struct of both that `datasets` writes.

    `tables` are relative to `folder`, paths in them to `root`, or else to `folder`; `name` is SRC as the user gave it,
    `web` allows http(s) URLs. Without `column`, the column of images is chosen by its metadata, type or name. Without
    `key`, keys are the paths if the column holds paths only, else `FILE#ROW`. Raises an InputError for a damaged file,
    columns that are missing or ambiguous, and two images with the same key.
    """
    places = [storage.join(folder, table) for table in tables]
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        heads = list(pool.map(_head, places))
    column = _column(places[0], heads[0][1], column)
    for place, (_, schema) in zip(places, heads, strict=True):
        for wanted in filter(None, (column, key)):
            if wanted not in schema.names:
                raise InputError(f"{place} has no column {wanted!r}: {nearest(wanted, schema.names)}")
    keys = None if key is None else _texts(places, key)
    if _kind(heads[0][1].field(column).type) == "path":
        return storage.files(name, root or folder, map(storage.normal, _texts(places, column)), web, keys)
    counts = [rows for rows, _ in heads]
    if keys is None:
        named = zip(map(storage.text, tables), counts, strict=True)
        keys = [f"{table}#{row}" for table, rows in named for row in range(rows)]
    return _Rows(name, keys, places, counts, column, root or folder, web)


class _Rows(Source):
    """Images stored in rows. Consecutive rows are read in one pass."""

    def __init__(
        self, name: str, keys: list[str], tables: list[str], counts: list[int], column: str, root: str, web: bool
    ) -> None:
        super().__init__(name, keys, self._read)
        self._tables, self._column, self._root, self._web = tables, column, root, web
        self._firsts = list(accumulate(counts, initial=0))
        self._next = 0
        self._cells: Iterator[tuple[Any]] = iter(())

    def _read(self, i: int) -> Item:
        table = bisect_right(self._firsts, i) - 1
        row = i - self._firsts[table]
        uri = f"{self._tables[table]}#row={row}&column={self._column}"
        try:
            cell = self._cell(i, table, row)
        except InputError:
            return Item(self._keys[i], uri)  # the worker tries again, and reports what is wrong with this image
        data, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
        if data is None and path:
            storage.check(path, self._web)
            return Item(self._keys[i], storage.join(self._root, path))
        return Item(self._keys[i], uri, data or b"")

    def _cell(self, i: int, table: int, row: int) -> Any:
        cell = next(self._cells, None) if i == self._next else None
        if cell is None:  # the next file, or another place
            self._cells = _cells(self._tables[table], self._column, row)
            cell = next(self._cells)
        self._next = i + 1
        return cell[0]


@contextmanager
def _table(place: str) -> Iterator[pq.ParquetFile]:
    with needing(f'{place} needs pyarrow, which is not installed: pip install "detcam[batch]"'):
        import pyarrow.parquet as pq
    import pyarrow as pa

    with storage.readable_errors(place), storage.open_file(place) as file:
        try:
            yield pq.ParquetFile(file, buffer_size=1 << 20)  # reads columns in pieces instead of whole row groups
        except pa.ArrowException as error:
            raise InputError(f"{place} is not a Parquet file, or is damaged ({error}): get a complete copy") from None


def _head(place: str) -> tuple[int, pa.Schema]:
    with _table(place) as table:
        return table.metadata.num_rows, table.schema_arrow


def _texts(places: Sequence[str], column: str) -> list[str]:
    """The values of a column in all files, as text."""
    values: list[str] = []
    for place in places:
        with _table(place) as table:
            for batch in table.iter_batches(columns=[column]):
                values.extend(batch.column(0).cast("string").to_pylist())
        if None in values:
            raise InputError(f"{place}: column {column!r} has an empty row: fill it")
    return values


def _cells(place: str, column: str, row: int) -> Iterator[tuple[Any]]:
    """The values of a column from `row` on, each in a tuple, since a value may be None."""
    with _table(place) as table:
        groups = range(table.num_row_groups)
        ends = list(accumulate(table.metadata.row_group(group).num_rows for group in groups))
        first = bisect_right(ends, row)
        skip = row - (ends[first - 1] if first else 0)
        for batch in table.iter_batches(ROWS_AT_ONCE, row_groups=groups[first:], columns=[column]):
            for value in batch.column(0)[min(skip, len(batch)) :]:
                yield (value.as_py(),)
            skip = max(0, skip - len(batch))


def _column(place: str, schema: pa.Schema, requested: str | None) -> str:
    """The column of images: the requested one, else the one with such metadata, type or name."""
    if requested is not None:
        if requested in schema.names and _kind(schema.field(requested).type) is None:
            held = schema.field(requested).type
            raise InputError(f"{place}: column {requested!r} holds {held}, neither bytes nor paths")
        return requested
    kinds = {field.name: _kind(field.type) for field in schema}
    marked = [name for name in _image_features(schema) if kinds.get(name)]
    typed = [[name for name in kinds if kinds[name] == kind] for kind in ("struct", "bytes")]
    named = [name for name in kinds if kinds[name] == "path" and name.lower() in USUAL]
    for group in (marked, *typed, named):
        best = [name for name in group if name.lower() in USUAL] if len(group) > 1 else group
        if len(best) == 1:
            return best[0]
        if group:
            raise InputError(f"{place}: images may be in {' or '.join(map(repr, group))}: choose with --column")
    raise InputError(f"{place} has no column of images among {', '.join(schema.names)}: name it with --column")


def _image_features(schema: pa.Schema) -> list[str]:
    """The columns that `datasets` marked as images."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return [name for name, feature in features.items() if feature["_type"] == "Image"]
    except (KeyError, TypeError, ValueError):
        return []


def _kind(kind: pa.DataType) -> str | None:
    import pyarrow as pa

    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if pa.types.is_struct(kind):
        return "struct" if kind.get_field_index("bytes") >= 0 else None
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return "bytes"
    return "path" if pa.types.is_string(kind) or pa.types.is_large_string(kind) else None
