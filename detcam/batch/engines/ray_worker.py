"""What explains pictures inside a Ray cluster."""

from __future__ import annotations

import os
import pickle
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from detcam.batch.dataset.dataset import Dataset
from detcam.batch.dataset.folder import Folder
from detcam.batch.dataset.rows import Batch, failed
from detcam.batch.engines.local import STARTS, TRIES, fatal, hung
from detcam.batch.engines.local_worker import make_worker, portable
from detcam.batch.engines.ray_queue import Signs
from detcam.batch.items import Chunk
from detcam.errors import DetcamError, InputError

if TYPE_CHECKING:
    import pyarrow as pa

    from detcam.batch.worker import Options, Worker


@dataclass(frozen=True)
class Receipt:
    """What a worker sends to the driver.

    Attributes:
        place: of the chunk at the desk.
        batch: its rows, without those of objects if the worker kept them itself; or what is wrong.
        deaths: workers that it killed or held up.
    """

    place: int
    batch: Batch | Exception
    deaths: int = 0


@dataclass(frozen=True)
class Setting:
    """What every worker is told.

    Attributes:
        options: what to explain, and how.
        device: where; None: where the model is loaded.
        threads: on the CPU.
        folder: where the driver runs, so that relative paths mean the same here.
        out: the folder of the dataset, if workers keep their rows themselves.
        timeout: seconds for a picture, see `Engine`; 0: no limit.
    """

    options: Options
    device: str | None
    threads: int
    folder: str
    out: str | None
    timeout: float = 0.0


class Explaining:
    """Explains chunks, in the table that the desk's are read into: the callable class of Ray Data's actor pool."""

    def __init__(self, setting: Setting, desk: Any) -> None:
        self._setting, self._desk = setting, desk
        self._worker: Worker | None = None
        self._signs: Signs | None = None

    def __call__(self, table: pa.Table) -> pa.Table:
        """A receipt for each chunk."""
        rows = zip(table["place"].to_pylist(), table["chunk"].to_pylist(), strict=True)
        receipts = [pickle.dumps(self._receipt(place, chunk)) for place, chunk in rows if chunk]
        return type(table).from_pydict({"receipt": receipts})

    def _receipt(self, place: int, packed: bytes) -> Receipt:
        try:
            chunk: Chunk = pickle.loads(packed)
            deaths, late = self._begin(f"chunk {place}")
            if deaths < TRIES and not late:
                batch = self._explained(self._ready(), chunk, f"chunk {place}")
            else:
                batch = self._one_by_one(self._ready(), chunk)
            batch = self._kept(batch, chunk)
            self._end(f"chunk {place}")
            return Receipt(place, batch, deaths)
        except Exception as error:
            return Receipt(place, portable(error))

    def _ready(self) -> Worker:
        """The worker, made when the first chunk comes: what is wrong with its options is then told like the rest."""
        if self._worker is None:
            start = f"start {_runtime().get_actor_id()}"  # an actor that is started again keeps its id
            if self._begin(start)[0] == STARTS:
                raise DetcamError("workers die while they start: use fewer --workers, or a smaller model")
            if os.path.isdir(self._setting.folder):
                os.chdir(self._setting.folder)
            if self._setting.out is not None and Dataset(Folder(self._setting.out)).manifest() is None:
                raise InputError(f"{self._setting.out} is not seen by all machines: choose a shared folder or a URL")
            setting = self._setting
            self._worker = make_worker(setting.options, setting.device, _name(), setting.threads)
            if setting.timeout:
                runtime = _runtime()
                self._signs = Signs(self._desk, runtime.get_actor_id(), runtime.current_actor, setting.timeout)
            self._end(start)
        return self._worker

    def _explained(self, worker: Worker, chunk: Chunk, what: str) -> Batch:
        """The rows of a chunk; the desk watches that it goes on."""
        if self._signs is None:
            return worker.run(chunk.items, chunk.number, chunk.places)
        self._signs.watch(what)
        try:
            return worker.run(chunk.items, chunk.number, chunk.places, self._signs.pulse)
        finally:
            self._signs.rest()

    def _one_by_one(self, worker: Worker, chunk: Chunk) -> Batch:
        """The rows of a chunk that killed or held up its workers."""
        places = zip(chunk.places, chunk.items, strict=True)
        return Batch.joined([self._alone(worker, replace(chunk, places=(p,), items=(item,))) for p, item in places])

    def _alone(self, worker: Worker, chunk: Chunk) -> Batch:
        item, what = chunk.items[0], f"picture {chunk.places[0]}"
        tried, late = self._begin(what)
        if tried < TRIES:
            batch = self._explained(worker, chunk, what)
        else:
            reason = hung(item, f"longer than {self._setting.timeout:g} s") if late else fatal(item)
            batch = Batch.of(chunk.number, [failed(item, reason, _name())], self._setting.options.metrics)
        self._end(what)
        return batch

    def _kept(self, batch: Batch, chunk: Chunk) -> Batch:
        """The rows, written where they belong; those of objects are then left out of what travels to the driver."""
        if self._setting.out is None or chunk.again:
            return batch
        written = Dataset(Folder(self._setting.out)).write(batch)
        return Batch(batch.chunk, batch.objects.slice(0, 0), batch.pictures, written)

    def _begin(self, what: str) -> tuple[int, bool]:
        import ray

        before: tuple[int, bool] = ray.get(self._desk.begin.remote(what))
        return before

    def _end(self, what: str) -> None:
        import ray

        ray.get(self._desk.end.remote(what))


def _runtime() -> Any:
    import ray

    return ray.get_runtime_context()


def _name() -> str:
    """Machine and process, by which Ray's logs are found."""
    return f"{_runtime().get_node_id()[:8]}-{os.getpid()}"
