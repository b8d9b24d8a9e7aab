"""Pictures that failed, done again: their rows replace their errors, whenever the job is killed."""

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.dataset
import pytest
from photos import OPTIONS, Given, assert_same_rows, items_of, joined, plain_work, write_photos

from detcam.batch import load
from detcam.batch.dataset.dataset import Dataset
from detcam.batch.dataset.folder import Folder
from detcam.batch.engines.local import LocalEngine, fork_context
from detcam.batch.items import Item
from detcam.batch.job import run
from detcam.batch.worker import Options, Worker
from detcam.errors import InputError

CHUNK = 4
PLACES = (1, 2, 5)  # of the pictures that fail: two of the first chunk, and one of the next


class Here:
    """An engine without processes, which remembers what it did."""

    def __init__(self) -> None:
        self.did: list[str] = []

    def __call__(self, chunks: Any, options: Options, on_batch: Any) -> None:
        worker = Worker(options)
        for chunk in chunks:
            self.did.extend(item.key for item in chunk.items)
            on_batch(worker.run(chunk.items, chunk.number, chunk.places))


@pytest.fixture
def items(seed: int, tmp_path: Path) -> list[Item]:
    """Seven pictures; those of `PLACES` are put away."""
    items = items_of(write_photos(tmp_path / "in", seed, 7))
    for place in PLACES:
        shutil.move(items[place].uri, items[place].uri + ".away")
    return items


def bring_back(items: list[Item], *places: int) -> None:
    for place in places:
        shutil.move(items[place].uri + ".away", items[place].uri)


def raw(out: Path, items: list[Item]) -> tuple[pa.Table, pa.Table]:
    """All rows that any reader of the folders sees, in the order of the pictures."""
    objects, pictures = (pyarrow.dataset.dataset(out / table).to_table() for table in ("objects", "pictures"))
    place = {item.key: i for i, item in enumerate(items)}
    pairs = [(place[row["key"]], row["object"]) for row in objects.select(["key", "object"]).to_pylist()]
    order = sorted(range(len(pairs)), key=pairs.__getitem__)
    assert len(set(pairs)) == len(pairs), "an object is doubled"
    assert pictures["key"].to_pylist() == [item.key for item in items], "a picture is lost or doubled"
    return objects.take(order), pictures


@pytest.mark.nightly
def test_only_what_failed_is_done_again(items: list[Item], tmp_path: Path) -> None:
    source, out = Given(items), tmp_path / "out"
    assert run(source, str(out), OPTIONS, Here(), chunk=CHUNK).errors == 3
    bring_back(items, 2, 5)
    plain, engine = Here(), Here()
    assert run(source, str(out), OPTIONS, plain, resume=True).errors == 3
    assert plain.did == []
    tally = run(source, str(out), OPTIONS, engine, resume=True, retry_errors=True, max_errors=1)
    assert engine.did == [items[place].key for place in PLACES]
    assert (tally.total, tally.before, tally.done, tally.errors) == (7, 4, 7, 1)
    assert list(load(out).errors) == [items[1].key]
    bring_back(items, 1)
    run(source, str(out), OPTIONS, LocalEngine(1, threads=1), resume=True, retry_errors=True)
    assert_same_rows(raw(out, items), joined(plain_work(source, CHUNK)))
    loaded = load(out)
    assert loaded.keys == [item.key for item in items]
    assert [len(e) for e in loaded] == pyarrow.dataset.dataset(out / "pictures").to_table()["objects"].to_pylist()
    last = Here()
    assert run(source, str(out), OPTIONS, last, resume=True, retry_errors=True).done == 7
    assert last.did == []
    with pytest.raises(InputError, match="add --resume"):
        run(source, str(out), OPTIONS, last, retry_errors=True)


