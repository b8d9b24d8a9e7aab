"""A source whose keys are in memory, and the names of files that become keys."""

from __future__ import annotations

import hashlib
import os
import posixpath
from collections.abc import Callable, Iterable, Iterator, Sequence

from detcam.batch.items import Item
from detcam.batch.sources import storage as places
from detcam.errors import InputError


class Listed:
    """A Source whose keys are in memory.

    Args:
        name: what the user called it.
        keys: one for each picture, in order.
        item: the picture at a place.

    Raises:
        InputError: for two pictures of one key.
    """

    def __init__(self, name: str, keys: Sequence[str], item: Callable[[int], Item]) -> None:
        self._name, self._keys, self._item = name, keys, item
        twice = _first_repeated(keys)
        if twice is not None:
            raise InputError(f"{name}: two pictures are called {twice!r}: rename one, or leave it out")

    @property
    def name(self) -> str:
        """See `Source.name`."""
        return self._name

    def count(self) -> int:
        """See `Source.count`."""
        return len(self._keys)

    def fingerprint(self) -> str:
        """See `Source.fingerprint`."""
        digest = hashlib.sha256()
        for key in self._keys:
            data = key.encode()
            digest.update(b"%d:%s" % (len(data), data))
        return digest.hexdigest()

    def items(self, start: int = 0, stop: int | None = None) -> Iterator[Item]:
        """See `Source.items`."""
        return map(self._item, range(len(self._keys))[start:stop])


def _first_repeated(keys: Sequence[str]) -> str | None:
    if len(set(keys)) == len(keys):
        return None
    seen: set[str] = set()
    return next(key for key in keys if key in seen or seen.add(key))  # type: ignore[func-returns-value]


def files(name: str, folder: str, paths: Iterable[str], web: bool = False, keys: Sequence[str] | None = None) -> Listed:
    """A source of files, named relative to `folder`, absolutely, or by URLs; their names are the keys without `keys`.

    Raises:
        InputError: for two pictures of one key, and for URLs that are not allowed.
    """
    listed = list(paths)
    for path in listed:
        places.check(path, web)
    named = [text(path) for path in listed] if keys is None else keys

    def item(i: int) -> Item:
        return Item(named[i], listed[i] if places.is_url(listed[i]) else places.join(folder, listed[i]))

    return Listed(name, named, item)


def text(path: str) -> str:
    r"""A name of a file as text that can be written as UTF-8: bytes that are none become `\xff`."""
    if path.isascii():
        return path
    try:
        data = os.fsencode(path)
    except UnicodeEncodeError:  # half of a pair of surrogates: no file's name, but JSON can say it
        data = path.encode("utf-8", "backslashreplace")
    return data.decode("utf-8", "backslashreplace")


def normal(path: str) -> str:
    """`./a//b/../c.jpg` as `a/c.jpg`; URLs as they are."""
    return path if places.is_url(path) else posixpath.normpath(path)
