"""Opens a source: a folder, glob, list, COCO, Parquet or tar file, on disk or in an object store."""

import json
import os
import posixpath
from collections.abc import Iterator
from typing import Any

from detcam.batch.items import Source
from detcam.batch.sources import storage
from detcam.batch.sources.archives import parquet_source, tar_source
from detcam.errors import InputError
from detcam.images import SUFFIXES

TARS, PACKED_TARS = (".tar",), (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
KINDS = "a folder, a glob, a .txt list, a COCO .json, .parquet or WebDataset .tar files, or a URL of one of these"
LOOKED_FOR = 10  # images of a COCO file of which at least one must exist


def open_source(
    src: str | os.PathLike[str],
    *,
    root: str | os.PathLike[str] | None = None,
    column: str | None = None,
    key: str | None = None,
    web: bool = False,
) -> Source:
    """The images of `src`, in a fixed order.

    - A folder: every image under it, by suffix. Key: path in the folder.
    - A glob like `photos/**/*.jpg`: every file that matches. Key: path in the folder before the first `*`.
    - A `.txt` file: a path or URL per line, relative to the list. Key: the line.
    - A COCO `.json` file: its `images`. Key: `file_name`.
    - A `.parquet` file or a glob of them: an image per row. Key: the column `key`; else the path if rows hold paths;
      else `FILE#ROW`.
    - A WebDataset `.tar` file, a glob of them, or braces like `train-{000..012}.tar`. Key: the name without suffix.

    Each may lie in an object store: `s3://bucket/photos`.

    Args:
        src: path, glob or URL.
        root: folder of the images of a list, a COCO file or a Parquet file's paths. Default: the folder of the file;
            for a COCO file the folder `images` in it, if it exists.
        column: column of images in Parquet, or suffix of images in a tar. Default: the only one.
        key: column of keys in Parquet.
        web: allow http(s) URLs.

    Raises:
        InputError: if `src` is missing, empty, damaged or of another kind, and for two images with the same key.
    """
    src = os.fspath(src)
    folder = None if root is None else os.fspath(root)
    storage.check(src, web)
    kind = src.lower()
    if kind.endswith(PACKED_TARS):
        raise InputError(f"{src} is compressed, so its images can only be read from start to end: unpack it to a .tar")
    if kind.endswith((*TARS, ".parquet")):
        source = _packed(src, folder, column, key, web)
    elif storage.has_pattern(src):
        base, names = storage.expand(src)
        source = storage.files(src, base, names)
    elif kind.endswith(".json") and not storage.is_folder(src):
        source = _coco(src, folder)
    elif kind.endswith(".txt") and not storage.is_folder(src):
        source = storage.files(src, folder or storage.parent(src), _lines(src), web)
    elif storage.is_folder(src):
        source = storage.files(src, src, (name for name in storage.walk(src) if name.lower().endswith(SUFFIXES)))
    elif storage.is_file(src):
        raise InputError(f"{src} is not a set of images: give {KINDS}")
    else:
        raise InputError(f"{src} does not exist: give {KINDS}")
    if not source.count():
        raise InputError(f"{src} holds no images ({' '.join(SUFFIXES)}): give {KINDS}")
    return source


def _read_text(place: str) -> str:
    with storage.open_file(place) as file:
        data = file.read()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{place} is not UTF-8 text ({error}): save it as UTF-8") from None


def _lines(place: str) -> Iterator[str]:
    lines = _read_text(place).split("\n")
    for number, line in enumerate((line.strip() for line in lines), start=1):
        if "\0" in line or (storage.is_url(place) and line.startswith("/")):
            raise InputError(f"{place}, line {number}: {line[:80]!r} is not a path of an image there: correct the line")
        if line:
            yield storage.normal(line)


def _coco(place: str, root: str | None) -> Source:
    try:
        document: Any = json.loads(_read_text(place))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place} is not valid JSON ({error}): give COCO's file of instances") from None
    images = document.get("images") if isinstance(document, dict) else None
    if not isinstance(images, list):
        raise InputError(f'{place} has no list "images": give COCO\'s file of instances, or a .txt list of paths')
    beside = storage.join(storage.parent(place), "images")
    folder = root or (beside if storage.is_folder(beside) else storage.parent(place))
    source = storage.files(place, folder, (_file_name(place, number, image) for number, image in enumerate(images)))
    first = list(source.items(0, LOOKED_FOR))
    if first and not any(storage.is_file(item.uri) for item in first):
        raise InputError(f"{place}: {first[0].uri} does not exist: give the folder of its images with --root")
    return source


def _file_name(place: str, number: int, image: Any) -> str:
    name = image.get("file_name") if isinstance(image, dict) else None
    if not isinstance(name, str) or not name or "\0" in name:
        raise InputError(f'{place}: image {number} has no "file_name": write one')
    relative = storage.normal(name.replace("\\", "/") if "\\" in name and "/" not in name else name)
    if storage.is_url(name) or relative.startswith(("/", "../")) or relative in (".", ".."):
        raise InputError(f"{place}: image {number} is called {name!r}, which leaves the folder of images: correct it")
    return relative


def _packed(src: str, root: str | None, column: str | None, key: str | None, web: bool) -> Source:
    base, files = storage.expand(src) if storage.has_pattern(src) else (storage.parent(src), [posixpath.basename(src)])
    names = list(files)
    if not names:
        raise InputError(f"{src}: no file matches: check the path")
    if src.lower().endswith(TARS):
        return tar_source(src, base, names, column)
    return parquet_source(src, base, names, root, column, key, web)
