"""Source with its keys in memory, and file names as keys."""

from __future__ import annotations

import hashlib
import os
import posixpath
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

from detcam.batch.items import Item
from detcam.batch.sources import storage
from detcam.errors import InputError


class Listed:
    """A Source whose keys are in memory.

    Args:
        name: SRC as the user gave it.
        keys: key of each image, in order.
        item: gives the image at a place.

    Raises:
        InputError: for two images with the same key.
    """

    def __init__(self, name: str, keys: Sequence[str], item: Callable[[int], Item]) -> None:
        self._name, self._keys, self._item = name, keys, item
        if len(set(keys)) < len(keys):
            repeated = next(key for key, count in Counter(keys).items() if count > 1)
            raise InputError(f"{name}: two images are called {repeated!r}: rename one, or leave it out")

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


def files(name: str, folder: str, paths: Iterable[str], web: bool = False, keys: Sequence[str] | None = None) -> Listed:
    """A source of image files.

    Args:
        name: SRC as the user gave it.
        folder: folder that relative paths refer to.
        paths: relative paths, absolute paths or URLs.
        web: allow http(s) URLs.
        keys: key of each image; None: its path.

    Raises:
        InputError: for two images with the same key, and for URLs that are not allowed.
    """
    listed = list(paths)
    for path in listed:
        storage.check(path, web)
    named = [text(path) for path in listed] if keys is None else keys
    return Listed(name, named, lambda i: Item(named[i], storage.join(folder, listed[i])))


def text(path: str) -> str:
    r"""A file name as text that can be encoded as UTF-8: bytes that are not valid become `\xff`."""
    if path.isascii():
        return path
    try:
        data = os.fsencode(path)
    except UnicodeEncodeError:  # half of a surrogate pair: not a file name, but possible in JSON
        data = path.encode("utf-8", "backslashreplace")
    return data.decode("utf-8", "backslashreplace")


def normal(path: str) -> str:
    """`./a//b/../c.jpg` as `a/c.jpg`; URLs unchanged."""
    return path if storage.is_url(path) else posixpath.normpath(path)
