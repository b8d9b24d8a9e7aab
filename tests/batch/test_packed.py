"""Sources that are packed: Parquet and WebDataset's tars, written by the real libraries."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from source_files import png, read, refused, shard, written

from detcam.batch.sources.open import open_source
from detcam.batch.sources.read import read_bytes
from detcam.errors import ImageError

# Parquet


def test_parquet_that_datasets_wrote(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")

    contents = written(tmp_path, "pictures/a.png", "pictures/b.png")
    rows = {
        "label": [0, 1, 2],
        "photo": [Image.open(io.BytesIO(png(7))), str(tmp_path / "pictures/a.png"), None],
        "raw": [b"1", b"2", b"3"],
        "number": [30, 10, 20],
    }
    features = {
        "label": datasets.Value("int64"),
        "photo": datasets.Image(),
        "raw": datasets.Value("binary"),
        "number": datasets.Value("int32"),
    }
    datasets.Dataset.from_dict(rows, features=datasets.Features(features)).to_parquet(tmp_path / "train.parquet")
    items = list(open_source(tmp_path / "train.parquet").items())
    assert [item.key for item in items] == ["train.parquet#0", "train.parquet#1", "train.parquet#2"]
    assert np.array_equal(Image.open(io.BytesIO(read_bytes(items[0]))), Image.open(io.BytesIO(png(7))))
    assert read_bytes(items[1]) == contents["pictures/a.png"]
    assert read_bytes(items[2]) == b""
    assert [item.key for item in open_source(tmp_path / "train.parquet", key="number").items()] == ["30", "10", "20"]
    assert list(read(tmp_path / "train.parquet", column="raw").values()) == [b"1", b"2", b"3"]


def test_several_parquet_files_with_row_groups_of_any_size(tmp_path: Path, seed: int) -> None:
    generator = np.random.default_rng(seed)
    expected = {}
    for name in ("train-00000-of-00002.parquet", "train-00001-of-00002.parquet"):
        count = int(generator.integers(1, 60))
        rows = [png(i) for i in range(count)]
        pq.write_table(pa.table({"image": rows}), tmp_path / name, row_group_size=int(generator.integers(1, 40)))
        expected |= {f"{name}#{i}": data for i, data in enumerate(rows)}
    source = open_source(tmp_path / "train-*.parquet")
    assert {item.key: item.data for item in source.items()} == expected
    keys = list(expected)
    for start in generator.integers(0, len(keys), 20).tolist():
        stop = start + int(generator.integers(0, 10))
        assert [item.key for item in source.items(start, stop)] == keys[start:stop]
        assert [item.data for item in source.items(start, stop)] == [expected[key] for key in keys[start:stop]]


def test_parquet_of_paths(tmp_path: Path) -> None:
    contents = written(tmp_path / "pictures", "a.png", "sub/b.png")
    pq.write_table(pa.table({"split": ["x", "y"], "path": ["sub/b.png", "./a.png"]}), tmp_path / "p.parquet")
    expected = {"sub/b.png": contents["sub/b.png"], "a.png": contents["a.png"]}
    assert read(tmp_path / "p.parquet", root=tmp_path / "pictures") == expected
    found = read(tmp_path / "p.parquet", root=tmp_path / "pictures", key="split")
    assert found == {"x": contents["sub/b.png"], "y": contents["a.png"]}
    pq.write_table(pa.table({"split": ["x", "y"], "path": ["a.png", "a.png"]}), tmp_path / "p.parquet")
    refused(tmp_path / "p.parquet", "two images", root=tmp_path / "pictures")
    found = read(tmp_path / "p.parquet", root=tmp_path / "pictures", key="split")
    assert found == {"x": contents["a.png"], "y": contents["a.png"]}


def test_parquet_files_that_cannot_be_used(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    refused(path, "p.parquet does not exist")
    refused(f"{tmp_path}/*.parquet", "no file matches")
    path.write_bytes(b"PAR1 nothing")
    refused(path, "damaged")
    pq.write_table(pa.table({"a": [b"1"], "b": [b"2"], "n": [1], "k": ["x"]}), path)
    refused(path, "'a' or 'b'", "--column")
    refused(path, "no column 'c'", column="c")
    refused(path, "neither bytes nor paths", column="n")
    refused(path, "no column 'q'", column="a", key="q")
    assert list(read(path, column="a", key="k")) == ["x"]
    pq.write_table(pa.table({"n": [1]}), path)
    refused(path, "no column of images among n")
    pq.write_table(pa.table({"image": [b"1", b"2"], "k": ["x", "x"]}), path)
    refused(path, "two images", "'x'", key="k")
    pq.write_table(pa.table({"image": [b"1", b"2"], "k": ["x", None]}), path)
    refused(path, "empty row", key="k")
    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), path)
    refused(path, "holds no images")


def test_a_damaged_row_group_costs_its_pictures_only(tmp_path: Path) -> None:
    whole = io.BytesIO()
    pictures = [png(i) for i in range(90)]
    table = pa.table({"image": pictures})
    pq.write_table(table, whole, compression="none", row_group_size=30, use_dictionary=False)
    data = bytearray(whole.getvalue())
    second = pq.ParquetFile(whole).metadata.row_group(1).column(0).data_page_offset
    data[second : second + 40] = b"\xff" * 40  # the page's header
    (tmp_path / "p.parquet").write_bytes(data)
    items = list(open_source(tmp_path / "p.parquet").items())
    assert len(items) == 90
    for i, item in enumerate(items):
        if 30 <= i < 60:
            with pytest.raises(ImageError, match=r"p\.parquet"):
                read_bytes(item)
        else:
            assert read_bytes(item) == pictures[i]


# WebDataset


def test_webdataset_as_webdataset_reads_it(tmp_path: Path) -> None:
    import webdataset

    samples = [
        [{"__key__": f"{s}/n{i}", "png": png(10 * s + i), "cls": i, "json": {"jpg": 1}} for i in range(4)]
        for s in range(3)
    ]
    for s, of_shard in enumerate(samples):
        shard(tmp_path / f"train-{s:03d}.tar", of_shard)
    found = read(f"{tmp_path}/train-{{000..002}}.tar")
    urls = f"{tmp_path}/train-{{000..002}}.tar"
    theirs = {sample["__key__"]: sample["png"] for sample in webdataset.WebDataset(urls, shardshuffle=False)}
    assert found == theirs
    assert list(found) == list(theirs)
    assert len(found) == 12
    assert read(f"{tmp_path}/*.tar") == found
    assert list(read(tmp_path / "train-001.tar")) == ["1/n0", "1/n1", "1/n2", "1/n3"]


def test_webdataset_with_several_pictures_in_a_sample(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar", [{"__key__": "x", "jpg": png(1), "mask.png": png(2)}])
    refused(path, "'x' has two images", "jpg and mask.png", "--column")
    assert read(path, column="mask.png") == {"x": png(2)}
    assert read(path, column=".JPG") == {"x": png(1)}


def test_tars_of_other_makers(tmp_path: Path) -> None:
    contents = written(tmp_path, "in/./b.jpg", "in/sub.v1/" + "long" * 40 + ".jpg", "in/._b.jpg", "in/readme")
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with tarfile.open(tmp_path / "made.tar", "w", format=form) as tar:
            tar.add(tmp_path / "in", "./")
            link = tarfile.TarInfo("link.jpg")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(link)
        found = read(tmp_path / "made.tar")
        assert found == {
            "b": contents["in/./b.jpg"],
            "sub.v1/" + "long" * 40: contents["in/sub.v1/" + "long" * 40 + ".jpg"],
        }


def test_tars_that_cannot_be_used(tmp_path: Path) -> None:
    refused(tmp_path / "a.tar", "a.tar does not exist")
    refused(tmp_path / "a.tar.gz", "compressed", "unpack")
    path = shard(tmp_path / "a.tar", [{"__key__": str(i), "jpg": bytes(3000)} for i in range(5)])
    whole = path.read_bytes()
    for cut in (100, 3000, 4000):
        path.write_bytes(whole[:cut])
        refused(path, "a.tar", "damaged")
    path.write_bytes(b"no tar " * 1000)
    refused(path, "a.tar", "not a tar file")
    path.write_bytes(b"")
    refused(path, "a.tar")
    shard(path, [{"__key__": "x", "txt": "no picture"}])
    refused(path, "holds no images")
    shard(path, [{"__key__": "x", "jpg": b"1"}])
    shard(tmp_path / "b.tar", [{"__key__": "x", "jpg": b"2"}])
    refused(f"{tmp_path}/*.tar", "two images", "'x'")
    refused(f"{tmp_path}/{{a,c}}.tar", "c.tar does not exist")
