"""The Ray engine on real clusters: the same rows as one worker makes, whatever is killed."""

import asyncio
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.dataset
import pytest
from photos import OPTIONS, Endless, Given, assert_same_rows, items_of, joined, plain_work, write_photos

from detcam.batch.dataset.rows import Batch, failed
from detcam.batch.engines.local import STARTS, TRIES
from detcam.batch.engines.ray import RayEngine
from detcam.batch.engines.ray_queue import ChunkQueue
from detcam.batch.engines.ray_worker import ChunkWorker, Receipt, WorkerSettings
from detcam.batch.items import Chunk, Item
from detcam.batch.job import run
from detcam.batch.sources.open import open_source
from detcam.batch.worker import OnBatch, Options, Tick
from detcam.errors import InputError

CHUNK = 2
TABLES = ("objects", "pictures")
DRIVER = """
import sys
from detcam.batch.job import run
from detcam.batch.engines.ray import RayEngine
from detcam.batch.sources.open import open_source
from detcam.batch.worker import Options

source, out = sys.argv[1:]
run(open_source(source), out, Options(model="scenes-yolo", imgsz=160), RayEngine(workers=1, threads=1, out=out), chunk=2)
"""


def in_a_loop(work: Coroutine[Any, Any, Any]) -> Any:
    """What it returns; in a thread of its own, because a test in a browser leaves this one with a running loop."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A cluster of two cores, by its address: one that was there before the job."""
    Cluster = pytest.importorskip("ray.cluster_utils").Cluster

    head = {"num_cpus": 2, "object_store_memory": 100 << 20, "include_dashboard": False}
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_USAGE_STATS_ENABLED", "0")
        environment.setenv("RAY_worker_niceness", "0")  # or workers stand still while other tests run
        environment.setenv("PYTHONPATH", str(Path(__file__).parent))  # where workers find pictures that hang
        for left in reversed(range(STARTS)):
            try:
                cluster = Cluster(initialize_head=True, head_node_args=head)
                break
            except Exception:  # it waits for 30 seconds, which a busy machine may need
                if not left:
                    raise
        yield cluster.address
        cluster.shutdown()


@pytest.fixture
def scenes(tmp_path: Path, seed: int) -> Path:
    """Nineteen pictures, and one that is none."""
    folder = tmp_path / "scenes"
    folder.mkdir()
    write_photos(folder, seed, 19)
    (folder / "broken.jpg").write_bytes(b"no picture")
    return folder


def assert_complete(out: Path, source: Path) -> None:
    """The dataset has the rows that one worker makes here, without any engine."""
    found = [pyarrow.dataset.dataset(out / table).to_table() for table in TABLES]
    assert_same_rows((found[0], found[1]), joined(plain_work(open_source(source), CHUNK, OPTIONS)))


