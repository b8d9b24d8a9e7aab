"""Where a job's files lie: a folder on disk, or one of an object store through fsspec."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from detcam.batch.sources.storage import is_url, opened_store
from detcam.errors import InputError, OutputError


class Folder:
    """A folder of files that appear whole or not at all.

    On disk a file is written beside its place, under a name that begins with a dot, and renamed; an object store's put
    is whole by itself.

    Args:
        name: a path, or a URL that fsspec opens (`s3://bucket/heat`).
    """

    def __init__(self, name: str | os.PathLike[str]) -> None:
        self.name = os.fspath(name).rstrip("/") or "/"
        self.local = None if is_url(self.name) else Path(self.name)

    def __truediv__(self, name: str) -> Folder:
        return Folder(f"{self.name}/{name}")

    def names(self) -> list[str]:
        """The names of the files and folders in it, sorted; none if there is no such folder. Hidden ones are left out.

        Raises:
            OutputError: if it is no folder, or cannot be listed.
        """
        try:
            with _as_os_errors():
                return sorted(name for name in self._listed() if not name.startswith("."))
        except OSError as error:
            raise OutputError(f"{self.name} cannot be listed ({error.strerror or error}): choose another") from None

    def _listed(self) -> set[str]:
        if self.local is not None:
            return set(os.listdir(self.local)) if self.local.exists() else set()
        system, path = opened_store(self.name)
        system.invalidate_cache()  # or a listing of an hour ago would come back
        try:
            found = system.ls(path, detail=False)
        except FileNotFoundError:
            return set()
        own = path.rstrip("/")
        return {one.rstrip("/").rpartition("/")[2] for one in found if one.rstrip("/") != own}

    def read(self, name: str) -> bytes:
        """The bytes of a file in it.

        Raises:
            OSError: if it cannot be read.
        """
        if self.local is not None:
            return (self.local / name).read_bytes()
        system, path = opened_store(self.name)
        with _as_os_errors():
            data: bytes = system.cat_file(f"{path}/{name}")
        return data

    def write(self, name: str, data: bytes) -> None:
        """Write a file, or replace it; the folder is made if it does not exist.

        Raises:
            OutputError: if it cannot be written.
        """
        try:
            if self.local is None:
                system, path = opened_store(self.name)
                with _as_os_errors():
                    system.pipe_file(f"{path}/{name}", data)
            else:
                self._write_local(self.local, name, data)
        except OSError as error:
            reason = error.strerror or error
            raise OutputError(
                f"{self.name}/{name} cannot be written ({reason}): free space or check permissions, then go on with "
                "--resume"
            ) from None

    @staticmethod
    def _write_local(folder: Path, name: str, data: bytes) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        beside = folder / f".{name}.{os.getpid()}.part"
        try:
            with open(beside, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, folder / name)
        finally:
            beside.unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        """Remove a file of it.

        Raises:
            OutputError: if it cannot be removed.
        """
        try:
            if self.local is not None:
                (self.local / name).unlink(missing_ok=True)
                return
            system, path = opened_store(self.name)
            with _as_os_errors():
                system.rm_file(f"{path}/{name}")
        except OSError as error:
            raise OutputError(f"{self.name}/{name} cannot be removed ({error.strerror or error}): remove it") from None

    def tidy(self) -> None:
        """Remove what writers that were killed left half-written."""
        if self.local is not None and self.local.is_dir():
            for left in self.local.glob(".*.part"):
                left.unlink(missing_ok=True)


@contextmanager
def _as_os_errors() -> Iterator[None]:
    """An object store's library raises errors of its own."""
    try:
        yield
    except (OSError, InputError):
        raise
    except Exception as error:
        raise OSError(" ".join(str(error).split()) or type(error).__name__) from error
