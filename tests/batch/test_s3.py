"""An object store for real: pictures out of a local S3 server, and the dataset into it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pyarrow as pa
import pyarrow.dataset
import pytest
from photos import OPTIONS, joined, plain_work, write_photos

from detcam.batch import load
from detcam.batch.dataset.rows import Batch
from detcam.batch.engines.ray import RayEngine
from detcam.batch.items import Chunk, Item, chunks
from detcam.batch.job import run
from detcam.batch.sources import read as reading
from detcam.batch.sources.open import open_source
from detcam.batch.sources.read import read_bytes
from detcam.batch.worker import OnBatch, Options, Worker
from detcam.errors import ImageError, InputError

pytestmark = pytest.mark.nightly

CHUNK = 2
TABLES = ("objects", "pictures")


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A file system of a new server, which every S3 client of this process then talks to; with a bucket `store`."""
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    for proxy in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(proxy, raising=False)
    s3fs.S3FileSystem.clear_instance_cache()
    system = s3fs.S3FileSystem()
    system.mkdir("store")
    yield system
    s3fs.S3FileSystem.clear_instance_cache()
    urlopen(Request(f"http://{host}:{port}/moto-api/reset", method="POST")).close()  # its buckets outlive it
    server.stop()


@pytest.fixture
def scenes(tmp_path: Path, seed: int) -> Path:
    """Seven pictures, four here and three in the folder `more`, and one that is none."""
    folder = tmp_path / "scenes"
    folder.mkdir()
    write_photos(folder, seed, 7)
    (folder / "broken.jpg").write_bytes(b"no picture")
    return folder


class Here:
    """An engine without processes, which may be stopped after some chunks."""

    workers = threads = 1

    def __init__(self, most: int | None = None) -> None:
        self._most = most

    def __call__(self, chunks: Any, options: Options, on_batch: OnBatch) -> None:
        worker = Worker(options, "cpu")
        for done, chunk in enumerate(chunks):
            if done == self._most:
                raise KeyboardInterrupt
            on_batch(worker.run(chunk.items, chunk.number, chunk.places))


def rows(table: pa.Table, *without: str) -> pa.Table:
    return table.drop_columns([name for name in ("seconds", "worker", *without) if name in table.schema.names])


def test_pictures_from_s3_are_those_on_disk(s3: Any, scenes: Path) -> None:
    s3.put(str(scenes), "store/scenes", recursive=True)
    here, there = open_source(scenes), open_source("s3://store/scenes")
    assert there.fingerprint() == here.fingerprint()
    assert [read_bytes(item) for item in there.items()] == [read_bytes(item) for item in here.items()]
    found = [item.key for item in open_source("s3://store/scenes/**/photo_00[0-3].png").items()]
    assert found == ["more/photo_001.png", "more/photo_003.png", "photo_000.png", "photo_002.png"]
    with pytest.raises(InputError, match="s3://store/nothing does not exist"):
        open_source("s3://store/nothing")
    with pytest.raises(InputError, match="s3://none"):
        open_source("s3://none/photos")