@pytest.mark.nightly
def test_a_worker_that_is_killed_is_replaced_and_its_pictures_are_done_again(
    cluster: str, scenes: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    ray_engine = RayEngine(workers=2, threads=1, address=cluster, out=out)
    killed: list[int] = []

    def engine(chunks: Iterable[Chunk], options: Options, on_batch: OnBatch) -> None:
        def kill_once(batch: Batch) -> None:
            assert batch.objects.num_rows == 0  # they went straight to where they belong
            assert batch.written == sum((out / t / f"part-{batch.chunk:06d}.parquet").stat().st_size for t in TABLES)
            on_batch(batch)
            if not killed:
                killed.append(int(batch.pictures["worker"][0].as_py().split("-")[1]))
                os.kill(killed[0], signal.SIGKILL)

        ray_engine(chunks, options, kill_once)

    tally = run(open_source(scenes), str(out), OPTIONS, engine, chunk=CHUNK)
    assert (tally.done, tally.errors) == (20, 1)
    assert_complete(out, scenes)
    workers = pyarrow.dataset.dataset(out / "pictures").to_table()["worker"].unique().to_pylist()
    assert len(workers) == 3, f"{workers}: two, and the one that took the place of {killed}"


@pytest.mark.nightly
def test_a_driver_that_is_killed_leaves_a_job_that_can_be_gone_on_with(
    cluster: str, scenes: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([sys.executable, "-c", DRIVER, str(scenes), str(out)], env=environment) as driver:
        while not list((out / "pictures").glob("part-*.parquet")):
            assert driver.poll() is None, "the driver ended by itself"
            time.sleep(0.01)
        workers = [p for p in psutil.Process(driver.pid).children(recursive=True) if "MapWorker" in p.name()]
        driver.kill()
    assert workers
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive, "the workers of a killed driver go on"
    engine = RayEngine(workers=2, threads=1, address=cluster, out=out)
    tally = run(open_source(scenes), str(out), OPTIONS, engine, chunk=CHUNK, resume=True)
    assert 0 < tally.before < tally.done == 20
    assert_complete(out, scenes)


@pytest.mark.nightly
def test_a_picture_that_hangs_costs_its_row_only(limit: float, cluster: str, seed: int, tmp_path: Path) -> None:
    items = items_of(write_photos(tmp_path / "in", seed, 5))
    endless: Any = Endless("endless.png")
    source, out = Given([*items[:3], endless, *items[3:]]), tmp_path / "out"
    engine = RayEngine(workers=1, threads=1, address=cluster, out=out, timeout=limit)
    tally = run(source, str(out), OPTIONS, engine, chunk=CHUNK)
    assert (tally.done, tally.errors) == (6, 1)
    assert f"deadly/endless.png took longer than {limit:g} s" in tally.first[0][1]
    objects, pictures = (pyarrow.dataset.dataset(out / table).to_table() for table in TABLES)
    sound = pictures.filter([status != "error" for status in pictures["status"].to_pylist()])
    assert_same_rows((objects, sound), joined(plain_work(Given(items), 5)))


@pytest.mark.nightly
def test_no_work_needs_no_cluster_and_no_cluster_is_told() -> None:
    nobody = RayEngine(address="127.0.0.1:1")
    nobody(iter(()), OPTIONS, lambda batch: None)
    with pytest.raises(InputError, match=r"no Ray cluster answers at '127\.0\.0\.1:1'.*refused"):
        nobody([Chunk(0, range(1), items("a"))], OPTIONS, lambda batch: None)


class Died(BaseException):
    """A process that is killed says nothing; nothing catches this either."""


class Fatal:
    """A worker that some pictures kill, and some only upset."""

    def __init__(self, deadly: set[str]) -> None:
        self.deadly, self.runs = deadly, 0

    def run(self, items: list[Item], chunk: int, places: Sequence[int], tick: Tick) -> Batch:
        self.runs += 1
        if any(item.key in self.deadly for item in items):
            raise Died
        if any(item.key == "wrong" for item in items):
            raise InputError("the options are wrong")
        return Batch.of(
            chunk, [failed(item, f"place {place}", "here") for place, item in zip(places, items, strict=True)], ()
        )


class Handle:
    """A handle of the queue's actor, without Ray."""

    def __init__(self, queue: ChunkQueue) -> None:
        self._queue = queue

    def __getattr__(self, name: str) -> Any:
        class Method:
            @staticmethod
            def remote(*values: object) -> object:
                return in_a_loop(getattr(self._queue, name)(*values))

        return Method


class Runtime:
    """Ray's runtime context."""

    get_node_id = get_actor_id = staticmethod(lambda: "here")


@pytest.fixture
def explain(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Receipt]:
    """Explains a chunk with a worker that may die, in this process; restarts it as Ray does."""
    ray = pytest.importorskip("ray")

    monkeypatch.setattr(ray, "get", lambda value: value)
    monkeypatch.setattr(ray, "get_runtime_context", Runtime)
    queue = Handle(ChunkQueue())

    def until_done(worker: Any, chunk: Chunk, place: int = 0) -> Receipt:
        table = pa.table({"place": [place], "chunk": [pickle.dumps(chunk)]})
        for _ in range(100):
            actor = ChunkWorker(WorkerSettings(OPTIONS, None, 1, ".", None), queue, worker)
            try:
                receipt: Receipt = pickle.loads(actor(table)["receipt"][0].as_py())
                return receipt
            except Died:
                continue
        raise AssertionError("the chunk is never done")

    return until_done


def items(*keys: str) -> tuple[Item, ...]:
    return tuple(Item(key, f"/{key}") for key in keys)


def test_a_chunk_that_kills_its_workers_is_done_picture_by_picture(explain: Any) -> None:
    worker = Fatal({"b"})
    receipt = explain(worker, Chunk(7, range(40, 43), items("a", "b", "c")))
    assert receipt.deaths == 2 * TRIES  # as a whole, and then by b alone
    assert worker.runs == TRIES + 2 * TRIES + 2, "a, b twice; then a and c, and b no more"
    errors = receipt.batch.pictures["error"].to_pylist()
    assert receipt.batch.chunk == 7
    assert receipt.batch.pictures["key"].to_pylist() == ["a", "b", "c"]
    assert errors[0] == "place 40"
    assert errors[2] == "place 42"
    assert f"/b: the process that explained it died {TRIES} times" in errors[1]
    again = explain(worker, Chunk(8, range(43, 45), items("d", "e")), place=1)
    assert (again.deaths, again.batch.pictures["error"].to_pylist()) == (0, ["place 43", "place 44"])


def test_errors_of_the_options_come_back_as_they_are(explain: Any) -> None:
    receipt = explain(Fatal(set()), Chunk(0, range(1), items("wrong")))
    assert isinstance(receipt.batch, InputError)
    assert "the options are wrong" in str(receipt.batch)


def test_the_queue_keeps_chunks_until_they_are_done() -> None:
    async def scenario() -> None:
        queue = ChunkQueue()
        waiting = asyncio.ensure_future(queue.take(1))
        await queue.put(b"first")
        await asyncio.sleep(0)
        assert not waiting.done()
        await queue.put(b"second")
        assert await waiting == b"second"
        assert await queue.take(0) == b"first"  # a reader that was lost begins anew
        await queue.done(0)
        await queue.finish()
        assert [await queue.take(place) for place in range(4)] == [b"", b"second", None, None]

    in_a_loop(scenario())


def test_the_queue_knows_how_long_a_worker_had_that_died(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time in which Ray restarts a worker and loads its model is not part of it."""
    clock = iter([100.0, 900.0, 950.0, 960.0])
    monkeypatch.setattr("detcam.batch.engines.ray_queue.monotonic", lambda: next(clock))

    async def scenario() -> None:
        queue = ChunkQueue()
        assert await queue.begin("chunk 0", age=50) == (0, 0)
        assert await queue.begin("chunk 0", age=190) == (1, 610)
        assert await queue.begin("chunk 0", age=45) == (2, 5)
        await queue.end("chunk 0")
        assert await queue.begin("chunk 0", age=55) == (0, 0)

    in_a_loop(scenario())
