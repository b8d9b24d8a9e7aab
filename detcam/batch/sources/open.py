"""Where a job's pictures come from: folders, globs, lists, COCO, Parquet and tar files, here or in an object store."""

from __future__ import annotations

import json
import os
import posixpath
from collections.abc import Iterator
from typing import Any

from detcam.batch.items import Source
from detcam.batch.sources import storage as places
from detcam.batch.sources.archives import parquet_source, tar_source
from detcam.batch.sources.listed import Listed, files, normal
from detcam.errors import InputError
from detcam.images import SUFFIXES

TARS, PACKED_TARS = (".tar",), (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
KINDS = "a folder, a glob, a .txt list, a COCO .json, .parquet or WebDataset .tar files, or a URL of one of these"
LOOKED_FOR = 10  # pictures of a COCO file of which at least one must be there


def open_source(
    src: str | os.PathLike[str],
    *,
    root: str | os.PathLike[str] | None = None,
    column: str | None = None,
    key: str | None = None,
    web: bool = False,
) -> Source:
    """The pictures that `src` names, in a fixed order.

    - a folder: every picture under it, by suffix; key: its path in the folder.
    - a glob like `photos/**/*.jpg`: every file that matches; key: its path in the folder before the first `*`.
    - a `.txt` file: one path or URL per line, relative to the list; key: the line.
    - a COCO `.json` file: its `images`; key: `file_name`.
    - `.parquet` files, one or a glob: a row is a picture; key: of the column `key`, else the path that comes with the
      picture where the rows hold paths, else `FILE#ROW`.
    - WebDataset `.tar` files, one, a glob or with braces as in `train-{000..012}.tar`: key: the name without suffix.

    Each may lie in an object store: `s3://bucket/photos`.

    Args:
        src: one of these.
        root: where the pictures of a list, a COCO file or a Parquet file's paths lie. Default: the folder of the file;
            of a COCO file the folder `images` in it, if there is one.
        column: the pictures' column in Parquet, or their suffix in a tar. Default: the only one there is.
        key: the keys' column in Parquet.
        web: allow http(s) URLs.

    Raises:
        InputError: for what is missing, empty, damaged or of no such kind, and for two pictures of one key.
    """
    src = os.fspath(src)
    folder = None if root is None else os.fspath(root)
    places.check(src, web)
    kind = src.lower()
    if kind.endswith(PACKED_TARS):
        raise InputError(f"{src} is compressed, so its pictures can only be read in one go: unpack it to a .tar")
    if kind.endswith((*TARS, ".parquet")):
        source = _packed(src, folder, column, key, web)
    elif places.has_pattern(src):
        base, found = places.expand(src)
        source = files(src, base, found)
    elif kind.endswith(".json") and not places.is_folder(src):
        source = _coco(src, folder)
    elif kind.endswith(".txt") and not places.is_folder(src):
        source = files(src, folder or places.parent(src), _lines(src), web)
    elif places.is_folder(src):
        source = files(src, src, (name for name in places.walk(src) if name.lower().endswith(SUFFIXES)))
    elif places.is_file(src):
        raise InputError(f"{src} is no set of pictures: give {KINDS}")
    else:
        raise InputError(f"{src} does not exist: give {KINDS}")
    if not source.count():
        raise InputError(f"{src} holds no pictures ({' '.join(SUFFIXES)}): give {KINDS}")
    return source


def _read_text(place: str) -> str:
    with places.open_file(place) as file:
        data = file.read()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{place} is no text in UTF-8 ({error}): save it as UTF-8") from None


def _lines(place: str) -> Iterator[str]:
    lines = _read_text(place).split("\n")
    for number, line in enumerate((line.strip() for line in lines), start=1):
        if "\0" in line or (places.is_url(place) and line.startswith("/")):
            raise InputError(f"{place}, line {number}: {line[:80]!r} is no path of a picture there: correct the line")
        if line:
            yield normal(line)


def _coco(place: str, root: str | None) -> Listed:
    try:
        document: Any = json.loads(_read_text(place))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place} is no JSON ({error}): give COCO's file of instances") from None
    images = document.get("images") if isinstance(document, dict) else None
    if not isinstance(images, list):
        raise InputError(f'{place} has no list "images": give COCO\'s file of instances, or a .txt list of paths')
    beside = places.join(places.parent(place), "images")
    folder = root or (beside if places.is_folder(beside) else places.parent(place))
    source = files(place, folder, (_file_name(place, number, image) for number, image in enumerate(images)))
    first = list(source.items(0, LOOKED_FOR))
    if first and not any(places.is_file(item.uri) for item in first):
        raise InputError(f"{place}: {first[0].uri} does not exist: give the folder of its pictures with --root")
    return source


def _file_name(place: str, number: int, image: Any) -> str:
    name = image.get("file_name") if isinstance(image, dict) else None
    if not isinstance(name, str) or not name or "\0" in name:
        raise InputError(f'{place}: image {number} has no "file_name": write one')
    relative = normal(name.replace("\\", "/") if "\\" in name and "/" not in name else name)
    if places.is_url(name) or relative.startswith(("/", "../")) or relative in (".", ".."):
        raise InputError(f"{place}: image {number} is called {name!r}, which leaves the folder of pictures: correct it")
    return relative


def _packed(src: str, root: str | None, column: str | None, key: str | None, web: bool) -> Source:
    base, names = places.expand(src) if places.has_pattern(src) else (places.parent(src), [posixpath.basename(src)])
    found = list(names)
    if not found:
        raise InputError(f"{src}: no file matches: check the path")
    if src.lower().endswith(TARS):
        return tar_source(src, base, found, column)
    return parquet_source(src, base, found, root, column, key, web)
