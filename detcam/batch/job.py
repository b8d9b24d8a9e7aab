"""A job from beginning to end: what is still to do, an engine that does it, and a dataset that keeps it."""

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

SHARDS, LEAST, MOST = 64, 8, 512  # a job of N pictures has chunks of N / 64 pictures, but at least 8 and at most 512
SHOWN = 5  # errors that a summary names


@dataclass
class Tally:
    """How far a job is.

    Attributes:
        total: pictures in the source.
        before: pictures that earlier runs did.
        done: pictures that are done, by this run and earlier ones.
        empty: those where nothing was found.
        errors: those that could not be read or explained.
        objects: rows of objects.
        written: bytes that this run wrote.
        first: the first errors, as (key, what is wrong).
        began: when this run began, in seconds of `perf_counter`.
    """

    total: int
    before: int = 0
    done: int = 0
    empty: int = 0
    errors: int = 0
    objects: int = 0
    written: int = 0
    first: list[tuple[str, str]] = field(default_factory=list)
    began: float = field(default_factory=perf_counter)

    def add(self, pictures: pa.Table) -> None:
        """Count the rows of some pictures."""
        self.done += len(pictures)
        self.objects += sum(pictures["objects"].to_pylist())
        for key, status, error in zip(*(pictures[c].to_pylist() for c in ("key", "status", "error")), strict=True):
            self.empty += status == "empty"
            self.errors += status == "error"
            if status == "error" and len(self.first) < SHOWN:
                self.first.append((key, error))

    @property
    def seconds(self) -> float:
        """Since this run began."""
        return perf_counter() - self.began

    @property
    def rate(self) -> float:
        """Pictures per second of this run."""
        return (self.done - self.before) / max(self.seconds, 1e-9)

    @property
    def left(self) -> float | None:
        """Seconds until the end, at this rate; None before anything is done."""
        return (self.total - self.done) / self.rate if self.done > self.before else None


def chunk_size(count: int) -> int:
    """How many pictures go into a chunk, where the user does not say."""
    return min(max(math.ceil(count / SHARDS), LEAST), MOST)


def fingerprint(model: str, trust_checkpoint: bool = False) -> str:
    """A digest of a model's weights: of the file, of all files of a folder, or of a demo model.

    Raises:
        ModelError: if there is no such model.
    """
    path = Path(model)
    if model in zoo.names():
        files = [*zoo.FOLDER.glob(f"{model}.*"), *(zoo.FOLDER / model).rglob("*")]
    elif path.exists():
        files = [path] if path.is_file() else list(path.rglob("*"))
    else:
        load_model(model, trust_checkpoint)  # complains, or downloads it once rather than in every worker
        files = [path]
    digest = hashlib.sha256()
    for file in sorted(one for one in files if one.is_file()):
        digest.update(file.name.encode(errors="surrogateescape"))
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]


def manifest(source: Source, options: Options, chunk: int) -> dict[str, Any]:
    """What the rows of a job depend on, as plain JSON values."""
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
    """Explain every picture of a source that is not done yet.

    Args:
        source: from `detcam.batch.sources.open.open_source`.
        out: the folder of the dataset, a path or a URL.
        options: what to explain, and how.
        engine: what distributes the work.
        chunk: pictures per shard; None: that of the job that is gone on with, else by the number of pictures.
        resume: go on with a job; it must have been the same one.
        save: also save each explanation, as `Explanation.save` does, under `explanations` in `out`.
        max_errors: stop when more pictures than these have failed; None: never.
        retry_errors: with `resume`, also do again the pictures that failed before: their new rows replace their errors.
        progress: called at the beginning and whenever a chunk is done.

    Raises:
        InputError: for a folder that is not empty, another job's folder, options that cannot be used, too many errors,
            and `retry_errors` without `resume`.
        OutputError: if something cannot be written.
        DetcamError: if workers die while they start.
        DependencyError: if pyarrow is not installed.
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
        if retry_errors and (failed := _failed(pictures)):
            again[number] = [number * chunk + row for row in failed]
            pictures = pictures.filter([status != "error" for status in pictures["status"].to_pylist()])
        tally.add(pictures)
    tally.before = tally.done
    tell = progress or (lambda tally: None)
    tell(tally)

    def keep(batch: Batch) -> None:
        if batch.written is None:
            tally.written += dataset.amend(batch) if batch.chunk in again else dataset.write(batch)
        else:
            tally.written += batch.written
        tally.add(batch.pictures)
        tell(tally)
        _check(tally, max_errors)

    _check(tally, max_errors)
    engine(chunks(source, chunk, done, again), options, keep)
    if tally.done != tally.total:
        raise DetcamError(f"{tally.total - tally.done} pictures are missing in {out}: go on with --resume")
    return tally


def _failed(pictures: pa.Table) -> list[int]:
    """The rows of pictures that failed."""
    return [row for row, status in enumerate(pictures["status"].to_pylist()) if status == "error"]


def _saving(options: Options, folder: Folder, source: str) -> Options:
    if folder.local is None:
        raise InputError(f"{folder.name} is a URL, and explanations can only be saved on disk: leave --overlays out")
    if folder.local.resolve().is_relative_to(Path(source).resolve()):
        raise InputError(
            f"{folder.name} lies in {source}, whose pictures are explained, and would become some: choose another --out"
        )
    return options.model_copy(update={"save_to": str((folder / SAVED).local)})


def _check(tally: Tally, max_errors: int | None) -> None:
    if max_errors is not None and tally.errors > max_errors:
        key, error = tally.first[0]
        raise InputError(
            f"{tally.errors} pictures failed, more than --max-errors {max_errors}; the first one, {key}: {error}. "
            "What is done is kept: go on with --resume and a larger --max-errors"
        )