def test_tar_and_parquet_in_s3_are_read_by_their_parts(s3: Any, scenes: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq
    import webdataset

    data = {path.stem: path.read_bytes() for path in sorted(scenes.rglob("*.png"))}
    for shard in range(2):
        with webdataset.TarWriter(str(tmp_path / f"s-{shard}.tar")) as writer:
            for key in list(data)[shard::2]:
                writer.write({"__key__": key, "png": data[key], "json": {}})
    pq.write_table(pa.table({"id": list(data), "image": list(data.values())}), tmp_path / "p.parquet")
    for name in ("s-0.tar", "s-1.tar", "p.parquet"):
        s3.put(str(tmp_path / name), f"store/{name}")
    for source in (open_source("s3://store/s-{0..1}.tar"), open_source("s3://store/p.parquet", key="id")):
        items = list(source.items())
        assert {item.key: read_bytes(item) for item in items} == data
        assert {item.key: read_bytes(Item(item.key, item.uri)) for item in items} == data  # by its uri alone


def test_a_job_from_s3_to_s3_is_stopped_gone_on_with_and_read_by_others(s3: Any, scenes: Path, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")

    s3.put(str(scenes), "store/scenes", recursive=True)
    source = open_source("s3://store/scenes")
    with pytest.raises(KeyboardInterrupt):
        run(source, "s3://store/heat", OPTIONS, Here(most=2), chunk=CHUNK)
    assert len(s3.ls("store/heat/pictures")) == 2
    with pytest.raises(InputError, match="--resume"):
        run(source, "s3://store/heat", OPTIONS, Here(), chunk=CHUNK)
    with pytest.raises(InputError, match="conf"):
        run(source, "s3://store/heat", OPTIONS.model_copy(update={"conf": 0.5}), Here(), chunk=CHUNK, resume=True)
    tally = run(source, "s3://store/heat", OPTIONS, Here(), chunk=CHUNK, resume=True)
    assert (tally.before, tally.done, tally.errors) == (4, 8, 1)
    run(open_source(scenes), str(tmp_path / "heat"), OPTIONS, Here(), chunk=CHUNK)
    for name in ("objects", "pictures"):
        here = pyarrow.dataset.dataset(tmp_path / "heat" / name).to_table()
        there = pyarrow.dataset.dataset(f"store/heat/{name}", filesystem=s3).to_table()
        assert rows(there, "uri", "error").equals(rows(here, "uri", "error"))
        assert all(uri.startswith("s3://store/scenes/") for uri in there["uri"].to_pylist())
        frame = pandas.read_parquet(f"s3://store/heat/{name}")
        assert len(frame) == len(here)
        assert list(frame["key"]) == here["key"].to_pylist()
    loaded, local = load("s3://store/heat"), load(tmp_path / "heat")
    assert len(loaded) == len(local)


def test_what_failed_is_done_again_in_s3(s3: Any, scenes: Path) -> None:
    s3.put(str(scenes), "store/scenes", recursive=True)
    run(open_source("s3://store/scenes"), "s3://store/heat", OPTIONS, Here(), chunk=CHUNK)
    s3.pipe_file("store/scenes/broken.jpg", (scenes / "photo_000.png").read_bytes())
    s3.pipe_file("store/heat/objects/part-000000_1.parquet", b"left by a job that was killed")
    source = open_source("s3://store/scenes")
    tally = run(source, "s3://store/heat", OPTIONS, Here(), resume=True, retry_errors=True)
    assert (tally.before, tally.done, tally.errors) == (7, 8, 0)
    loaded = load("s3://store/heat")
    assert [e.key for e in loaded] == [item.key for item in source.items()]
    assert loaded["broken.jpg"].labels == loaded["photo_000.png"].labels
    objects = pyarrow.dataset.dataset("store/heat/objects", filesystem=s3).to_table()
    assert sorted(objects["key"].to_pylist()) == sorted(e.key for e in loaded for _ in range(len(e)))
    assert len(set(zip(objects["key"].to_pylist(), objects["object"].to_pylist(), strict=True))) == len(objects)


def test_a_picture_costs_one_request(s3: Any, scenes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what the server was sent; and one that is too large is refused before it is read."""
    s3.put(str(scenes), "store/scenes", recursive=True)
    s3.pipe_file("store/empty.png", b"")
    sent: list[tuple[str, str]] = []
    s3.s3.meta.events.register("before-send.s3", lambda request, **_: sent.append((request.method, request.url)))
    source = open_source("s3://store/scenes")
    listing = len(sent)
    items = list(source.items())
    data = {item.key: read_bytes(item) for item in items}
    assert [method for method, _ in sent[listing:]] == ["GET"] * len(items) == ["GET"] * 8
    del sent[:]
    Worker(OPTIONS, "cpu").run(items)
    assert len(sent) == 8
    assert read_bytes(Item("empty", "s3://store/empty.png")) == b""

    largest = max(map(len, data.values()))
    monkeypatch.setattr(reading, "AT_ONCE", 1000)
    monkeypatch.setattr(reading, "MAX_BYTES", largest - 1)
    for item in items:
        s3.invalidate_cache()  # it knows sizes from the listing, as a worker in a process of its own does not
        del sent[:]
        if len(data[item.key]) == largest:
            with pytest.raises(ImageError, match=f"longer than {largest - 1:,} bytes"):
                read_bytes(item)
            assert [method for method, _ in sent] == ["GET", "HEAD"], "its beginning, and its size"
        else:
            assert read_bytes(item) == data[item.key]
    with pytest.raises(ImageError, match="longer than"):
        read_bytes(Item("part", f"s3://store/s.tar#bytes=512+{largest}"))


def test_ray_from_s3_to_s3(s3: Any, scenes: Path, tmp_path: Path) -> None:
    """Workers in processes of their own read pictures from the store and write shards into it."""
    import ray

    s3.put(str(scenes), "store/scenes", recursive=True)
    source = open_source("s3://store/scenes")
    engine = RayEngine(workers=1, threads=1, out="s3://store/heat", timeout=0)
    written: list[int | None] = []

    def stopped(chunks: Any, options: Options, on_batch: OnBatch) -> None:
        def keep(batch: Batch) -> None:
            written.append(batch.written)
            on_batch(batch)
            if len(written) == 2:
                raise KeyboardInterrupt

        engine(chunks, options, keep)

    ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)  # once for both runs
    try:
        with pytest.raises(KeyboardInterrupt):
            run(source, "s3://store/heat", OPTIONS, stopped, chunk=CHUNK)
        assert all(written), "the worker wrote them"
        s3.pipe_file("store/scenes/broken.jpg", (scenes / "photo_000.png").read_bytes())
        tally = run(source, "s3://store/heat", OPTIONS, engine, resume=True, retry_errors=True)
    finally:
        ray.shutdown()
    assert (tally.done, tally.errors) == (8, 0)
    objects, pictures = (pyarrow.dataset.dataset(f"store/heat/{t}", filesystem=s3).to_table() for t in TABLES)
    (scenes / "broken.jpg").write_bytes((scenes / "photo_000.png").read_bytes())
    wanted, _ = joined(plain_work(open_source(scenes), CHUNK))
    place = {item.key: i for i, item in enumerate(source.items())}
    assert pictures["key"].to_pylist() == list(place)
    order = sorted(objects.to_pylist(), key=lambda row: (place[row["key"]], row["object"]))
    assert [(r["key"], r["object"], r["label"]) for r in order] == [
        (r["key"], r["object"], r["label"]) for r in wanted.to_pylist()
    ]
    assert all(uri.startswith("s3://store/scenes/") for uri in objects["uri"].to_pylist())


def test_duckdb_reads_what_a_job_wrote_to_s3(s3: Any, scenes: Path) -> None:
    duckdb = pytest.importorskip("duckdb")

    s3.put(str(scenes / "more"), "store/more", recursive=True)
    run(open_source("s3://store/more"), "s3://store/heat", OPTIONS, Here(), chunk=CHUNK)
    with duckdb.connect() as database:
        database.register_filesystem(s3)
        found = database.sql("select key, count(*) from read_parquet('s3://store/heat/objects/*.parquet') group by key")
        counts = dict(found.fetchall())
        pictures = database.sql(
            "select key, objects from read_parquet('s3://store/heat/pictures/*.parquet')"
        ).fetchall()
    assert {key: counts.get(key, 0) for key, _ in pictures} == dict(pictures)
    assert sorted(key for key, _ in pictures) == ["photo_001.png", "photo_003.png", "photo_005.png"]


def test_chunks_of_a_store_are_those_of_the_folder(s3: Any, scenes: Path) -> None:
    s3.put(str(scenes), "store/scenes", recursive=True)

    def keys(source: str | Path) -> list[tuple[int, int, list[str]]]:
        found: Iterator[Chunk] = chunks(open_source(source), 3, frozenset({1}))
        return [(chunk.number, list(chunk.places), [item.key for item in chunk.items]) for chunk in found]

    assert keys("s3://store/scenes") == keys(scenes)
