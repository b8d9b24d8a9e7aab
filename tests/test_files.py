"""Files and folders that are written whole or not at all."""

import errno
from pathlib import Path

import pytest

from detcam.files import whole_folder, write_whole


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_file_that_cannot_be_written_stays_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_whole(tmp_path / "a.json", b"old")
    write_whole(tmp_path / "a.json", b"new")
    assert tree(tmp_path) == {"a.json": b"new"}

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(tmp_path / "a.json", b"newer")
    assert tree(tmp_path) == {"a.json": b"new"}


def interrupted(folder: Path) -> None:
    with whole_folder(folder) as work:
        (work / "a").write_bytes(b"half")
        raise KeyboardInterrupt


@pytest.mark.parametrize("exists", [False, True])
def test_a_folder_that_cannot_be_written_stays_as_it_was(exists: bool, tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "out"
    if exists:
        folder.mkdir(parents=True)
        (folder / "kept").write_bytes(b"kept")
        (folder / "a").write_bytes(b"old")
    before = tree(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        interrupted(folder)
    assert tree(tmp_path) == before
    assert folder.exists() == exists
    with whole_folder(folder) as work:
        (work / "a").write_bytes(b"new")
        assert tree(folder).get("a") == (b"old" if exists else None)
    assert tree(folder) == ({"kept": b"kept"} if exists else {}) | {"a": b"new"}
