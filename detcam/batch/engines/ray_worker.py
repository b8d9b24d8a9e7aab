"""Worker of the Ray engine: explains chunks inside an actor of the cluster."""

from __future__ import annotations

import os
import pickle
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any

from detcam.batch.dataset.dataset import Dataset
from detcam.batch.dataset.folder import Folder
from detcam.batch.dataset.rows import Batch, failed
from detcam.batch.engines.local import STARTS, TRIES, fatal, hung
from detcam.batch.engines.local_worker import make_worker, portable
from detcam.batch.engines.watchdog import Watchdog
from detcam.batch.items import Chunk
from detcam.batch.worker import Options, Worker
from detcam.errors import DetcamError, InputError

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Receipt:
    """The answer of a worker to the driver."""

    place: int  # place of the chunk in the queue
    batch: Batch | Exception  # rows of the chunk, without those of objects if the worker wrote them itself; or an error
    deaths: int = 0  # number of workers that the chunk killed or held up


@dataclass(frozen=True)
class WorkerSettings:
    """Settings of every worker of a run."""

    options: Options  # what to explain, and how
    device: str | None  # device of the worker; None: where the model is loaded
    threads: int  # threads on the CPU
    folder: str  # working folder of the driver, to which relative paths refer
    out: str | None  # folder of the dataset if workers write their rows themselves
    timeout: float = 0.0  # seconds for an image, see `Engine`; 0: no limit


class ChunkWorker:
    """Turns a table of chunks into a table of receipts: the callable class of Ray Data's actor pool.

    `queue` is the handle of the `ChunkQueue` actor. The worker is made when the first chunk comes, unless it is given.
    """

    def __init__(self, settings: WorkerSettings, queue: Any, worker: Worker | None = None) -> None:
        import ray

        self._ray: Any = ray
        self._settings, self._queue, self._worker = settings, queue, worker
        self._started = monotonic()
        self._watchdog = Watchdog(settings.timeout)

    def __call__(self, table: pa.Table) -> pa.Table:
        """A receipt for each chunk."""
        rows = zip(table["place"].to_pylist(), table["chunk"].to_pylist(), strict=True)
        receipts = [pickle.dumps(self._receipt(place, chunk)) for place, chunk in rows if chunk]
        return type(table).from_pydict({"receipt": receipts})

    def _receipt(self, place: int, packed: bytes) -> Receipt:
        try:
            chunk: Chunk = pickle.loads(packed)
            deaths, has_hung = self._begin(f"chunk {place}")
            worker = self._ready()
            if deaths < TRIES and not has_hung:
                batch = self._explained(worker, chunk)
            else:
                batch = Batch.joined([self._alone(worker, single) for single in chunk.singles()])
            batch = self._written(batch, chunk)
            self._end(f"chunk {place}")
            return Receipt(place, batch, deaths)
        except Exception as error:
            return Receipt(place, portable(error))

    def _ready(self) -> Worker:
        """The worker, made when the first chunk comes: an error in its options is then answered like any other."""
        if self._worker is None:
            start = f"start {self._ray.get_runtime_context().get_actor_id()}"  # an actor that is restarted keeps its id
            if self._begin(start)[0] == STARTS:
                raise DetcamError("workers die while they start: use fewer --workers, or a smaller model")
            settings = self._settings
            if os.path.isdir(settings.folder):
                os.chdir(settings.folder)
            if settings.out is not None and Dataset(Folder(settings.out)).manifest() is None:
                raise InputError(f"{settings.out} is not visible on every machine: choose a shared folder or a URL")
            self._worker = make_worker(settings.options, settings.device, self._name(), settings.threads)
            self._end(start)
        return self._worker

    def _explained(self, worker: Worker, chunk: Chunk) -> Batch:
        """The rows of a chunk; a hang ends this process."""
        self._watchdog()
        try:
            return worker.run(chunk.items, chunk.number, chunk.places, self._watchdog)
        finally:
            self._watchdog.stop()

    def _alone(self, worker: Worker, chunk: Chunk) -> Batch:
        item, work = chunk.items[0], f"picture {chunk.places[0]}"
        deaths, has_hung = self._begin(work)
        if deaths < TRIES:
            batch = self._explained(worker, chunk)
        else:
            reason = hung(item, self._settings.timeout) if has_hung else fatal(item)
            batch = Batch.of(chunk.number, [failed(item, reason, self._name())], self._settings.options.metrics)
        self._end(work)
        return batch

    def _written(self, batch: Batch, chunk: Chunk) -> Batch:
        """The rows after writing them to `out`, without those of objects; the same rows if the driver writes them."""
        if self._settings.out is None or chunk.again:
            return batch
        size = Dataset(Folder(self._settings.out)).write(batch)
        return Batch(batch.chunk, batch.objects.slice(0, 0), batch.pictures, size)

    def _begin(self, work: str) -> tuple[int, bool]:
        """How many workers died over this work before, and whether the last of them hung, by its time."""
        deaths, seconds = self._ray.get(self._queue.begin.remote(work, monotonic() - self._started))
        return deaths, 0 < self._settings.timeout <= seconds

    def _end(self, work: str) -> None:
        self._ray.get(self._queue.end.remote(work))

    def _name(self) -> str:
        """Node and process, by which Ray's logs are found."""
        return f"{self._ray.get_runtime_context().get_node_id()[:8]}-{os.getpid()}"
