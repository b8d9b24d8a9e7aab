"""Folder of files on disk or in an object store, for the shards of a dataset."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from detcam.batch.sources.storage import opened_store, path_on_disk
from detcam.errors import DetcamError, OutputError, writing
from detcam.files import write_whole


class Folder:
    """A folder of files that are written whole or not at all: a path, or a URL for fsspec (`s3://bucket/heat`).

    On disk a file is written under a hidden name and renamed; an object store's put is atomic by itself.
    """

    def __init__(self, name: str | os.PathLike[str]) -> None:
        self.name = os.fspath(name).rstrip("/") or "/"
        path = path_on_disk(self.name)
        self.local = None if path is None else Path(path)  # on disk; None in an object store

    def __truediv__(self, name: str) -> Folder:
        return Folder(f"{self.name}/{name}")

    def names(self) -> list[str]:
        """The sorted names in it without hidden ones, [] if it does not exist; an OutputError if that fails."""
        try:
            with self._store() as (system, path):
                system.invalidate_cache()  # else an earlier listing would come back
                paths = [entry.rstrip("/") for entry in system.ls(path, detail=False)]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise OutputError(f"{self.name} cannot be listed ({error.strerror or error}): choose another") from None
        names = {entry.rpartition("/")[2] for entry in paths if entry != path.rstrip("/")}
        return sorted(name for name in names if not name.startswith("."))

    def read(self, name: str) -> bytes:
        """The bytes of a file in it; an OSError if the file cannot be read."""
        with self._store() as (system, path):
            return bytes(system.cat_file(f"{path}/{name}"))

    def write(self, name: str, data: bytes) -> None:
        """Write a file, or replace it, and make the folder if need be; an OutputError if that fails."""
        with writing(f"{self.name}/{name}", "free space or check permissions, then go on with --resume"):
            if self.local is not None:
                self.local.mkdir(parents=True, exist_ok=True)
                write_whole(self.local / name, data)
                return
            with self._store() as (system, path):
                system.pipe_file(f"{path}/{name}", data)

    def remove(self, name: str) -> None:
        """Remove a file of it, if it is there; an OutputError if the file cannot be removed."""
        try:
            with suppress(FileNotFoundError), self._store() as (system, path):
                system.rm_file(f"{path}/{name}")
        except OSError as error:
            raise OutputError(f"{self.name}/{name} cannot be removed ({error.strerror or error}): delete it") from None

    def tidy(self) -> None:
        """Remove unfinished files of writers that were killed."""
        if self.local is not None and self.local.is_dir():
            for unfinished in self.local.glob(".*.part"):
                unfinished.unlink(missing_ok=True)

    @contextmanager
    def _store(self) -> Iterator[tuple[Any, str]]:
        """Its file system and its path there; the errors of an object store's library become OSError."""
        try:
            yield opened_store(self.name)
        except (OSError, DetcamError):
            raise
        except Exception as error:
            raise OSError(" ".join(str(error).split()) or type(error).__name__) from error
