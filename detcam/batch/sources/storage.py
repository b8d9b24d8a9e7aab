"""Storage: lists and opens files on disk and in object stores through fsspec; sources of image files.

A place is a path on this machine or a URL (`s3://bucket/photos`). Both are listed in the order of their names as text,
so a folder and its copy in a bucket give the same order.
"""

import itertools
import os
import posixpath
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import IO, Any

from detcam.batch.items import Item, Source
from detcam.errors import DependencyError, DetcamError, InputError

WEB = ("http", "https", "ftp")
STORES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oci", "oss", "hdfs", "hf", "file", "memory")
READ_AHEAD = 8 << 20  # bytes fetched at once from an object store when a file is read from start to end


def is_url(place: str) -> bool:
    """Whether `place` is a URL; anything else is a path."""
    return "://" in place


def check(place: str, web: bool = False) -> None:
    """Raise an InputError unless `place` is a path, or the URL of a known store or, with `web`, of the web."""
    if not is_url(place):
        return
    protocol = place.split("://")[0]
    if protocol in WEB and not web:
        raise InputError(f"{place} is on the web: download it first, or allow it with --web")
    if protocol not in (*STORES, *WEB):
        raise InputError(f"{place}: unknown kind of store {protocol!r}: use one of {', '.join(STORES)}")


def path_on_disk(place: str) -> str | None:
    """The path of a place on this machine; None for a place in a store."""
    path = place.removeprefix("file://")
    return None if is_url(path) else path


def opened_store(place: str) -> tuple[Any, str]:
    """The fsspec file system of a place, and the path in it; a DependencyError without the store's library."""
    if (path := path_on_disk(place)) is not None:
        from fsspec.implementations.local import LocalFileSystem

        return LocalFileSystem(), os.path.join(os.getcwd(), path)  # absolute: fsspec gives "~" and ":" a meaning
    from fsspec.core import url_to_fs

    try:
        system, path = url_to_fs(place)
    except ImportError as error:
        raise DependencyError(f'{place} cannot be opened ({error}): pip install "detcam[s3]" adds S3') from None
    return system, str(path)


def is_folder(place: str) -> bool:
    """Whether `place` is a folder, or a prefix under which a store has files."""
    with readable_errors(place):
        system, path = opened_store(place)
        return bool(system.isdir(path))


def is_file(place: str) -> bool:
    """Whether `place` is a file."""
    with readable_errors(place):
        system, path = opened_store(place)
        return bool(system.isfile(path))


def open_file(place: str) -> IO[bytes]:
    """The file, open for reading and seeking; an InputError if the file is missing or cannot be read."""
    with readable_errors(place):
        system, path = opened_store(place)
        file: IO[bytes] = system.open(path, "rb", block_size=READ_AHEAD)
        return file


def parent(place: str) -> str:
    """The folder of a file."""
    return os.path.dirname(place) or "."


def join(folder: str, name: str) -> str:
    """The place of `name` in `folder`; a URL stays as it is, and so does an absolute path if `folder` is a path."""
    if is_url(name):
        return name
    return f"{folder.rstrip('/')}/{name}" if is_url(folder) else os.path.join(folder, name)


def files(name: str, folder: str, paths: Iterable[str], web: bool = False, keys: Sequence[str] | None = None) -> Source:
    """A source of image files: paths relative to `folder`, absolute paths or URLs, which are the keys by default.

    `name` is SRC as the user gave it, `web` allows http(s) URLs. Raises an InputError for two images with the same key,
    and for URLs that are not allowed.
    """
    listed = list(paths)
    for path in listed:
        check(path, web)
    named = [text(path) for path in listed] if keys is None else keys
    return Source(name, named, lambda i: Item(named[i], join(folder, listed[i])))


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
    return path if is_url(path) else posixpath.normpath(path)


def walk(folder: str, depth: int | None = None) -> Iterator[str]:
    """The files under `folder`, as paths relative to it with `/`, in the order of their text.

    Names that begin with a dot are left out, as by `ls` and globs. Links are followed; without `depth`, the number of
    levels to list (1: the folder itself only), every real folder is entered once, so loops of links end. Raises an
    InputError if a folder cannot be listed.
    """
    path = path_on_disk(folder)
    return _walk_store(folder) if path is None else _walk_disk(path, depth)


def _walk_store(url: str) -> Iterator[str]:
    system, root = opened_store(url)
    root = root.rstrip("/")
    with readable_errors(url):
        system.invalidate_cache(root)  # else an earlier listing would come back
        paths = sorted(system.find(root))
    for path in paths:
        relative = path[len(root) :].lstrip("/")
        if relative and not any(part.startswith(".") for part in relative.split("/")):
            yield relative


