"""Sources: which pictures, by which keys, in which order, with files that the real libraries wrote."""

import os
import subprocess
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_files import coco, png, read, refused, shard, written

from detcam.batch.items import Item
from detcam.batch.sources import read as reading
from detcam.batch.sources.open import open_source
from detcam.batch.sources.read import read_bytes
from detcam.batch.sources.storage import braces
from detcam.errors import ImageError

# Folders


def test_a_folder_in_the_order_of_its_paths_by_suffix(tmp_path: Path) -> None:
    contents = written(tmp_path, "b/2.JPG", "b.png", "a/x/1.webp", "a.tiff", "b/10.jpeg")
    written(tmp_path, "notes.md", "b/labels.txt", ".hidden.png", ".thumbs/1.png", "a/._1.png")
    found = read(tmp_path)
    assert list(found) == sorted(contents) == ["a.tiff", "a/x/1.webp", "b.png", "b/10.jpeg", "b/2.JPG"]
    assert found == contents


def test_loops_of_links_end_and_linked_folders_are_read_once(tmp_path: Path) -> None:
    photos, outside = tmp_path / "photos", tmp_path / "outside"
    contents = written(photos, "a/1.png", "b/2.png")
    beyond = written(outside, "3.png")
    (photos / "a/up").symlink_to(photos)
    (photos / "b/self").symlink_to(photos / "b")
    (photos / "b/other").symlink_to(photos / "a")
    (photos / "c").symlink_to(outside)
    (outside / "back").symlink_to(photos)
    assert read(photos) == {**contents, "c/3.png": beyond["3.png"]}
    assert read(f"{photos}/**/*.png") == {**contents, "c/3.png": beyond["3.png"]}


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
    refused(tmp_path, "holds no images", ".png")
    written(tmp_path, "a.png", "x.zip")
    refused(tmp_path / "a.png", "not a set of images")
    refused(tmp_path / "x.zip", "not a set of images")


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
    assert (keys("*/*.png"), keys("*/*/*.png")) == (["a/1.png", "b/3.png"], ["a/x/2.png"])
    assert keys("**/**/2.png") == ["a/x/2.png"]
    assert keys("b/*.{png,jpg}") == ["3.png", "4.jpg"]
    assert keys("{a,b}/*.png") == ["a/1.png", "b/3.png"]
    assert keys("{b/3,a/1}.png") == ["b/3.png", "a/1.png"]
    refused(tmp_path / "[6].png", "not a set of images")  # a file of that very name
    refused(f"{tmp_path}/*.gif", "holds no images")
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
        b"": ["holds no images"],
        b"a.png\n./a.png": ["'a.png'", "two images"],
        b"a.png\n\0": ["line 2", "not a path"],
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
    refused(coco(path, ["a.png", "./a.png"]), "two images", "'a.png'")
    for name in ("../a.png", "/etc/a.png", "..", "x/../../a.png", "..\\a.png", "file:///a.png"):
        refused(coco(path, ["a.png", name]), "image 1", "leaves the folder")
    assert [item.key for item in open_source(coco(path, ["a.png", "\ud800.png"])).items()] == ["a.png", "\\ud800.png"]
    refused(coco(path, []), "holds no images")
    for content in ("{", "[]", '{"images": {}}', '{"images": [{"id": 1}]}', "[" * 100_000):
        path.write_text(content)
        refused(path, "instances.json")


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


# Web


def test_a_web_server_that_never_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """It also ignores that a part was asked for."""
    pytest.importorskip("aiohttp")
    monkeypatch.setattr(reading, "MAX_BYTES", 10**6)
    sent = 0

    class Endless(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            nonlocal sent
            self.send_response(200)
            self.end_headers()
            with suppress(OSError):
                while self.path == "/endless.png" or sent < 1000:
                    sent += self.wfile.write(b"x" * 1000)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Endless) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        host = f"http://127.0.0.1:{server.server_port}"
        assert read_bytes(Item("a", f"{host}/a.png")) == b"x" * 1000
        with pytest.raises(ImageError, match="longer than 1,000,000 bytes"):
            read_bytes(Item("b", f"{host}/endless.png"))
        server.shutdown()
    assert sent < 10**8
