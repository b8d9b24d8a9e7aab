"""Batch job: runs the chunks that are not done yet with an engine, and writes their rows into a dataset."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from detcam import zoo
from detcam.batch.dataset.dataset import FORMAT, SAVED, Dataset
from detcam.batch.dataset.folder import Folder
from detcam.batch.dataset.rows import Batch
from detcam.batch.dataset.schema import require_arrow
from detcam.batch.items import Source, chunks
from detcam.batch.worker import Engine, Options
from detcam.errors import DetcamError, InputError
from detcam.models.load import load_model

if TYPE_CHECKING:
    import pyarrow as pa

SHARDS, LEAST, MOST = 64, 8, 512  # chunks of N images have N / 64 images, at least 8 and at most 512
SHOWN = 5  # errors in a summary


@dataclass
class Tally:
    """Progress of a job."""

    total: int  # images in the source
    before: int = 0  # images done by earlier runs
    done: int = 0  # images done by this run and earlier ones
    empty: int = 0  # images without objects
    errors: int = 0  # images that could not be read or explained
    objects: int = 0  # rows of objects
    written: int = 0  # bytes that this run wrote
    first: list[tuple[str, str]] = field(default_factory=list)  # the first errors, as (key, reason)
    began: float = field(default_factory=perf_counter)  # start of this run, by `perf_counter`

    def add(self, pictures: pa.Table) -> None:
        """Count rows of the table of pictures."""
        self.done += len(pictures)
        self.objects += sum(pictures["objects"].to_pylist())
        for key, status, error in zip(*(pictures[c].to_pylist() for c in ("key", "status", "error")), strict=True):
            self.empty += status == "empty"
            self.errors += status == "error"
            if status == "error" and len(self.first) < SHOWN:
                self.first.append((key, error))

    @property
    def seconds(self) -> float:
        """Seconds since this run began."""
        return perf_counter() - self.began

    @property
    def rate(self) -> float:
        """Images per second of this run."""
        return (self.done - self.before) / max(self.seconds, 1e-9)

    @property
    def left(self) -> float | None:
        """Seconds until the end at this rate; None before an image is done."""
        return (self.total - self.done) / self.rate if self.done > self.before else None


def chunk_size(count: int) -> int:
    """The default number of images in a chunk, for `count` images."""
    return min(max(math.ceil(count / SHARDS), LEAST), MOST)


def fingerprint(model: str, trust_checkpoint: bool = False) -> str:
    """A digest of the weights in a file, a folder or a demo model; a ModelError if there is no such model."""
    path = Path(model)
    if model in zoo.names():
        files = zoo.files(model)
    elif path.exists():
        files = [path] if path.is_file() else list(path.rglob("*"))
    else:
        load_model(model, trust_checkpoint)  # raises, or downloads the model once rather than in every worker
        files = [path]
    digest = hashlib.sha256()
    for file in sorted(path for path in files if path.is_file()):
        digest.update(file.name.encode(errors="surrogateescape"))
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]


def manifest(source: Source, options: Options, chunk: int) -> dict[str, Any]:
    """Everything that the rows of a job depend on, as plain JSON values."""
    from detcam import __version__

    chosen = options.model_dump(mode="json", exclude={"device", "save_to", "trust_checkpoint"})
    return {
        "format": FORMAT,
        "detcam": __version__,
        "source": {"name": source.name, "pictures": source.count(), "fingerprint": source.fingerprint()},
        "weights": fingerprint(options.model, options.trust_checkpoint),
        "options": {**chosen, "save": options.save_to is not None},
        "chunk": chunk,
    }


def run(
    source: Source,
    out: str,
    options: Options,
    engine: Engine,
    chunk: int | None = None,
    resume: bool = False,
    save: bool = False,
    max_errors: int | None = None,
    retry_errors: bool = False,
    progress: Callable[[Tally], None] | None = None,
) -> Tally:
    """Explain every image of a source that is not done yet, into the dataset at the path or URL `out`.

    A chunk becomes a shard; by default its number of images is that of the job to resume, else `chunk_size`. With
    `resume` a job goes on, which must have had the same options and images; with `retry_errors`, images that failed
    before are done again, and their new rows replace their errors. With `save`, each explanation is also saved, as by
    `Explanation.save`, under `explanations` in `out`. When more images than `max_errors` have failed, the job stops.
    `progress` is called at the beginning and whenever a chunk is done.

    Raises an InputError for a folder that is not empty, another job's folder, options that cannot be used, too many
    errors, and `retry_errors` without `resume`; an OutputError if a file cannot be written; a DetcamError if workers
    die while they start; a DependencyError if pyarrow is not installed.
    """
    require_arrow()
    if retry_errors and not resume:
        raise InputError("--retry-errors goes on with a job that has errors: add --resume")
    folder = Folder(out)
    if save:
        options = _saving(options, folder, source.name)
    dataset = Dataset(folder)
    if chunk is None and resume:
        chunk = (dataset.manifest() or {}).get("chunk")
    chunk = chunk or chunk_size(source.count())
    done = dataset.begin(manifest(source, options, chunk), resume)
    tally = Tally(source.count())
    again: dict[int, list[int]] = {}
    for number in sorted(done):
        pictures = dataset.pictures(number)
        failed = [status == "error" for status in pictures["status"].to_pylist()]
        if retry_errors and any(failed):
            again[number] = [number * chunk + row for row, has_failed in enumerate(failed) if has_failed]
            pictures = pictures.filter([not has_failed for has_failed in failed])
        tally.add(pictures)
    tally.before = tally.done
    report = progress or (lambda tally: None)
    report(tally)

    def write(batch: Batch) -> None:
        if batch.written is None:
            tally.written += dataset.amend(batch) if batch.chunk in again else dataset.write(batch)
        else:
            tally.written += batch.written
        tally.add(batch.pictures)
        report(tally)
        _check(tally, max_errors)

    _check(tally, max_errors)
    engine(chunks(source, chunk, done, again), options, write)
    if tally.done != tally.total:
        raise DetcamError(f"{tally.total - tally.done} images are missing in {out}: go on with --resume")
    return tally


def _saving(options: Options, folder: Folder, source: str) -> Options:
    if folder.local is None:
        raise InputError(f"{folder.name} is a URL, and explanations can only be saved on disk: leave --overlays out")
    if folder.local.resolve().is_relative_to(Path(source).resolve()):
        raise InputError(
            f"{folder.name} lies in {source}, so overlays in it would be explained as images: choose another --out"
        )
    return options.model_copy(update={"save_to": str((folder / SAVED).local)})


def _check(tally: Tally, max_errors: int | None) -> None:
    if max_errors is not None and tally.errors > max_errors:
        key, error = tally.first[0]
        raise InputError(
            f"{tally.errors} images failed, more than --max-errors {max_errors}; the first one, {key}: {error}. "
            "What is done is kept: go on with --resume and a larger --max-errors"
        )
