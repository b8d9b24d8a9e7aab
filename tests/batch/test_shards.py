"""The dataset: whole shards, readable everywhere, gone on with only by the same job, and explanations again."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from photos import OPTIONS, Given, assert_same_rows, items_of, joined, plain_work, write_photos

from detcam import Explainer, InputError
from detcam.batch import load
from detcam.batch.dataset.dataset import Dataset
from detcam.batch.dataset.folder import Folder
from detcam.batch.dataset.rows import Batch
from detcam.batch.items import Chunk, Item, Source, chunks
from detcam.batch.job import Tally, chunk_size, manifest, run
from detcam.batch.sources.open import open_source
from detcam.batch.worker import Options, Worker
from detcam.errors import DetcamError, ImageError


class InThisProcess:
    """An engine without processes."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.stop_after = stop_after
        self.numbers: list[int] = []

    def __call__(self, chunks: Any, options: Options, on_batch: Any) -> None:
        worker = Worker(options)
        for chunk in chunks:
            if len(self.numbers) == self.stop_after:
                raise KeyboardInterrupt
            on_batch(worker.run(chunk.items, chunk.number, chunk.places))
            self.numbers.append(chunk.number)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Source]:
    """A finished job of 7 pictures, one of them broken and one of them blank: its dataset, its pictures, its source."""
    folder = tmp_path_factory.mktemp("job")
    photos = folder / "photos"
    write_photos(photos, 7, 5)
    (photos / "broken.jpg").write_bytes(b"nothing")
    cv2.imwrite(str(photos / "blank.png"), np.full((120, 160, 3), 128, np.uint8))
    source = open_source(photos)
    run(source, str(folder / "out"), OPTIONS, InThisProcess(), chunk=3)
    return folder / "out", photos, source


def rows_of(folder: Path) -> tuple[Any, Any]:
    dataset = Dataset(Folder(folder))
    done = sorted(dataset.done())
    return joined([Batch(number, dataset.objects(number), dataset.pictures(number)) for number in done])


def test_pandas_and_duckdb_read_both_tables_as_folders(job: tuple[Path, Path, Source]) -> None:
    duckdb = pytest.importorskip("duckdb")
    pandas = pytest.importorskip("pandas")

    expected_objects, expected_pictures = rows_of(job[0])
    assert expected_objects.num_rows > 5
    for name, expected in (("objects", expected_objects), ("pictures", expected_pictures)):
        wanted = expected.to_pylist()
        assert duckdb.sql(f"select * from '{job[0] / name}/*.parquet'").to_arrow_table().to_pylist() == wanted
        frame = pandas.read_parquet(job[0] / name)
        assert list(frame["key"]) == [row["key"] for row in wanted]
        assert list(frame.columns) == expected.schema.names
    hottest = duckdb.sql(f"select label, count(*) n from '{job[0]}/objects/*.parquet' group by label").fetchall()
    assert sum(n for _, n in hottest) == expected_objects.num_rows


