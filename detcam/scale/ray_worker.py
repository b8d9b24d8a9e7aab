"""What runs inside a Ray cluster: a desk that hands out chunks, and the workers that explain them."""

from __future__ import annotations

import asyncio
import os
import pickle
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from detcam.errors import DetcamError, InputError
from detcam.scale.dataset import Dataset
from detcam.scale.items import Chunk, Item
from detcam.scale.local_engine import STARTS, TRIES
from detcam.scale.local_worker import make_worker, portable
from detcam.scale.rows import Batch, failed
from detcam.scale.storage import Folder

if TYPE_CHECKING:
    import pyarrow as pa

    from detcam.scale.work import Options, Worker


class Desk:
    """Holds the chunks that are under way, and knows what was begun and not ended: that died with its worker.

    A Ray actor, one for each run. Chunks have places 0, 1, 2, ... in the order in which they are put here; what is
    asked for again, because the process that had it was lost, is still here unless it is done.
    """

    def __init__(self) -> None:
        self._chunks: dict[int, bytes] = {}
        self._put, self._finished = 0, False
        self._changed = asyncio.Condition()
        self._open: Counter[str] = Counter()

    async def put(self, chunk: bytes) -> None:
        """The next chunk."""
        async with self._changed:
            self._chunks[self._put] = chunk
            self._put += 1
            self._changed.notify_all()

    async def finish(self) -> None:
        """There are no more."""
        async with self._changed:
            self._finished = True
            self._changed.notify_all()

    async def take(self, place: int) -> bytes | None:
        """The chunk at a place, once it is there; b"" if it is done already, None if there are no more."""
        async with self._changed:
            await self._changed.wait_for(lambda: place < self._put or self._finished)
        return self._chunks.get(place, b"") if place < self._put else None

    async def done(self, place: int) -> None:
        """The rows of a chunk are kept."""
        self._chunks.pop(place, None)

    async def begin(self, what: str) -> int:
        """Say that something begins; how often it was begun before and never ended."""
        self._open[what] += 1
        return self._open[what] - 1

    async def end(self, what: str) -> None:
        """Say that it ended."""
        del self._open[what]


@dataclass(frozen=True)
class Receipt:
    """What a worker sends to the driver.

    Attributes:
        place: of the chunk at the desk.
        batch: its rows, without those of objects if the worker kept them itself; or what is wrong.
        deaths: workers that it killed.
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
    """

    options: Options
    device: str | None
    threads: int
    folder: str
    out: str | None


class Explaining:
    """Explains chunks, in the table that the desk's are read into: the callable class of Ray Data's actor pool."""

    def __init__(self, setting: Setting, desk: Any) -> None:
        self._setting, self._desk = setting, desk
        self._worker: Worker | None = None

    def __call__(self, table: pa.Table) -> pa.Table:
        """A receipt for each chunk."""
        rows = zip(table["place"].to_pylist(), table["chunk"].to_pylist(), strict=True)
        receipts = [pickle.dumps(self._receipt(place, chunk)) for place, chunk in rows if chunk]
        return type(table).from_pydict({"receipt": receipts})

    def _receipt(self, place: int, packed: bytes) -> Receipt:
        try:
            chunk: Chunk = pickle.loads(packed)
            deaths = self._begin(f"chunk {place}")
            batch = self._kept(self._explained(self._ready(), chunk, deaths))
            self._end(f"chunk {place}")
            return Receipt(place, batch, deaths)
        except Exception as error:
            return Receipt(place, portable(error))

    def _ready(self) -> Worker:
        """The worker, made when the first chunk comes: what is wrong with its options is then told like the rest."""
        if self._worker is None:
            start = f"start {_runtime().get_actor_id()}"  # an actor that is started again keeps its id
            if self._begin(start) == STARTS:
                raise DetcamError("workers die while they start: use fewer --workers, or a smaller model")
            if os.path.isdir(self._setting.folder):
                os.chdir(self._setting.folder)
            if self._setting.out is not None and Dataset(Folder(self._setting.out)).manifest() is None:
                raise InputError(f"{self._setting.out} is not seen by all machines: choose a shared folder or a URL")
            setting = self._setting
            self._worker = make_worker(setting.options, setting.device, _name(), setting.threads)
            self._end(start)
        return self._worker

    def _explained(self, worker: Worker, chunk: Chunk, deaths: int) -> Batch:
        if deaths < TRIES:
            return worker.run(chunk.items, chunk.number, chunk.start)
        places = enumerate(chunk.items, chunk.start)
        return Batch.joined([self._alone(worker, item, chunk.number, place) for place, item in places])

    def _alone(self, worker: Worker, item: Item, chunk: int, place: int) -> Batch:
        """One picture of a chunk that killed its workers."""
        if self._begin(f"picture {place}") >= TRIES:
            reason = f"{item.uri}: the process that explained it died {TRIES} times: look at it by itself"
            batch = Batch.of(chunk, [failed(item, reason, _name())], self._setting.options.metrics)
        else:
            batch = worker.run([item], chunk, place)
        self._end(f"picture {place}")
        return batch

    def _kept(self, batch: Batch) -> Batch:
        """The rows, written where they belong; those of objects are then left out of what travels to the driver."""
        if self._setting.out is None:
            return batch
        written = Dataset(Folder(self._setting.out)).write(batch)
        return Batch(batch.chunk, batch.objects.slice(0, 0), batch.pictures, written)

    def _begin(self, what: str) -> int:
        import ray

        before: int = ray.get(self._desk.begin.remote(what))
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
