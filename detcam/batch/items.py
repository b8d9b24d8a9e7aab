"""What the rooms of a job hand to each other: pictures still to be read, chunks of them, and where they come from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True)
class Item:
    """One picture of a source, not read yet.

    Attributes:
        key: unique in the source: the path relative to the source's root, or the record's own key.
        uri: where it lies, for people to read, and all that is needed to read it again: a path or an fsspec URL, and
            for a picture inside a larger file the part of it behind `#`, see `detcam.batch.sources.read`.
        data: the file's bytes, where they came with the record; None: read them from `uri`.
    """

    key: str
    uri: str
    data: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Chunk:
    """Pictures that are explained together and become one shard; the same number always has the same pictures.

    Attributes:
        number: its place among the chunks of the source.
        places: the places of its pictures among those of the source.
        items: its pictures, in the source's order.
        again: these are only those that failed when the shard was made: whoever runs the job puts them in their places.
    """

    number: int
    places: Sequence[int]
    items: tuple[Item, ...]
    again: bool = False

    def __len__(self) -> int:
        return len(self.items)


class Source(Protocol):
    """Pictures in a fixed order. Opening a source reads its keys, not its pictures."""

    @property
    def name(self) -> str:
        """What the user called it."""

    def count(self) -> int:
        """How many pictures there are."""

    def fingerprint(self) -> str:
        """A digest of all keys in their order: the same for the same pictures, wherever the source was moved to."""

    def items(self, start: int = 0, stop: int | None = None) -> Iterator[Item]:
        """The pictures from place `start` up to `stop`, lazily; what comes before is skipped without being read."""


def chunks(
    source: Source,
    size: int,
    skip: frozenset[int] = frozenset(),
    again: Mapping[int, Sequence[int]] | None = None,
) -> Iterator[Chunk]:
    """The pictures of a source in chunks of `size`, lazily.

    Args:
        source: all pictures.
        size: how many a chunk has.
        skip: the numbers of chunks that are left out.
        again: numbers of chunks of which only the pictures at these places of the source are taken.
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