@pytest.mark.nightly
def test_polars_and_datasets_read_both_tables_as_folders(
    job: tuple[Path, Path, Source], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    polars = pytest.importorskip("polars")

    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    datasets = pytest.importorskip("datasets")

    for name, expected in zip(("objects", "pictures"), rows_of(job[0]), strict=True):
        glob = str(job[0] / name / "*.parquet")
        assert polars.read_parquet(glob).to_dicts() == expected.to_pylist()
        loaded = datasets.load_dataset("parquet", data_files=glob, split="train", cache_dir=str(tmp_path))
        assert loaded.to_list() == expected.to_pylist()


def test_load_gives_explanations_back(job: tuple[Path, Path, Source]) -> None:
    loaded, explainer = load(job[0]), Explainer("scenes-yolo", imgsz=160)
    keys = [item.key for item in job[2].items() if item.key != "broken.jpg"]
    assert loaded.keys == keys
    assert len(loaded) == len(keys) == 6
    assert list(loaded.errors) == ["broken.jpg"]
    assert "not an image" in loaded.errors["broken.jpg"]
    assert [e.key for e in loaded] == keys
    assert [e.key for e in loaded[1:3]] == keys[1:3]
    for again in loaded:
        first = explainer(again.uri)
        assert again.labels == first.labels
        torch.testing.assert_close(again.boxes, first.boxes, rtol=0, atol=1e-2)
        torch.testing.assert_close(again.objects.cells, first.objects.cells)
        boxes = first.geometry.to_network(first.boxes)  # cut to the picture, as the model's own are not
        torch.testing.assert_close(again.objects.network_boxes, boxes, rtol=0, atol=2e-2)
        assert again.notes == first.notes
        if len(first):
            assert again.geometry == first.geometry
            settings = {name: value for name, value in first.settings.items() if name != "family"}
            assert {name: again.settings[name] for name in settings} == settings
            torch.testing.assert_close(again.heatmaps, first.heatmaps, rtol=0, atol=1 / 255)
            together = again.render(normalize="image"), first.render(normalize="image")
            assert (together[0].int() - together[1].int()).abs().max() <= 2
            difference = again.overlay(0).astype(int) - first.overlay(0)
            assert np.abs(difference).max() <= 8
    assert len(loaded["blank.png"]) == 0
    assert loaded["blank.png"].heatmaps.shape == (0, 120, 160)
    with pytest.raises(KeyError, match="not an image"):
        loaded["broken.jpg"]
    with pytest.raises(KeyError, match=r"nowhere\.png"):
        loaded["nowhere.png"]
    with pytest.raises(IndexError):
        loaded[6]


def test_the_picture_is_read_when_it_is_asked_for(seed: int, tmp_path: Path) -> None:
    paths = write_photos(tmp_path / "in", seed, 2)
    run(Given(items_of(paths)), str(tmp_path / "out"), OPTIONS, InThisProcess())
    loaded = load(tmp_path / "out")
    assert loaded[0].image.shape[:2] == loaded[0].geometry.source
    cv2.imwrite(str(paths[0]), np.zeros((50, 60, 3), np.uint8))
    paths[1].unlink()
    _ = loaded[0].heatmaps, loaded[1].heatmaps
    with pytest.raises(ImageError, match=r"was \d+ x \d+ pixels"):
        _ = loaded[0].image
    with pytest.raises(ImageError, match="does not exist"):
        _ = loaded[1].image


def test_interrupted_and_gone_on_with(seed: int, tmp_path: Path) -> None:
    source = Given(items_of(write_photos(tmp_path / "in", seed, 7)))
    expected = joined(plain_work(source, 2))
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(source, str(out), OPTIONS, InThisProcess(stop_after=2), chunk=2)
    assert Dataset(Folder(out)).done() == {0, 1}
    (out / "pictures" / "part-000001.parquet").unlink()  # as if killed between the two files of a chunk
    (out / "objects" / ".part-000002.parquet.99.part").write_bytes(b"half a file")
    engine, seen = InThisProcess(), list[Tally]()
    tally = run(source, str(out), OPTIONS, engine, resume=True, progress=lambda t: seen.append(Tally(**vars(t))))
    assert engine.numbers == [1, 2, 3]
    assert (tally.total, tally.before, tally.done) == (7, 2, 7)
    assert [t.done for t in seen] == [2, 4, 6, 7]
    assert_same_rows(rows_of(out), expected)
    assert sorted(path.name for path in (out / "objects").iterdir()) == [f"part-{i:06d}.parquet" for i in range(4)]
    again = InThisProcess()
    assert run(source, str(out), OPTIONS, again, resume=True).done == 7
    assert again.numbers == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conf": 0.3}, r"options\.conf was 0\.25, now 0\.3"),
        ({"method": "gradcam"}, r'options\.method was "auto", now "gradcam"'),
        ({"layers": ["model.9"]}, r'options\.layers was "auto", now \["model\.9"\]'),
        ({"metrics": ("compactness",)}, r'options\.metrics was \[\], now \["compactness"\]'),
        ({"model": "scenes-detr"}, r"weights was"),
        ({"pictures": 3}, r"source\.fingerprint was"),
        ({"chunk": 2}, r"chunk was 1, now 2"),
        ({"version": True}, r"detcam was"),
        ({"save": True}, r"options\.save was false, now true"),
    ],
)
def test_another_job_is_refused(
    change: dict[str, Any], message: str, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [Item(f"{i}.png", f"nowhere/{i}.png") for i in range(4)]
    out, empty = str(tmp_path), Worker(OPTIONS).run(items[:1])

    def engine(chunks: Any, options: Options, on_batch: Any) -> None:
        for chunk in chunks:
            on_batch(Batch(chunk.number, empty.objects, empty.pictures))

    run(Given(items), out, OPTIONS, engine, chunk=1)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.parquet")}
    if change.pop("version", False):
        monkeypatch.setattr("detcam.__version__", "99")
    source = Given(items[: change.pop("pictures", 4)])
    given = {name: change.pop(name) for name in ("chunk", "save") if name in change}
    options = OPTIONS.model_copy(update=change)
    with pytest.raises(InputError, match=message):
        run(source, out, options, engine, resume=True, **given)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.parquet")} == before
    with pytest.raises(InputError, match="add --resume"):
        run(Given(items), out, OPTIONS, engine)


def test_moved_pictures_and_weights_are_the_same_job(seed: int, tmp_path: Path) -> None:
    write_photos(tmp_path / "here", seed, 2)
    out = str(tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        run(open_source(tmp_path / "here"), out, OPTIONS, InThisProcess(1), chunk=1)
    (tmp_path / "here").rename(tmp_path / "there")
    assert run(open_source(tmp_path / "there"), out, OPTIONS, InThisProcess(), resume=True).errors == 0


def test_folders_that_hold_something_else(tmp_path: Path) -> None:
    source = Given([])
    document = manifest(source, OPTIONS, 8)
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match=r"'thesis.txt', which is not of a job"):
        Dataset(Folder(tmp_path)).begin(document, resume=True)
    (tmp_path / "thesis.txt").unlink()
    Dataset(Folder(tmp_path)).begin(document, resume=False)
    Dataset(Folder(tmp_path)).begin({**document, "chunk": 9}, resume=False)  # nothing was done yet
    for damage in (b"", b"[]", b'{"format": 99}', b"\xff\xfe", b"[" * 100_000):
        (tmp_path / "job.json").write_bytes(damage)
        with pytest.raises(InputError, match=r"job\.json"):
            load(tmp_path)
        with pytest.raises(InputError, match=r"job\.json"):
            Dataset(Folder(tmp_path)).begin(document, resume=True)
    with pytest.raises(InputError, match=r"holds no job\.json"):
        load(tmp_path / "nothing")
    with pytest.raises(InputError, match="Not a directory"):
        Dataset(Folder(tmp_path / "job.json")).begin(document, resume=False)


def test_damaged_shards_are_named(seed: int, tmp_path: Path) -> None:
    source = Given(items_of(write_photos(tmp_path / "in", seed, 1)))
    out = tmp_path / "out"
    run(source, str(out), OPTIONS, InThisProcess())
    shard = out / "objects" / "part-000000.parquet"
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"part-000000\.parquet cannot be read"):
        _ = load(out)[0]
    shard.unlink()
    with pytest.raises(InputError, match=r"part-000000\.parquet cannot be read"):
        _ = load(out)[0]


