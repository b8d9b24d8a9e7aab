"""Writes files of every kind that a source reads, and checks sources."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detcam.batch.sources.open import open_source
from detcam.batch.sources.read import read_bytes
from detcam.errors import InputError


def png(seed: int) -> bytes:
    """A small PNG file that differs between seeds."""
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def written(folder: Path, *names: str) -> dict[str, bytes]:
    """Write an image to each of these files; return their bytes by name."""
    contents = {name: png(i) for i, name in enumerate(names)}
    for name, data in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return contents


def read(src: object, **options: object) -> dict[str, bytes]:
    """All keys and bytes of a source, in order; checks that reading it in pieces, backwards and as a whole agree."""
    source = open_source(src, **options)  # type: ignore[arg-type]
    items = list(source.items())
    assert source.count() == len(items) == len({item.key for item in items})
    pieces = [list(source.items(start, start + 2)) for start in reversed(range(0, len(items), 2))]
    assert [item for piece in reversed(pieces) for item in piece] == items
    for item in items:
        if item.data is not None:  # an item with bytes can also be read by its uri alone
            assert read_bytes(type(item)(item.key, item.uri)) == item.data
    assert open_source(src, **options).fingerprint() == source.fingerprint()  # type: ignore[arg-type]
    return {item.key: read_bytes(item) for item in items}


def refused(src: object, *words: str, **options: object) -> None:
    with pytest.raises(InputError) as caught:
        list(open_source(src, **options).items())  # type: ignore[arg-type]
    for word in words:
        assert word in str(caught.value), f"{word!r} is not in: {caught.value}"


def coco(path: Path, names: list[str]) -> Path:
    """Write a COCO file that pycocotools reads."""
    from pycocotools.coco import COCO

    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"id": i, "file_name": name, "width": 5, "height": 4} for i, name in enumerate(names)]
    path.write_text(json.dumps({"images": images, "annotations": [], "categories": []}))
    assert [image["file_name"] for image in COCO(path).loadImgs(range(len(names)))] == names
    return path


def shard(path: Path, samples: list[dict[str, object]]) -> Path:
    """Write a tar file with webdataset."""
    import webdataset

    with webdataset.TarWriter(str(path)) as writer:
        for sample in samples:
            writer.write(sample)
    return path
