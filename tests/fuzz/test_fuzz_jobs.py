"""Mutated lists, COCO, Parquet and tar files, and manifests of a job: items or an error."""

import json
import random
from pathlib import Path

import pytest
from fuzzing import fuzz, mutated
from test_fuzz_labels import changed, coco

pytest.importorskip("pyarrow")

from detcam.batch.dataset.dataset import FORMAT, MANIFEST, Dataset, flat
from detcam.batch.dataset.folder import Folder
from detcam.batch.items import Item
from detcam.batch.sources.open import open_source

MANIFEST_OF_A_JOB = {
    "format": FORMAT,
    "options": {"model": "scenes-yolo", "conf": 0.25},
    "source": {"name": "a", "pictures": 3},
}


def check(items: object) -> None:
    assert isinstance(items, list)
    assert all(isinstance(item, Item) for item in items)
    assert len({item.key for item in items}) == len(items)


def test_mutated_lists(seed: int, tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    texts = [b"a.jpg\nb/c.png\n\n../d.webp\n", b"/somewhere/e.jpg\r\nf.jpg"]

    def read(data: bytes) -> object:
        path.write_bytes(data)
        return list(open_source(path).items())

    assert fuzz("lists of a job", seed, 60, lambda r: mutated(r.choice(texts), r, texts), read, check)["read"]


def test_mutated_coco_of_a_job(seed: int, tmp_path: Path) -> None:
    path = tmp_path / "instances.json"
    (tmp_path / "street.jpg").write_bytes(b"")

    def made(random: random.Random) -> bytes:
        document = changed(coco(random), random) if random.random() < 0.8 else coco(random)
        data = json.dumps(document).encode("utf-8", "surrogatepass")
        return mutated(data, random) if random.random() < 0.3 else data

    def read(data: bytes) -> object:
        path.write_bytes(data)
        return list(open_source(path).items())

    assert fuzz("COCO of a job", seed, 60, made, read, check)["read"]


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_mutated_packed_pictures(kind: str, seed: int, tmp_path: Path) -> None:
    path = tmp_path / f"pictures.{kind}"
    whole = packed(path)

    def read(data: bytes) -> object:
        path.write_bytes(data)
        return list(open_source(path).items())

    assert fuzz(f"{kind} of a job", seed, 40, lambda r: mutated(whole, r), read, check)["read"]


def packed(path: Path) -> bytes:
    import io
    import tarfile

    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.suffix == ".parquet":
        pq.write_table(pa.table({"image": [b"one", b"two"], "name": ["a", "b"]}), path)
    else:
        with tarfile.open(path, "w") as archive:
            for name in ("a.jpg", "b.jpg"):
                member = tarfile.TarInfo(name)
                member.size = 3
                archive.addfile(member, io.BytesIO(b"one"))
    return path.read_bytes()


def test_mutated_manifests(seed: int, tmp_path: Path) -> None:
    path = tmp_path / MANIFEST

    def made(random: random.Random) -> bytes:
        document = changed(MANIFEST_OF_A_JOB, random) if random.random() < 0.7 else MANIFEST_OF_A_JOB
        data = json.dumps(document).encode("utf-8", "surrogatepass")
        return mutated(data, random) if random.random() < 0.5 else data

    def read(data: bytes) -> object:
        path.write_bytes(data)
        manifest = Dataset(Folder(str(tmp_path))).manifest()
        assert manifest is not None
        return flat(manifest)

    assert fuzz("manifests", seed, 60, made, read)["read"]
