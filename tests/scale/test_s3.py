"""An object store for real: pictures out of a local S3 server, and the dataset into it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pyarrow as pa
import pyarrow.dataset
import pytest
from photos import OPTIONS, write_photos

from detcam import scale
from detcam.errors import InputError
from detcam.scale.items import Chunk, Item, chunks
from detcam.scale.job import run
from detcam.scale.reading import read_bytes
from detcam.scale.sources import open_source
from detcam.scale.work import OnBatch, Options, Worker

CHUNK = 2


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
            on_batch(worker.run(chunk.items, chunk.number, chunk.start))


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
    import pandas

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
    loaded, local = scale.load("s3://store/heat"), scale.load(tmp_path / "heat")
    assert len(loaded) == len(local)


def test_duckdb_reads_what_a_job_wrote_to_s3(s3: Any, scenes: Path) -> None:
    import duckdb

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
        return [(chunk.number, chunk.start, [item.key for item in chunk.items]) for chunk in found]

    assert keys("s3://store/scenes") == keys(scenes)
