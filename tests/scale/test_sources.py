"""Sources: which pictures, by which keys, in which order, with files that the real libraries wrote."""

import io
import json
import os
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from detcam.errors import ImageError, InputError
from detcam.scale.places import braces
from detcam.scale.reading import read_bytes
from detcam.scale.sources import open_source


def png(seed: int) -> bytes:
    """A small picture that differs from seed to seed."""
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def written(folder: Path, *names: str) -> dict[str, bytes]:
    """Pictures in files of these names; their bytes by name."""
    contents = {name: png(i) for i, name in enumerate(names)}
    for name, data in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return contents


def read(src: object, **options: object) -> dict[str, bytes]:
    """All keys and bytes of a source, in order; asks for it in pieces, backwards and whole, which must agree."""
    source = open_source(src, **options)  # type: ignore[arg-type]
    items = list(source.items())
    assert source.count() == len(items) == len({item.key for item in items})
    pieces = [list(source.items(start, start + 2)) for start in reversed(range(0, len(items), 2))]
    assert [item for piece in reversed(pieces) for item in piece] == items
    for item in items:
        if item.data is not None:  # what came with its record can be read again by its uri alone
            assert read_bytes(type(item)(item.key, item.uri)) == item.data
    assert open_source(src, **options).fingerprint() == source.fingerprint()  # type: ignore[arg-type]
    return {item.key: read_bytes(item) for item in items}


def refused(src: object, *words: str, **options: object) -> None:
    with pytest.raises(InputError) as caught:
        list(open_source(src, **options).items())  # type: ignore[arg-type]
    for word in words:
        assert word in str(caught.value), f"{word!r} is not in: {caught.value}"


# Folders


def test_a_folder_in_the_order_of_its_paths_by_suffix(tmp_path: Path) -> None:
    contents = written(tmp_path, "b/2.JPG", "b.png", "a/x/1.webp", "a.tiff", "b/10.jpeg")
    written(tmp_path, "notes.md", "b/labels.txt", ".hidden.png", ".thumbs/1.png", "a/._1.png")
    found = read(tmp_path)
    assert list(found) == sorted(contents) == ["a.tiff", "a/x/1.webp", "b.png", "b/10.jpeg", "b/2.JPG"]
    assert found == contents


def test_loops_of_links_end_and_linked_folders_are_read_once(tmp_path: Path) -> None:
    contents = written(tmp_path / "root", "a/1.png", "b/2.png")
    outside = written(tmp_path / "outside", "3.png")
    (tmp_path / "root/a/up").symlink_to(tmp_path / "root")
    (tmp_path / "root/b/self").symlink_to(tmp_path / "root/b")
    (tmp_path / "root/b/other").symlink_to(tmp_path / "root/a")
    (tmp_path / "root/c").symlink_to(tmp_path / "outside")
    (tmp_path / "outside/back").symlink_to(tmp_path / "root")
    assert read(tmp_path / "root") == {**contents, "c/3.png": outside["3.png"]}
    assert read(f"{tmp_path}/root/**/*.png") == {**contents, "c/3.png": outside["3.png"]}


def test_a_broken_link_is_a_picture_that_cannot_be_read_and_a_pipe_is_none(tmp_path: Path) -> None:
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "itself.png").symlink_to(tmp_path / "itself.png")
    os.mkfifo(tmp_path / "pipe.png")
    assert [item.key for item in open_source(tmp_path).items()] == ["gone.png", "itself.png"]


def test_names_that_are_no_text_or_hold_newlines(tmp_path: Path) -> None:
    (tmp_path / "two\nlines.png").write_bytes(png(1))
    (tmp_path / "grün 日本 🚲.png").write_bytes(png(2))
    with open(os.fsencode(tmp_path) + b"/\xff.png", "wb") as file:
        file.write(png(3))
    found = read(tmp_path)
    assert sorted(found) == ["\\xff.png", "grün 日本 🚲.png", "two\nlines.png"]
    assert found["\\xff.png"] == png(3)
    for key in found:
        key.encode()


def test_very_deep_folders(tmp_path: Path) -> None:
    deep = "d/" * 1200 + "1.png"
    here = os.getcwd()
    try:  # the whole path is longer than some systems open at once, so step by step
        os.chdir(tmp_path)
        for _ in range(1200):
            os.mkdir("d")
            os.chdir("d")
        Path("1.png").write_bytes(png(1))
        os.chdir(here)
        assert list(read(tmp_path)) == [deep]
    finally:
        os.chdir(here)
        subprocess.run(["rm", "-rf", str(tmp_path / "d")], check=True)  # pytest's own cleaning would recurse too deep


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    refused(tmp_path / "missing", "missing does not exist", "a folder, a glob")
    refused(tmp_path, "holds no pictures", ".png")
    written(tmp_path, "a.png", "x.zip")
    refused(tmp_path / "a.png", "no set of pictures")
    refused(tmp_path / "x.zip", "no set of pictures")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_folder_without_permission_is_named(tmp_path: Path) -> None:
    written(tmp_path, "a.png", "locked/b.png")
    (tmp_path / "locked").chmod(0)
    refused(tmp_path, "locked", "permission")
    (tmp_path / "locked").chmod(0o700)


