"""Dataset of a job: `job.json`, and for every chunk a shard of each of two tables.

    DIR/job.json                        everything that the rows depend on
    DIR/objects/part-000012.parquet     rows of `detcam.batch.dataset.schema.objects`
    DIR/pictures/part-000012.parquet    rows of `detcam.batch.dataset.schema.pictures`

A shard is written whole or not at all, the shard of pictures after the shard of objects: a chunk is done if its shard
of pictures exists. A chunk that is done again replaces the files of the same names, so no row is ever doubled.

    DIR/objects/part-000012_1.parquet   rows of images that had failed and were tried again

An image that failed has no objects, so these rows replace no others. Their shard is written first; then the shard of
pictures is replaced by a shard without those errors, whose metadata counts the further shards of objects. A further
shard that is not counted was left by a job that was killed between the two writes; the next job removes it.
"""

from __future__ import annotations

import io
import json
import re
from typing import TYPE_CHECKING, Any

from detcam.batch.dataset.folder import Folder
from detcam.batch.dataset.rows import Batch
from detcam.errors import InputError
from detcam.evaluate.store import differences

if TYPE_CHECKING:
    import pyarrow as pa

MANIFEST, OBJECTS, PICTURES, SAVED = "job.json", "objects", "pictures", "explanations"
FORMAT = 1
NAMES = ("source.name", "options.model")  # may change: digests of images and weights are compared
PART, MORE = re.compile(r"part-(\d{6,})\.parquet"), re.compile(r"part-(\d{6,})_(\d+)\.parquet")
COUNTED = b"detcam.more"  # metadata key of a shard of pictures: number of further shards of objects
DICTIONARIES = ["label", "method", "layers", "target", "note", "status", "worker", "uri", "key"]  # with repeated values


def part_name(chunk: int, more: int = 0) -> str:
    """The file name of a chunk's shards; with `more` of its further shard of objects 1, 2, ..."""
    return f"part-{chunk:06d}{f'_{more}' if more else ''}.parquet"


class Dataset:
    """Writes and reads the dataset of a job in a folder."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self._objects, self._pictures = folder / OBJECTS, folder / PICTURES

    def manifest(self) -> dict[str, Any] | None:
        """The content of `job.json`; None if it does not exist; an InputError if it cannot be read."""
        where = f"{self.folder.name}/{MANIFEST}"
        try:
            document = json.loads(self.folder.read(MANIFEST))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"{where} cannot be read ({error}): choose another folder") from None
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise InputError(f"{where} is not of format {FORMAT}, which this version of detcam writes: choose another")
        return document

    def done(self) -> frozenset[int]:
        """The numbers of the chunks that are done."""
        matches = (PART.fullmatch(name) for name in self._pictures.names())
        return frozenset(int(match[1]) for match in matches if match)

    def begin(self, manifest: dict[str, Any], resume: bool) -> frozenset[int]:
        """Start a job here, or continue one; returns the chunks that are done.

        Raises an InputError if the folder is not empty and `resume` is False, or it has a job of another manifest; an
        OutputError if the folder cannot be written.
        """
        earlier, done = self.manifest(), self.done()
        if earlier is None and (names := self.folder.names()):
            raise InputError(f"{self.folder.name} holds {names[0]!r}, which is not of a job: choose another --out")
        if earlier is not None and done:
            self._check(earlier, manifest, len(done), resume)
        for folder in (self.folder, self._objects, self._pictures):
            folder.tidy()
        self._remove_uncounted(done)
        if earlier != manifest:
            self.folder.write(MANIFEST, (json.dumps(manifest, ensure_ascii=False, indent=1) + "\n").encode())
        return done

    def _check(self, earlier: dict[str, Any], manifest: dict[str, Any], done: int, resume: bool) -> None:
        if not resume:
            raise InputError(
                f"{self.folder.name} holds {done} shards of an earlier job: add --resume to go on with it, or choose "
                "another --out"
            )
        was, now = ({k: v for k, v in flat(m).items() if k not in NAMES} for m in (earlier, manifest))
        if changed := differences(was, now):
            raise InputError(
                f"{self.folder.name} was made with other settings ({changed}): use those, or choose another --out"
            )

    def write(self, batch: Batch) -> int:
        """Write a chunk's rows; return the bytes written; an OutputError if they cannot be written."""
        name = part_name(batch.chunk)
        objects, pictures = encoded(batch.objects), encoded(batch.pictures)
        self._objects.write(name, objects)
        self._pictures.write(name, pictures)
        return len(objects) + len(pictures)

    def amend(self, batch: Batch) -> int:
        """Replace errors in a done chunk by the rows of a new try; the bytes written; an OutputError if that fails."""
        import pyarrow as pa

        earlier = self.pictures(batch.chunk)
        new = {row["key"]: row for row in batch.pictures.to_pylist()}
        rows = [new.get(row["key"], row) for row in earlier.to_pylist()]
        more, objects = _counted(earlier), b""
        if len(batch.objects):
            more, objects = more + 1, encoded(batch.objects)
            self._objects.write(part_name(batch.chunk, more), objects)
        table = pa.Table.from_pylist(rows, batch.pictures.schema.with_metadata({COUNTED: str(more)}))
        pictures = encoded(table)
        self._pictures.write(part_name(batch.chunk), pictures)
        return len(objects) + len(pictures)

    def _remove_uncounted(self, done: frozenset[int]) -> None:
        for name in self._objects.names():
            if match := MORE.fullmatch(name):
                chunk, more = map(int, match.groups())
                if chunk not in done or more > _counted(self.pictures(chunk)):
                    self._objects.remove(name)

    def pictures(self, chunk: int) -> pa.Table:
        """The rows of a chunk's pictures."""
        return self._read(self._pictures, part_name(chunk))

    def objects(self, chunk: int, pictures: pa.Table | None = None) -> pa.Table:
        """The rows of a chunk's objects; `pictures` saves reading its shard of pictures."""
        import pyarrow as pa

        more = _counted(self.pictures(chunk) if pictures is None else pictures)
        return pa.concat_tables(self._read(self._objects, part_name(chunk, i)) for i in range(more + 1))

    @staticmethod
    def _read(folder: Folder, name: str) -> pa.Table:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return pq.ParquetFile(io.BytesIO(folder.read(name))).read()
        except (OSError, pa.ArrowException) as error:  # pyarrow also raises OSError for damaged files
            raise InputError(
                f"{folder.name}/{name} cannot be read ({' '.join(str(error).split())}): remove it there and in "
                f"{PICTURES}/, and run the job again with --resume"
            ) from None


def _counted(pictures: pa.Table) -> int:
    """The number of further shards of objects that belong to a shard of pictures."""
    return int((pictures.schema.metadata or {}).get(COUNTED, 0))


def encoded(table: pa.Table) -> bytes:
    """A table as the bytes of a Parquet file, compressed with zstd."""
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    dictionaries = [name for name in DICTIONARIES if name in table.schema.names]
    pq.write_table(table, buffer, compression="zstd", use_dictionary=dictionaries)
    return buffer.getvalue()


def flat(document: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`."""
    values: dict[str, Any] = {}
    for name, value in document.items():
        values |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return values
