"""Images that are not read yet: one (Item), those of a shard (Chunk), and all of a job (Source)."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from detcam.errors import InputError


@dataclass(frozen=True)
class Item:
    """An image of a source, not read yet."""

    key: str  # unique in the source: path relative to the source's root, or key of the record
    uri: str  # path or fsspec URL, with the part of a larger file behind `#`, see `detcam.batch.sources.read`
    data: bytes | None = field(default=None, repr=False)  # of the file if they came with the record; None: read `uri`


@dataclass(frozen=True)
class Chunk:
    """Images that are explained together and become a shard; a number always has the same images."""

    number: int  # place among the chunks of the source
    places: Sequence[int]  # places of its images in the source
    items: tuple[Item, ...]  # its images, in the source's order
    # Has only the images that failed when the shard was made; the job merges their rows into the shard.
    again: bool = False

    def __len__(self) -> int:
        return len(self.items)

    def singles(self) -> list[Chunk]:
        """A chunk for each image."""
        pairs = zip(self.places, self.items, strict=True)
        return [replace(self, places=(place,), items=(item,)) for place, item in pairs]


class Source:
    """Images in a fixed order. Their keys are in memory; the images are read later: `item` gives the image at a place.

    `name` is SRC as the user gave it. Raises an InputError for two images with the same key.
    """

    def __init__(self, name: str, keys: Sequence[str], item: Callable[[int], Item]) -> None:
        self.name, self._keys, self._item = name, keys, item
        if len(set(keys)) < len(keys):
            repeated = next(key for key, count in Counter(keys).items() if count > 1)
            raise InputError(f"{name}: two images are called {repeated!r}: rename one, or leave it out")

    def count(self) -> int:
        """The number of images."""
        return len(self._keys)

    def fingerprint(self) -> str:
        """A digest of all keys in order: the same for the same images, also after the source was moved."""
        digest = hashlib.sha256()
        for key in self._keys:
            data = key.encode()
            digest.update(b"%d:%s" % (len(data), data))
        return digest.hexdigest()

    def items(self, start: int = 0, stop: int | None = None) -> Iterator[Item]:
        """The images from place `start` up to `stop`, lazily; earlier images are not read."""
        return map(self._item, range(len(self._keys))[start:stop])


def chunks(
    source: Source, size: int, skip: frozenset[int] = frozenset(), again: Mapping[int, Sequence[int]] | None = None
) -> Iterator[Chunk]:
    """The images of a source in chunks of `size` images, lazily, without the chunks whose numbers are in `skip`.

    `again` holds, for each number of a chunk to do again, the places of its images in the source that are taken.
    """
    count, again = source.count(), again or {}
    for number, start in enumerate(range(0, count, size)):
        if number in again:
            places = tuple(again[number])
            items = tuple(item for place in places for item in source.items(place, place + 1))
            yield Chunk(number, places, items, again=True)
        elif number not in skip:
            stop = min(start + size, count)
            yield Chunk(number, range(start, stop), tuple(source.items(start, stop)))