# Globs


def test_globs(tmp_path: Path) -> None:
    contents = written(tmp_path, "a/1.png", "a/x/2.png", "b/3.png", "b/4.jpg", "5.png", "[6].png")

    def keys(pattern: str) -> list[str]:
        return list(read(f"{tmp_path}/{pattern}"))

    assert keys("*.png") == ["5.png", "[6].png"]
    assert keys("**/*.png") == ["5.png", "[6].png", "a/1.png", "a/x/2.png", "b/3.png"]
    assert keys("**") == sorted(contents)
    assert keys("?/[13].png") == ["a/1.png", "b/3.png"]
    assert keys("a/**/*.png") == ["1.png", "x/2.png"]
    assert keys("b/*.{png,jpg}") == ["3.png", "4.jpg"]
    assert keys("{a,b}/*.png") == ["a/1.png", "b/3.png"]
    assert keys("{b/3,a/1}.png") == ["b/3.png", "a/1.png"]
    refused(tmp_path / "[6].png", "no set of pictures")  # a file of that very name
    refused(f"{tmp_path}/*.gif", "holds no pictures")
    refused(f"{tmp_path}/none/*.png", "there is no folder", "none")


def test_a_glob_relative_to_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = written(tmp_path, "a/1.png", "2.png")
    monkeypatch.chdir(tmp_path)
    assert read("*.png") == {"2.png": contents["2.png"]}
    assert read("**/*.png") == contents
    assert read(".") == contents


def test_braces() -> None:
    assert list(braces("a{08..10}b{x,y}")) == ["a08bx", "a08by", "a09bx", "a09by", "a10bx", "a10by"]
    assert list(braces("{a,b{1,2}}")) == ["a", "b1", "a", "b2"]
    assert list(braces("plain")) == ["plain"]


# Lists


def test_a_list_relative_to_itself_absolute_and_of_urls(tmp_path: Path) -> None:
    contents = written(tmp_path, "data/1.png", "data/sub/2.png", "3.png")
    elsewhere = tmp_path / "3.png"
    listed = tmp_path / "data/list.txt"
    listed.write_text(f"\ufeffsub/2.png\r\n\n./1.png\n{elsewhere}\nfile://{elsewhere}\n../3.png")
    assert read(listed) == {
        "sub/2.png": contents["data/sub/2.png"],
        "1.png": contents["data/1.png"],
        str(elsewhere): contents["3.png"],
        f"file://{elsewhere}": contents["3.png"],
        "../3.png": contents["3.png"],
    }
    listed.write_text("1.png")
    assert read(listed, root=tmp_path / "data/sub/..") == {"1.png": contents["data/1.png"]}


def test_lists_that_cannot_be_used(tmp_path: Path) -> None:
    listed = tmp_path / "list.txt"
    refused(listed, "list.txt does not exist")
    for content, words in {
        b"": ["holds no pictures"],
        b"a.png\n./a.png": ["'a.png'", "two pictures"],
        b"a.png\n\0": ["line 2", "no path"],
        b"\xff\xfe": ["UTF-8"],
        b"http://host/a.png": ["on the web", "--web"],
        b"rsync://host/a.png": ["rsync"],
        b"zip://x::http://host/a.zip": ["zip"],
    }.items():
        listed.write_bytes(content)
        refused(listed, *words)
    listed.write_text("https://host/a.png")
    assert [item.uri for item in open_source(listed, web=True).items()] == ["https://host/a.png"]


# COCO


def coco(path: Path, names: list[str]) -> Path:
    """A COCO file that pycocotools reads."""
    from pycocotools.coco import COCO

    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"id": i, "file_name": name, "width": 5, "height": 4} for i, name in enumerate(names)]
    path.write_text(json.dumps({"images": images, "annotations": [], "categories": []}))
    assert [image["file_name"] for image in COCO(path).loadImgs(range(len(names)))] == names
    return path


