"""Pictures read and decoded ahead of the model, those of like size together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from detcam.batch.items import Item
from detcam.batch.sources.read import read_bytes
from detcam.errors import ImageError
from detcam.images import decode_image, stored_size

T = TypeVar("T")

WINDOW = 32  # pictures whose files are in memory at a time, and among which those of like size are looked for
READERS = 8  # files read or decoded at the same time: an object store answers slowly, but many at once
PIXELS = 32 * 2**20  # of a batch: larger pictures come in smaller batches


@dataclass(frozen=True)
class Picture:
    """An item that was read.

    Attributes:
        position: its place among the items.
        item: what was read.
        image: [H, W, 3] uint8 RGB; None: it could not be read or decoded.
        error: why not.
    """

    position: int
    item: Item
    image: np.ndarray | None
    error: str = ""


@dataclass(frozen=True)
class _File:
    position: int
    item: Item
    data: bytes
    error: str
    size: tuple[int, int]  # (height, width); zeros if it is no picture


def batches(items: Sequence[Item], size: int, tick: Callable[[], None] = lambda: None) -> Iterator[list[Picture]]:
    """All items in batches of up to `size` pictures of like size; the next batch is decoded while one is in use.

    Args:
        items: the pictures.
        size: of a batch.
        tick: called, in some thread, whenever a file was read or decoded.
    """
    with ThreadPoolExecutor(READERS) as readers:
        yield from ahead(_batches(items, size, readers, tick))


def _batches(
    items: Sequence[Item], size: int, readers: ThreadPoolExecutor, tick: Callable[[], None]
) -> Iterator[list[Picture]]:
    for first in range(0, len(items), WINDOW):
        window = range(first, min(first + WINDOW, len(items)))
        files = list(_ticking(readers.map(_file, window, [items[i] for i in window]), tick))
        for group in _alike(files, size):
            yield list(_ticking(readers.map(_decoded, group), tick))


def _ticking(values: Iterable[T], tick: Callable[[], None]) -> Iterator[T]:
    for value in values:
        tick()
        yield value


def _file(position: int, item: Item) -> _File:
    try:
        data = read_bytes(item)
    except ImageError as error:
        return _File(position, item, b"", str(error), (0, 0))
    return _File(position, item, data, "", stored_size(data) or (0, 0))


def _alike(files: Sequence[_File], size: int) -> Iterator[list[_File]]:
    """Groups of up to `size`: sorted by aspect, since pictures of one aspect get one shape in the network's input."""
    group: list[_File] = []
    for file in sorted(files, key=lambda f: (f.size[0] / max(f.size[1], 1), f.size)):
        pixels = sum(height * width for height, width in (f.size for f in (*group, file)))
        if group and (len(group) == size or pixels > PIXELS):
            yield group
            group = []
        group.append(file)
    if group:
        yield group


def _decoded(file: _File) -> Picture:
    if file.error:
        return Picture(file.position, file.item, None, file.error)
    try:
        return Picture(file.position, file.item, decode_image(file.data, file.item.uri))
    except ImageError as error:
        return Picture(file.position, file.item, None, str(error))
    except Exception as error:  # memory, or a decoder's own: the other pictures go on
        return Picture(file.position, file.item, None, f"{file.item.uri} cannot be decoded ({error!r})")


def ahead(values: Iterator[T]) -> Iterator[T]:
    """The same values, each made in a thread while the one before is in use."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, values, None)
        while (value := coming.result()) is not None:
            coming = thread.submit(next, values, None)
            yield value
