"""Sources of image files, whose names are the keys."""

import os
import posixpath
from collections.abc import Iterable, Sequence

from detcam.batch.items import Item, Source
from detcam.batch.sources import storage


def files(name: str, folder: str, paths: Iterable[str], web: bool = False, keys: Sequence[str] | None = None) -> Source:
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
    return Source(name, named, lambda i: Item(named[i], storage.join(folder, listed[i])))


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