def test_coco_beside_its_pictures_in_images_or_at_a_root(tmp_path: Path) -> None:
    contents = written(tmp_path / "pictures", "b.png", "sub/a.png")
    names = ["b.png", "sub/a.png"]
    assert read(coco(tmp_path / "pictures/instances.json", names)) == contents
    assert read(coco(tmp_path / "labels/instances.json", names), root=tmp_path / "pictures") == contents
    (tmp_path / "pictures").rename(tmp_path / "images")
    assert read(coco(tmp_path / "instances.json", names)) == contents


def test_coco_files_that_cannot_be_used(tmp_path: Path) -> None:
    path = tmp_path / "instances.json"
    refused(coco(path, ["a.png"]), "a.png does not exist", "--root")
    written(tmp_path, "a.png")
    assert list(read(path)) == ["a.png"]
    refused(coco(path, ["a.png", "./a.png"]), "two pictures", "'a.png'")
    for name in ("../a.png", "/etc/a.png", "..", "x/../../a.png", "..\\a.png", "file:///a.png"):
        refused(coco(path, ["a.png", name]), "image 1", "leaves the folder")
    assert [item.key for item in open_source(coco(path, ["a.png", "\ud800.png"])).items()] == ["a.png", "\\ud800.png"]
    refused(coco(path, []), "holds no pictures")
    for content in ("{", "[]", '{"images": {}}', '{"images": [{"id": 1}]}', "[" * 100_000):
        path.write_text(content)
        refused(path, "instances.json")


# Parquet


def test_parquet_that_datasets_wrote(tmp_path: Path) -> None:
    import datasets

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
    refused(tmp_path / "p.parquet", "two pictures", root=tmp_path / "pictures")
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
    refused(path, "no column of pictures among n")
    pq.write_table(pa.table({"image": [b"1", b"2"], "k": ["x", "x"]}), path)
    refused(path, "two pictures", "'x'", key="k")
    pq.write_table(pa.table({"image": [b"1", b"2"], "k": ["x", None]}), path)
    refused(path, "empty row", key="k")
    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), path)
    refused(path, "holds no pictures")


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


def shard(path: Path, samples: list[dict[str, object]]) -> Path:
    """A tar that webdataset wrote."""
    import webdataset

    with webdataset.TarWriter(str(path)) as writer:
        for sample in samples:
            writer.write(sample)
    return path


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
    refused(path, "'x' has two pictures", "jpg and mask.png", "--column")
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
    refused(path, "a.tar", "no tar file")
    path.write_bytes(b"")
    refused(path, "a.tar")
    shard(path, [{"__key__": "x", "txt": "no picture"}])
    refused(path, "holds no pictures")
    shard(path, [{"__key__": "x", "jpg": b"1"}])
    shard(tmp_path / "b.tar", [{"__key__": "x", "jpg": b"2"}])
    refused(f"{tmp_path}/*.tar", "two pictures", "'x'")
    refused(f"{tmp_path}/{{a,c}}.tar", "c.tar does not exist")


# Stores


def test_every_kind_in_a_store(tmp_path: Path) -> None:
    import fsspec

    contents = written(tmp_path, "data/b/2.png", "data/a.png", "data/.hidden.png")
    visible = {name.removeprefix("data/"): data for name, data in contents.items() if "hidden" not in name}
    shard(tmp_path / "data/s.tar", [{"__key__": key.replace(".", "_"), "png": data} for key, data in visible.items()])
    pq.write_table(pa.table({"image": list(visible.values()), "id": list(visible)}), tmp_path / "data/p.parquet")
    coco(tmp_path / "data/instances.json", sorted(visible))
    (tmp_path / "data/list.txt").write_text("b/2.png\na.png")
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "data"), f"memory://{tmp_path.name}", recursive=True)
    try:
        for root in (f"memory://{tmp_path.name}", f"file://{tmp_path}/data"):
            assert read(root) == read(f"{root}/") == read(f"{root}/**/*.png") == visible
            assert list(read(root)) == sorted(visible)
            assert read(f"{root}/*.png") == {"a.png": visible["a.png"]}
            assert read(f"{root}/list.txt") == read(f"{root}/instances.json") == visible
            assert list(read(f"{root}/s.tar").values()) == list(visible.values())
            assert read(f"{root}/p.parquet", key="id") == visible
            refused(f"{root}/none", "does not exist")
        (tmp_path / "outside.txt").write_text("x")
        memory.pipe_file(f"/{tmp_path.name}/list.txt", b"/etc/a.png")
        refused(f"memory://{tmp_path.name}/list.txt", "line 1")
    finally:
        memory.rm(f"/{tmp_path.name}", recursive=True)


def test_what_is_no_store_is_refused() -> None:
    refused("https://host/a.tar", "on the web", "--web")
    refused("sftp://host/photos", "sftp")
    refused("nonsense://x", "nonsense")
