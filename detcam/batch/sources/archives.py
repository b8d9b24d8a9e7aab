"""Pictures inside larger files: WebDataset's tar files and Parquet tables."""

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

from detcam.batch.items import Item
from detcam.batch.sources import storage as places
from detcam.batch.sources.listed import Listed, files, normal, text
from detcam.errors import DependencyError, InputError, nearest
from detcam.images import SUFFIXES

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

FILES_AT_ONCE = 8  # whose headers are read at the same time: an object store answers slowly, but many at once
ROWS_AT_ONCE = 16  # pictures of a Parquet file in memory
NAME = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")  # WebDataset's key and suffix: up to the first dot of the last name
WANTED = ("image", "img", "picture", "jpg", "png", "path", "image_path", "file_name", "uri", "url")  # usual columns


def tar_source(name: str, folder: str, tars: Sequence[str], suffix: str | None = None) -> Listed:
    """The pictures in WebDataset's tar files, each read by its place in the file; only headers are read here.

    Args:
        name: what the user called it.
        folder: where the files lie.
        tars: the files, relative to it.
        suffix: take the members `KEY.suffix`; None: those with a picture's suffix.

    Raises:
        InputError: for a damaged file, for two pictures in one sample, and for two pictures of one key.
    """
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        listed = list(pool.map(lambda tar: _members(places.join(folder, tar), suffix), tars))
    firsts = list(accumulate((len(keys) for keys, _ in listed), initial=0))
    keys = [key for keys, _ in listed for key in keys]

    def item(i: int) -> Item:
        tar = bisect_right(firsts, i) - 1
        spans = listed[tar][1]
        place = 2 * (i - firsts[tar])
        return Item(keys[i], f"{places.join(folder, tars[tar])}#bytes={spans[place]}+{spans[place + 1]}")

    return Listed(name, keys, item)


def _members(place: str, suffix: str | None) -> tuple[list[str], array[int]]:
    """The keys of a tar's pictures, and the first byte and the size of each, one after the other."""
    keys: list[str] = []
    spans = array("Q")
    last = ""
    with places.told(place), places.open_file(place) as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                while (member := tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined]  # it would remember them all
                    found = NAME.match(member.name)
                    if found is None or not member.isreg() or not _is_wanted(found[2].lower(), suffix):
                        continue
                    key = text(normal(found[1])).lstrip("/")
                    if keys and key == keys[-1]:
                        raise InputError(
                            f"{place}: {key!r} has two pictures ({last} and {found[2]}): choose one with --column"
                        )
                    keys.append(key)
                    spans.extend((member.offset_data, member.size))
                    last = found[2]
        except (tarfile.TarError, UnicodeError) as error:
            raise InputError(f"{place} is no tar file, or is damaged ({error}): get a whole copy") from None
    return keys, spans


def _is_wanted(found: str, suffix: str | None) -> bool:
    if suffix is not None:
        return found == suffix.lower().lstrip(".")
    return "." + found.rpartition(".")[2] in SUFFIXES


def parquet_source(
    name: str,
    folder: str,
    tables: Sequence[str],
    root: str | None = None,
    column: str | None = None,
    key: str | None = None,
    web: bool = False,
) -> Listed:
    """The pictures in the rows of Parquet files: bytes, paths, or the struct of both that `datasets` writes.

    Args:
        name: what the user called it.
        folder: where the files lie.
        tables: the files, relative to it.
        root: where paths in them lead; None: `folder`.
        column: the column of pictures; None: the one that looks like it.
        key: the column of keys; None: paths where there are paths only, else `FILE#ROW`.
        web: allow http(s) URLs as paths.

    Raises:
        InputError: for a damaged file, columns that are not there or not clear, and two pictures of one key.
    """
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        heads = list(pool.map(lambda table: _head(places.join(folder, table)), tables))
    column = _column(places.join(folder, tables[0]), heads[0][1], column)
    for table, (_, schema) in zip(tables, heads, strict=True):
        for wanted in filter(None, (column, key)):
            if wanted not in schema.names:
                raise InputError(
                    f"{places.join(folder, table)} has no column {wanted!r}: {nearest(wanted, schema.names)}"
                )
    if _kind(heads[0][1].field(column).type) == "path":
        keys = None if key is None else _texts(folder, tables, key)
        return files(name, root or folder, map(normal, _texts(folder, tables, column)), web, keys)
    counts = [rows for rows, _ in heads]
    if key is None:
        keys = [f"{text(table)}#{row}" for table, rows in zip(tables, counts, strict=True) for row in range(rows)]
    else:
        keys = _texts(folder, tables, key)
    return _Rows(name, keys, [places.join(folder, table) for table in tables], counts, column, root or folder, web)


