"""Small images in which the demo model finds objects, sources of them, and images that break a worker."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa

from detcam.batch.dataset.rows import Batch
from detcam.batch.items import Item, Source, chunks
from detcam.batch.worker import Options, Worker
from detcam.scenes import HELD_OUT_SEED, draw_scene

OPTIONS = Options(model="scenes-yolo", imgsz=160)
LEVEL = 1  # of 255: a forward of other pictures in the batch, or on other threads, may round differently


@cache
def scene(number: int) -> np.ndarray:
    """[240, 320, 3] uint8 RGB."""
    return draw_scene(HELD_OUT_SEED + number, (240, 320)).image


def photo(seed: int, number: int) -> np.ndarray:
    """A piece of a scene, of one of several shapes; no two are the same."""
    generator = np.random.default_rng((seed, number))
    image = scene(number % 4)
    height, width = [(240, 320), (240, 320), (200, 280), (240, 240)][generator.integers(4)]
    top, left = generator.integers(240 - height + 1), generator.integers(320 - width + 1)
    piece = image[top : top + height, left : left + width]
    piece = piece[:, ::-1] if generator.random() < 0.5 else piece
    piece = piece.transpose(1, 0, 2) if generator.random() < 0.3 else piece
    noise = generator.integers(0, 4, piece.shape, dtype=np.uint8)
    return np.ascontiguousarray(np.minimum(piece, 250) + noise)


def write_photos(folder: Path, seed: int, count: int) -> list[Path]:
    """Write PNG files, every second one into the folder `more`."""
    paths = []
    for number in range(count):
        path = folder / ("more" if number % 2 else ".") / f"photo_{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), photo(seed, number)[:, :, ::-1])
        paths.append(path)
    return paths


def items_of(paths: list[Path]) -> list[Item]:
    """An item for each path."""
    return [Item(path.name, str(path)) for path in paths]


class Given:
    """A source of the given items."""

    name = "given"

    def __init__(self, items: list[Item], fingerprint: str | None = None) -> None:
        self._items, self._fingerprint = items, fingerprint
        self.handed = 0  # items that were requested

    def count(self) -> int:
        return len(self._items)

    def fingerprint(self) -> str:
        return self._fingerprint or ",".join(item.key for item in self._items)

    def items(self, start: int = 0, stop: int | None = None) -> Any:
        self.handed = max(self.handed, len(self._items) if stop is None else stop)
        return iter(self._items[start:stop])


class Deadly:
    """An image that kills the worker that reads it, like one that takes all memory."""

    def __init__(self, key: str) -> None:
        self.key, self.uri = key, f"deadly/{key}"

    @property
    def data(self) -> bytes:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("still alive")


class Endless(Deadly):
    """An image whose read never returns, as on a dead mount."""

    @property
    def data(self) -> bytes:
        while True:
            time.sleep(60)


class Frozen(Deadly):
    """An image whose decoder never ends and holds the interpreter's lock: no other Python thread runs then."""

    @property
    def data(self) -> bytes:
        ctypes.PyDLL(None).sleep(10**6)
        raise AssertionError("went on")


class Held:
    """An image that cannot be read as long as a file beside it exists."""

    def __init__(self, item: Item) -> None:
        self.key, self.uri = item.key, item.uri

    @property
    def data(self) -> bytes:
        while held(self.uri).exists():
            time.sleep(0.02)
        return Path(self.uri).read_bytes()


def held(uri: str | Path) -> Path:
    """The file that holds back an image."""
    return Path(f"{uri}.held")


def command_with_held_pictures() -> None:
    """Run `detcam` with images that can be held back."""
    from detcam import cli
    from detcam.batch.sources import open as sources

    opened = sources.open_source

    def open_source(*args: Any, **options: Any) -> Any:
        source = opened(*args, **options)
        items: list[Any] = [Held(item) for item in source.items()]
        return Given(items, source.fingerprint())

    sources.open_source = open_source
    cli.main()


def plain_work(source: Source, size: int, options: Options = OPTIONS) -> list[Batch]:
    """The batches of a source, made without an engine."""
    worker = Worker(options)
    return [worker.run(chunk.items, chunk.number, chunk.places) for chunk in chunks(source, size)]


def joined(batches: list[Batch]) -> tuple[pa.Table, pa.Table]:
    """The rows of objects and of pictures, in the order of their chunks."""
    ordered = sorted(batches, key=lambda batch: batch.chunk)
    assert len({batch.chunk for batch in ordered}) == len(ordered), "a chunk came twice"
    return pa.concat_tables([b.objects for b in ordered]), pa.concat_tables([b.pictures for b in ordered])


def assert_same_rows(actual: tuple[pa.Table, pa.Table], expected: tuple[pa.Table, pa.Table]) -> None:
    """Check for the same objects and pictures in the same order; workers and times may differ."""
    (objects, pictures), (wanted_objects, wanted_pictures) = actual, expected
    plain = ["key", "uri", "status", "error", "width", "height", "objects"]
    assert pictures.select(plain).to_pylist() == wanted_pictures.select(plain).to_pylist()
    rows, wanted_rows = objects.to_pylist(), wanted_objects.to_pylist()
    assert [(r["key"], r["object"]) for r in rows] == [(r["key"], r["object"]) for r in wanted_rows]
    for row, wanted in zip(rows, wanted_rows, strict=True):
        for name, value in row.items():
            if name == "heatmap":
                levels, expected_levels = (np.frombuffer(v, np.uint8).astype(int) for v in (value, wanted[name]))
                assert np.abs(levels - expected_levels).max() <= LEVEL, (row["key"], row["object"])
            elif isinstance(value, float):
                assert abs(value - wanted[name]) <= 1e-3 * max(abs(wanted[name]), 1), (row["key"], name, value)
            else:
                assert value == wanted[name], (row["key"], name)