def test_too_many_errors(tmp_path: Path) -> None:
    source = Given([Item(f"{i}.png", f"nowhere/{i}.png") for i in range(5)])
    out = str(tmp_path / "out")
    with pytest.raises(InputError, match=r"3 images failed, more than --max-errors 2; the first one, 0.png: nowhere/0"):
        run(source, out, OPTIONS, InThisProcess(), chunk=1, max_errors=2)
    tally = run(source, out, OPTIONS, InThisProcess(), resume=True, max_errors=5)
    assert (tally.before, tally.done, tally.errors, len(tally.first)) == (3, 5, 5, 5)


def test_an_engine_that_loses_pictures_is_found_out(seed: int, tmp_path: Path) -> None:
    with pytest.raises(DetcamError, match="2 images are missing"):
        run(Given([Item(str(i), str(i)) for i in range(2)]), str(tmp_path), OPTIONS, lambda *_: None)


@pytest.mark.parametrize(("count", "size"), [(1, 8), (500, 8), (513, 9), (5000, 79), (10**6, 512)])
def test_chunk_size(count: int, size: int) -> None:
    assert chunk_size(count) == size


def test_chunks_are_the_same_whatever_is_skipped() -> None:
    source = Given([Item(str(i), str(i)) for i in range(10)])
    every = list(chunks(source, 3))
    assert [[item.key for item in chunk.items] for chunk in every] == [list("012"), list("345"), list("678"), ["9"]]
    assert [list(chunk.places) for chunk in every] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]
    assert list(chunks(source, 3, frozenset({0, 2}))) == [every[1], every[3]]
    some = list(chunks(source, 3, frozenset({0, 1, 2}), {1: [3, 5]}))
    assert some == [Chunk(1, (3, 5), (every[1].items[0], every[1].items[2]), again=True), every[3]]
    source.handed = 0
    assert next(chunks(source, 3)) == every[0]
    assert source.handed == 3, "what is far ahead is not asked for"


def test_names_that_are_no_text(seed: int, tmp_path: Path) -> None:
    """A file whose name is no UTF-8 still gets its row, and the row says what can be said."""
    import os

    path = os.fsencode(tmp_path) + b"/na\xefve.png"
    source = write_photos(tmp_path / "in", seed, 1)[0]
    os.rename(source, path)
    item = Item("naive", os.fsdecode(path))
    batch = Worker(OPTIONS).run([item, Item("lost", os.fsdecode(path) + "x")])
    rows = batch.pictures.to_pylist()
    assert [row["status"] == "error" for row in rows] == [False, True]
    assert all(row["uri"].startswith(str(tmp_path) + "/na\\xefve.png") for row in rows)
    json.dumps(rows)