class _Rows(Listed):
    """Pictures that come with their rows. Rows that follow each other are read in one go."""

    def __init__(
        self,
        name: str,
        keys: Sequence[str],
        tables: Sequence[str],
        counts: Sequence[int],
        column: str,
        root: str,
        web: bool,
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
            return Item(self._keys[i], uri)  # whoever explains it tries again, and says what is wrong with this picture
        data, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
        if data is None and path:
            places.check(path, self._web)
            return Item(self._keys[i], path if places.is_url(path) else places.join(self._root, path))
        return Item(self._keys[i], uri, data or b"")

    def _cell(self, i: int, table: int, row: int) -> Any:
        found = next(self._cells, None) if i == self._next else None
        if found is None:  # the next file, or another place
            self._cells = _cells(self._tables[table], self._column, row)
            found = next(self._cells)
        self._next = i + 1
        return found[0]


@contextmanager
def _table(place: str) -> Iterator[pq.ParquetFile]:
    try:
        import pyarrow.parquet as pq
    except ImportError:
        raise DependencyError(f'{place} needs pyarrow, which is not installed: pip install "detcam[scale]"') from None
    import pyarrow as pa

    with places.told(place), places.open_file(place) as file:
        try:
            yield pq.ParquetFile(file, buffer_size=1 << 20)  # reads columns piece by piece, not row groups whole
        except pa.ArrowException as error:
            raise InputError(f"{place} is no Parquet file, or is damaged ({error}): get a whole copy") from None


def _head(place: str) -> tuple[int, pa.Schema]:
    with _table(place) as table:
        return table.metadata.num_rows, table.schema_arrow


def _texts(folder: str, tables: Sequence[str], column: str) -> list[str]:
    """A column of all files as text."""
    values: list[str] = []
    for name in tables:
        with _table(places.join(folder, name)) as table:
            for batch in table.iter_batches(columns=[column]):
                values.extend(batch.column(0).cast("string").to_pylist())
        if None in values:
            raise InputError(f"{places.join(folder, name)}: column {column!r} has an empty row: fill it")
    return values


def _cells(place: str, column: str, row: int) -> Iterator[tuple[Any]]:
    """The values of a column from `row` on, each in a tuple, since one may be None."""
    with _table(place) as table:
        groups = range(table.num_row_groups)
        ends = list(accumulate(table.metadata.row_group(group).num_rows for group in groups))
        first = bisect_right(ends, row)
        skip = row - (ends[first - 1] if first else 0)
        for batch in table.iter_batches(ROWS_AT_ONCE, row_groups=groups[first:], columns=[column]):
            for value in batch.column(0)[min(skip, len(batch)) :]:
                yield (value.as_py(),)
            skip = max(0, skip - len(batch))


def _column(place: str, schema: pa.Schema, asked: str | None) -> str:
    """The column of pictures: what was asked for, or the one that is marked, typed or called like it."""
    if asked is not None:
        if asked in schema.names and _kind(schema.field(asked).type) is None:
            raise InputError(f"{place}: column {asked!r} holds {schema.field(asked).type}, neither bytes nor paths")
        return asked
    kinds = {field.name: _kind(field.type) for field in schema}
    marked = [name for name in _image_features(schema) if kinds.get(name)]
    typed = [[name for name, found in kinds.items() if found == kind] for kind in ("struct", "bytes")]
    called = [name for name, found in kinds.items() if found == "path" and name.lower() in WANTED]
    for group in (marked, *typed, called):
        best = [name for name in group if name.lower() in WANTED] if len(group) > 1 else group
        if len(best) == 1:
            return best[0]
        if group:
            raise InputError(f"{place}: pictures may be in {' or '.join(map(repr, group))}: choose with --column")
    raise InputError(f"{place} has no column of pictures among {', '.join(schema.names)}: name it with --column")


def _image_features(schema: pa.Schema) -> list[str]:
    """The columns that `datasets` marked as pictures."""
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
