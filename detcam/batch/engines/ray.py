"""Ray engine: Ray Data streams chunks through a pool of actors, one for each GPU or for some cores."""

from __future__ import annotations

import logging
import os
import pickle
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any

from detcam.batch.engines.local import STARTS, cores
from detcam.batch.engines.ray_queue import ChunkQueue
from detcam.batch.engines.ray_worker import ChunkWorker, Receipt, WorkerSettings
from detcam.batch.items import Chunk
from detcam.batch.sources.storage import is_url
from detcam.batch.worker import TIMEOUT, OnBatch, Options
from detcam.errors import DependencyError, DetcamError, InputError

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)

QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
AHEAD = 3  # chunks under way for each worker: the one it works on, and two that wait


class RayEngine:
    """Runs chunks on a Ray cluster; see `detcam.batch.worker.Engine`.

    If `out` is given, workers read images and write rows themselves: the driver sends the keys of images and gets small
    receipts. Ray restarts a worker that dies, which then does its chunk again.

    Args:
        workers: number of actors; None: one for each GPU of the cluster, or without a GPU one for each core.
        threads: threads of each worker on the CPU, and the cores that Ray reserves for it; None: the cores shared out
            among the workers.
        device: "cpu" leaves GPUs unused; Ray chooses which GPU a worker gets.
        address: address of a running cluster, as `ray.init` takes it; None: RAY_ADDRESS, or a cluster of this machine,
            which is started and ended here. A connection that the caller made is used and left open.
        out: folder of the dataset, where workers write; None: whole rows go to `on_batch`.
        timeout: seconds for an image, see `Engine`; 0: no limit.
    """

    def __init__(
        self,
        workers: int | None = None,
        threads: int | None = None,
        device: str | None = None,
        address: str | None = None,
        out: str | os.PathLike[str] | None = None,
        timeout: float = TIMEOUT,
    ) -> None:
        self._asked_workers, self._asked_threads, self._device = workers, threads, device
        self._timeout = timeout
        self._address = address or os.environ.get("RAY_ADDRESS") or "local"
        place = None if out is None else os.fspath(out)
        self._out = place if place is None or is_url(place) else os.path.abspath(place)  # workers have other folders

    def __call__(self, chunks: Iterable[Chunk], options: Options, on_batch: OnBatch) -> None:
        """See `Engine`; an InputError if no cluster answers or it is too small, a DependencyError without Ray."""
        chunks = iter(chunks)
        first = list(islice(chunks, 1))
        if not first:
            return
        with self._connected():
            workers, threads, gpus = self._shares(_ray().cluster_resources())
            device = self._device if not gpus else "cuda"
            settings = WorkerSettings(options, device, threads, os.getcwd(), self._out, self._timeout)
            run = _Run(settings, workers, gpus, on_batch)
            try:
                run.feed([*first, *islice(chunks, AHEAD * workers - 1)])
                for receipt in run.receipts():
                    run.take(receipt)
                    run.feed(islice(chunks, 1))
            finally:
                run.end()
        if run.open:
            raise DetcamError(f"Ray lost {len(run.open)} chunks: go on with --resume")

    @contextmanager
    def _connected(self) -> Iterator[None]:
        ray = _ray()
        if ray.is_initialized():
            yield
            return
        if self._address == "local":
            self._start(ray)
        else:
            self._connect(ray)
        try:
            yield
        finally:
            ray.shutdown()

    def _start(self, ray: Any) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report to its makers
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        here = max(cores(), (self._asked_workers or 1) * (self._asked_threads or 1))
        for left in reversed(range(STARTS)):  # Ray gives up after 30 seconds, which a busy machine may need
            try:
                ray.init("local", num_cpus=here, include_dashboard=False, **QUIET)
                return
            except Exception as error:
                ray.shutdown()
                if not left:
                    raise DetcamError(f"Ray does not start on this machine ({error}): try --engine local") from error

    def _connect(self, ray: Any) -> None:
        try:
            _knock(self._address)
            ray.init(self._address, **QUIET)
        except (OSError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"no Ray cluster answers at {self._address!r} ({reason}): try `ray status`") from None

    def _shares(self, resources: dict[str, float]) -> tuple[int, int, int]:
        """The number of workers, and the cores and GPUs of each, on a cluster with these resources."""
        cpus, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
        gpus = gpus if self._device is None or self._device.startswith("cuda") else 0
        workers = self._asked_workers or gpus or cpus // (self._asked_threads or 1)
        threads = self._asked_threads or max(cpus // max(workers, 1), 1)
        if not workers or threads > cpus or (gpus and workers > gpus):
            raise InputError(
                f"the cluster has {cpus} cores and {gpus} GPUs, too few for {workers} workers of {threads} cores: "
                "give fewer --workers or --threads"
            )
        return workers, threads, int(bool(gpus))


def _knock(address: str) -> None:
    """Raise OSError at once if nobody listens at HOST:PORT: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if port.isdigit() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


class _Run:
    """One run: chunks go through the queue and Ray Data to workers, and receipts come back."""

    def __init__(self, settings: WorkerSettings, workers: int, gpus: int, on_batch: OnBatch) -> None:
        ray = _ray()
        self.open: dict[int, Chunk] = {}
        self._on_batch, self._count = on_batch, 0
        self._queue = ray.remote(ChunkQueue).options(num_cpus=0).remote()
        read = ray.data.read_datasource(_datasource(self._queue), num_cpus=0, override_num_blocks=1)
        read.context.enable_progress_bars = False
        read.context.target_max_block_size = 1  # a block for each chunk, so chunks are distributed one by one
        self._receipts = read.map_batches(
            ChunkWorker,
            fn_constructor_args=(settings, self._queue),
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=2),
            num_cpus=settings.threads,
            num_gpus=gpus,
        )  # Ray Data restarts an actor that died and repeats its task, without end: the queue counts deaths

    def feed(self, chunks: Iterable[Chunk]) -> None:
        """Put chunks into the queue; no chunks: the queue is finished."""
        chunks = list(chunks)
        for chunk in chunks:
            self.open[self._count] = chunk
            self._count += 1
            _ray().get(self._queue.put.remote(pickle.dumps(chunk)))
        if not chunks:
            _ray().get(self._queue.finish.remote())

    def receipts(self) -> Iterator[Receipt]:
        """The answers of workers, as they come."""
        for table in self._receipts.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            yield from map(pickle.loads, table["receipt"].to_pylist())

    def take(self, receipt: Receipt) -> None:
        """Hand on the rows of a chunk that is done."""
        chunk = self.open.pop(receipt.place, None)
        if chunk is None:
            return  # the answer came twice: a node was lost on the way
        if isinstance(receipt.batch, Exception):
            raise receipt.batch
        if receipt.deaths:
            log.warning(
                "chunk %d, images %s to %s: %d workers died or hung, then it was explained",
                chunk.number, chunk.items[0].key, chunk.items[-1].key, receipt.deaths,
            )  # fmt: skip
        self._queue.done.remote(receipt.place)
        self._on_batch(receipt.batch)

    def end(self) -> None:
        """Stop the queue, and with it all work."""
        _ray().kill(self._queue)


def _datasource(queue: Any) -> Any:
    """Ray Data's view of the queue: one task that reads chunk after chunk, each as a block of one row."""
    from ray.data.block import BlockMetadata
    from ray.data.datasource import Datasource, ReadTask

    class Chunks(Datasource):
        def estimate_inmemory_data_size(self) -> None:
            return None

        def get_read_tasks(self, parallelism: int, *args: Any, **options: Any) -> list[ReadTask]:
            size = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
            return [ReadTask(lambda: _blocks(queue), size)]

    return Chunks()


def _blocks(queue: Any) -> Iterator[pa.Table]:
    import pyarrow as pa
    import ray

    place = 0
    while (chunk := ray.get(queue.take.remote(place))) is not None:
        yield pa.table({"place": [place], "chunk": pa.array([chunk], pa.large_binary())})
        place += 1


def _ray() -> Any:
    """The modules `ray` and `ray.data`; they log errors only; a DependencyError if Ray is not installed."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise DependencyError(f'--engine ray needs Ray ({error}): pip install "detcam[ray]"') from None
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    return ray