def _walk_disk(folder: str, depth: int | None) -> Iterator[str]:
    entered: set[tuple[int, int]] = set()
    pending = [""]  # paths below the folder, the next one last; those of folders end with a slash
    while pending:
        name = pending.pop()
        if name and not name.endswith("/"):
            yield name
        elif depth is None or name.count("/") < depth:
            path = os.path.join(folder, name) if name else folder
            with readable_errors(path):
                info = os.stat(path)
            if depth is not None or (info.st_dev, info.st_ino) not in entered:
                entered.add((info.st_dev, info.st_ino))
                with readable_errors(path), os.scandir(path) as entries:  # names sort as whole paths do
                    names = sorted(filter(None, map(_name, entries)), reverse=True)
                pending += [name + child for child in names]


def _name(entry: os.DirEntry[str]) -> str | None:
    """The name, with a slash if it is a folder; None for hidden entries, and for pipes and devices, which may block."""
    if entry.name.startswith("."):
        return None
    if not entry.is_symlink():
        return entry.name + "/" if entry.is_dir() else entry.name if entry.is_file() else None
    try:
        mode = entry.stat().st_mode
    except OSError:
        return entry.name  # a broken link: reading it reports that
    return entry.name + "/" if stat.S_ISDIR(mode) else entry.name if stat.S_ISREG(mode) else None


def has_pattern(place: str) -> bool:
    """Whether `place` is a glob or has braces, and no file has this exact name."""
    return bool(re.search(r"[*?\[{]", place)) and (is_url(place) or not os.path.exists(place))


def expand(pattern: str) -> tuple[str, Iterable[str]]:
    """The files that match a glob: the folder that its fixed part names, and their paths relative to that.

    `*`, `?` and `[...]` match within a name, `**` matches any folders. `{a,b}` and `{000..012}` stand for each of their
    elements; if there is nothing else to match, the names are returned in this order and nothing is listed. Raises an
    InputError if the folder does not exist.
    """
    patterns = list(braces(pattern))
    root = _fixed_part(patterns)
    rests = [p[len(root) :].lstrip("/") for p in patterns]
    if not any(re.search(r"[*?\[]", rest) for rest in rests):
        return root or ".", rests
    if not is_folder(root or "."):
        raise InputError(f"{pattern}: there is no folder {root}: check the path")
    parts = [_parts(rest) for rest in rests]
    depth = None if any("**" in names for names in parts) else max(map(len, parts))
    files = walk(root or ".", depth)
    return root or ".", (name for name in files if any(_matches(names, name.split("/")) for names in parts))


def braces(pattern: str) -> Iterator[str]:
    """`a{1,2}` as `a1`, `a2`; `a{08..10}` as `a08`, `a09`, `a10`."""
    innermost = re.search(r"\{([^{}]*)\}", pattern)
    if innermost is None:
        yield pattern
        return
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", innermost.group(1))
    if numbers:
        first, last = numbers.groups()
        choices = [str(i).zfill(len(first)) for i in range(int(first), int(last) + 1)]
    else:
        choices = innermost.group(1).split(",")
    for choice in choices:
        yield from braces(pattern[: innermost.start()] + choice + pattern[innermost.end() :])


def _fixed_part(patterns: list[str]) -> str:
    """The folder that all patterns share, up to the first name with a wildcard."""
    shared = os.path.commonprefix(patterns)  # noqa: RUF071 (letters: commonpath would break URLs)
    magic = re.search(r"[*?\[]", shared)
    return shared[: magic.start() if magic else len(shared)].rpartition("/")[0] or ("/" if shared[:1] == "/" else "")


def _parts(pattern: str) -> list[str]:
    """The names of a pattern; a repeated `**` is one."""
    groups = itertools.groupby(posixpath.normpath(pattern).split("/"))
    return [part for name, same in groups for part in ([name] if name == "**" else same)]


def _matches(pattern: list[str], names: list[str]) -> bool:
    if not pattern:
        return not names
    if pattern[0] == "**":
        return any(_matches(pattern[1:], names[i:]) for i in range(len(names) + 1))
    return bool(names) and fnmatchcase(names[0], pattern[0]) and _matches(pattern[1:], names[1:])


@contextmanager
def readable_errors(place: str) -> Iterator[None]:
    """Turn errors of the operating system and of stores into an InputError of one line that names the place."""
    try:
        yield
    except DetcamError:
        raise
    except FileNotFoundError:
        raise InputError(f"{place} does not exist: check the path") from None
    except Exception as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__
        raise InputError(f"{place} cannot be read ({reason}): check the path and your permissions") from error
