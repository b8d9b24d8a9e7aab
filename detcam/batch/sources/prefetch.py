"""Reads and decodes images ahead of the model, in batches of similar size."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np

from detcam.batch.items import Item
from detcam.batch.sources.read import read_bytes
from detcam.errors import ImageError
from detcam.images import decode_image, stored_size

T = TypeVar("T")

WINDOW = 32  # images whose files are in memory at a time, and among which batches are formed
READERS = 8  # files read or decoded in parallel: an object store answers slowly
PIXELS = 32 * 2**20  # of a batch: larger images come in smaller batches


@dataclass(frozen=True)
class Picture:
    """An item that was read, and then decoded."""

    position: int  # index in the list of items
    item: Item
    data: bytes = b""  # the bytes of the file until they are decoded
    size: tuple[int, int] = (0, 0)  # (height, width) as stored in the file; zeros if it is not an image
    # [H, W, C], see `detcam.images.read_image`; None before it is decoded, or if that failed.
    image: np.ndarray | None = None
    error: str = ""  # the reason if it could not be read or decoded


def batches(
    items: Sequence[Item], size: int, tick: Callable[[], None] = lambda: None, reading: tuple[int, bool] = (3, False)
) -> Iterator[list[Picture]]:
    """All items in batches of up to `size` images of similar size; the next batch is decoded while a batch is in use.

    `tick` is called, in any thread, whenever a file was read or decoded; for `reading` see `Adapter.reading`.
    """
    with ThreadPoolExecutor(READERS) as readers:
        yield from ahead(_batches(items, size, readers, tick, reading))


def _batches(
    items: Sequence[Item], size: int, readers: ThreadPoolExecutor, tick: Callable[[], None], reading: tuple[int, bool]
) -> Iterator[list[Picture]]:
    for first in range(0, len(items), WINDOW):
        window = range(first, min(first + WINDOW, len(items)))
        files = list(_ticking(readers.map(_read, window, [items[i] for i in window]), tick))
        for group in _alike(files, size):
            yield list(_ticking(readers.map(partial(_decoded, reading), group), tick))


def _ticking(values: Iterable[T], tick: Callable[[], None]) -> Iterator[T]:
    for value in values:
        tick()
        yield value


def _read(position: int, item: Item) -> Picture:
    try:
        data = read_bytes(item)
    except ImageError as error:
        return Picture(position, item, error=str(error))
    return Picture(position, item, data, stored_size(data) or (0, 0))


def _alike(files: Sequence[Picture], size: int) -> Iterator[list[Picture]]:
    """Groups of up to `size` by aspect ratio: images of equal aspect have equal shapes in the network's input."""
    group: list[Picture] = []
    for file in sorted(files, key=lambda f: (f.size[0] / max(f.size[1], 1), f.size)):
        pixels = sum(height * width for height, width in (f.size for f in (*group, file)))
        if group and (len(group) == size or pixels > PIXELS):
            yield group
            group = []
        group.append(file)
    if group:
        yield group


def _decoded(reading: tuple[int, bool], file: Picture) -> Picture:
    if file.error:
        return file
    try:
        return replace(file, data=b"", image=decode_image(file.data, file.item.uri, *reading))
    except ImageError as error:
        return replace(file, data=b"", error=str(error))
    except Exception as error:  # out of memory, an error of the decoder, ...: the other images go on
        return replace(file, data=b"", error=f"{file.item.uri} cannot be decoded ({error!r})")


def ahead(values: Iterator[T]) -> Iterator[T]:
    """The same values; each is computed in a thread while the previous value is in use."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, values, None)
        while (value := coming.result()) is not None:
            coming = thread.submit(next, values, None)
            yield value