@pytest.mark.nightly
def test_every_reader_sees_the_rows_that_were_added(
    items: list[Item], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    duckdb = pytest.importorskip("duckdb")
    pandas = pytest.importorskip("pandas")
    polars = pytest.importorskip("polars")

    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")

    source, out = Given(items), tmp_path / "out"
    run(source, str(out), OPTIONS, Here(), chunk=CHUNK)
    bring_back(items, *PLACES)
    run(source, str(out), OPTIONS, Here(), resume=True, retry_errors=True)
    for name, table in zip(("objects", "pictures"), raw(out, items), strict=True):
        glob, keys = str(out / name / "*.parquet"), sorted(table["key"].to_pylist())
        assert sorted(pandas.read_parquet(out / name)["key"]) == keys
        assert sorted(polars.read_parquet(glob)["key"]) == keys
        assert sorted(key for (key,) in duckdb.sql(f"select key from '{glob}'").fetchall()) == keys
        found = datasets.load_dataset("parquet", data_files=glob, split="train", cache_dir=str(tmp_path / "cache"))
        assert sorted(found["key"]) == keys


def retry_and_die(items: list[Item], out: str, step: int) -> None:
    """What a job does that is killed before it writes its file number `step`, or after the last one."""
    write, writes = Folder.write, iter(range(99))

    def deadly(folder: Folder, name: str, data: bytes) -> None:
        if next(writes) == step:
            os.kill(os.getpid(), signal.SIGKILL)
        write(folder, name, data)

    Folder.write = deadly  # type: ignore[method-assign]
    run(Given(items), out, OPTIONS, Here(), resume=True, retry_errors=True)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("step", "at_once"),
    [
        pytest.param(0, True, marks=pytest.mark.nightly),
        (1, False),
        pytest.param(1, True, marks=pytest.mark.nightly),
        pytest.param(2, True, marks=pytest.mark.nightly),
        pytest.param(4, False, marks=pytest.mark.nightly),
    ],
)
def test_a_job_that_is_killed_at_any_step(step: int, at_once: bool, items: list[Item], tmp_path: Path) -> None:
    """Its files, in this order: objects and pictures of the first chunk, then those of the second.

    It is resumed by trying again at once, or first without that.
    """
    source, out = Given(items), tmp_path / "out"
    run(source, str(out), OPTIONS, Here(), chunk=CHUNK)
    bring_back(items, *PLACES)
    process = fork_context().Process(target=retry_and_die, args=(items, str(out), step))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    objects, pictures = raw(out, items)
    failed = [items[place].key for place in (PLACES, PLACES, PLACES[2:], PLACES[2:], ())[step]]
    assert pictures.filter(pa.compute.field("status") == "error")["key"].to_pylist() == failed
    assert list(load(out).errors) == failed
    assert [len(e) for e in load(out)] == [n for n, s in zip(*counts(pictures), strict=True) if s != "error"]
    if not at_once:
        assert run(source, str(out), OPTIONS, Here(), resume=True).errors == len(failed)
        objects, pictures = raw(out, items)
        assert sum(counts(pictures)[0]) == len(objects), "rows that were written before the kill are removed"
    engine = Here()
    assert run(source, str(out), OPTIONS, engine, resume=True, retry_errors=True).errors == 0
    assert engine.did == failed
    assert_same_rows(raw(out, items), joined(plain_work(source, CHUNK)))
    assert not [path for path in out.rglob(".*") if path.is_file()]


def counts(pictures: pa.Table) -> tuple[list[int], list[str]]:
    """The objects and the status of each picture."""
    return pictures["objects"].to_pylist(), pictures["status"].to_pylist()


def test_shards_that_no_picture_counts_are_removed(items: list[Item], tmp_path: Path) -> None:
    """Also when the user removed a damaged chunk by hand: it is done again as a whole."""
    source, out = Given(items), tmp_path / "out"
    run(source, str(out), OPTIONS, Here(), chunk=CHUNK)
    bring_back(items, *PLACES)
    run(source, str(out), OPTIONS, Here(), resume=True, retry_errors=True)
    assert sorted(path.name for path in (out / "objects").iterdir())[1] == "part-000000_1.parquet"
    for table in ("objects", "pictures"):
        (out / table / "part-000000.parquet").unlink()
    run(source, str(out), OPTIONS, Here(), resume=True)
    assert_same_rows(raw(out, items), joined(plain_work(source, CHUNK)))
    assert Dataset(Folder(out)).objects(0).equals(Dataset(Folder(out)).objects(0, Dataset(Folder(out)).pictures(0)))
