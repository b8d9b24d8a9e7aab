"""The local engine: all of the work, whatever kills its processes; and none of them is left behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest
from photos import (
    OPTIONS,
    Deadly,
    Endless,
    Given,
    Stopping,
    assert_same_rows,
    items_of,
    joined,
    plain_work,
    write_photos,
)

from detcam import InputError
from detcam.batch.dataset.rows import Batch
from detcam.batch.engines.heartbeat import LOOK, Patience, Pulse
from detcam.batch.engines.local import LocalEngine, cores
from detcam.batch.items import Item, chunks
from detcam.batch.worker import Options
from detcam.errors import DetcamError


def workers_of(process: psutil.Process | None = None) -> list[psutil.Process]:
    """The workers that a process has now: what its fork server started, or it itself where there is none."""
    children = [c for c in (process or psutil.Process()).children(recursive=True) if "python" in c.name()]
    mains = {child.pid for child in children if child.ppid() == (process or psutil.Process()).pid}
    return [child for child in children if child.pid not in mains]


def test_a_killed_worker_costs_nothing(seed: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = Given(items_of(write_photos(tmp_path, seed, 10)))
    expected = joined(plain_work(source, 2))
    batches: list[Batch] = []
    killed: list[int] = []

    def keep(batch: Batch) -> None:
        batches.append(batch)
        if not killed:  # at the first result, the workers are in the midst of the next pictures
            victim = workers_of()[0]
            killed.append(victim.pid)
            victim.send_signal(signal.SIGKILL)

    LocalEngine(2, threads=1)(chunks(source, 2), OPTIONS, keep)
    assert killed
    assert_same_rows(joined(batches), expected)
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1
    assert "SIGKILL" in told[0]
    assert any(item.key in told[0] for item in source.items()), "the log names pictures"
    assert workers_of() == []


def test_a_picture_that_kills_workers_is_found(seed: int, tmp_path: Path) -> None:
    """Its chunk is done again, then picture by picture; it gets a row, and its neighbours get theirs."""
    items = items_of(write_photos(tmp_path, seed, 5))
    deadly: Any = Deadly("deadly.png")
    source = Given([*items[:2], deadly, *items[2:]])
    batches: list[Batch] = []
    LocalEngine(1, threads=1)(chunks(source, 3), OPTIONS, batches.append)
    objects, pictures = joined(batches)
    rows = pictures.to_pylist()
    assert [row["key"] for row in rows] == [item.key for item in source.items()]
    assert [row["status"] == "error" for row in rows] == [False, False, True, False, False, False]
    assert "deadly/deadly.png: the process that explained it died 2 times (SIGKILL" in rows[2]["error"]
    sound = pictures.filter([row["status"] != "error" for row in rows])
    assert_same_rows((objects, sound), joined(plain_work(Given(items), 5)))


def test_a_worker_that_is_stopped_costs_nothing(
    limit: float, seed: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = Given(items_of(write_photos(tmp_path, seed, 6)))
    batches: list[Batch] = []
    stopped: list[psutil.Process] = []

    def keep(batch: Batch) -> None:
        batches.append(batch)
        if not stopped:  # the worker has begun with the next pictures
            stopped.extend(workers_of())
            stopped[0].suspend()

    LocalEngine(1, threads=1, timeout=limit)(chunks(source, 2), OPTIONS, keep)
    assert_same_rows(joined(batches), joined(plain_work(source, 2)))
    assert f"worker-0 hung (longer than {limit:g} s) at chunk 1" in caplog.text
    assert not any(process.is_running() for process in stopped)


def test_a_picture_that_hangs_costs_its_row_only(limit: float, seed: int, tmp_path: Path) -> None:
    """A reader that waits for ever, and a process that no signal but SIGKILL ends; nothing of theirs is left."""
    items = items_of(write_photos(tmp_path, seed, 6))
    endless: Any = Endless("endless.png")
    stopping: Any = Stopping("stopping.png")
    source = Given([*items[:2], endless, *items[2:4], stopping, *items[4:]])
    batches: list[Batch] = []
    LocalEngine(2, threads=1, timeout=limit)(chunks(source, 4), OPTIONS, batches.append)
    objects, pictures = joined(batches)
    rows = pictures.to_pylist()
    assert [row["key"] for row in rows] == [item.key for item in source.items()]
    failed = {row["key"]: row["error"] for row in rows if row["status"] == "error"}
    assert list(failed) == ["endless.png", "stopping.png"]
    assert all(f"deadly/{key} took longer than {limit:g} s" in error for key, error in failed.items())
    sound = pictures.filter([row["status"] != "error" for row in rows])
    assert_same_rows((objects, sound), joined(plain_work(Given(items), 6)))
    assert workers_of() == []


def test_patience() -> None:
    """Only time in which nothing was done counts, once for each picture that is explained together with others."""
    pulse = Pulse(multiprocessing)
    patience = Patience(pulse)
    assert [patience.ended(1, limit=3) for _ in range(4)] == [False, False, True, True]
    pulse()
    assert [patience.ended(1, limit=3) for _ in range(4)] == [False, False, False, True]
    pulse(4)
    assert [patience.ended(1, limit=3) for _ in range(13)] == [False] * 12 + [True]
    patience.renew()
    assert [patience.ended(1, limit=3) for _ in range(3)] == [False, False, True]


def test_time_in_which_the_engine_was_stopped_does_not_count(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After Ctrl-Z all of a job has done nothing for long: no worker is to blame."""
    seen: list[float] = []
    monkeypatch.setattr(Patience, "ended", lambda self, seconds, limit: seen.append(seconds))
    clock = iter(range(0, 10**9, 3600))
    monkeypatch.setattr("detcam.batch.engines.local.monotonic", lambda: next(clock))
    LocalEngine(1, threads=1)(chunks(Given(items_of(write_photos(tmp_path, seed, 3))), 2), OPTIONS, lambda batch: None)
    assert set(seen) == {LOOK}


@pytest.mark.parametrize("wrong", [{"method": "nope"}, {"model": "nope.pt"}, {"layers": "nope"}])
def test_options_that_cannot_be_used_end_the_run(wrong: dict[str, str]) -> None:
    source = Given([Item(str(i), f"nowhere/{i}") for i in range(4)])
    with pytest.raises(InputError, match="nope"):
        LocalEngine(1)(chunks(source, 2), Options(**{"model": "scenes", **wrong}), lambda batch: None)
    assert workers_of() == []


class DeadlyOptions:
    """What ends the process that it is sent to."""

    def __reduce__(self) -> Any:
        return os._exit, (3,)


def test_workers_that_die_while_they_start() -> None:
    source = Given([Item("a", "nowhere/a")])
    options: Any = DeadlyOptions()
    with pytest.raises(DetcamError, match=r"workers die while they start \(exit code 3\)"):
        LocalEngine(1)(chunks(source, 2), options, lambda batch: None)


def test_what_the_writer_raises_ends_the_run(tmp_path: Path) -> None:
    """And chunks are taken as they are needed, not all at once."""
    source = Given([Item(str(i), f"nowhere/{i}") for i in range(1000)])

    def full(batch: Batch) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        LocalEngine(1)(chunks(source, 2), OPTIONS, full)
    assert source.handed <= 6
    assert workers_of() == []


def test_shares() -> None:
    assert LocalEngine(device="cpu").workers == cores()
    assert (LocalEngine(1).workers, LocalEngine(1).threads) == (1, cores())
    assert LocalEngine(3 * cores()).threads == 1
    assert LocalEngine(2, threads=5).threads == 5
    assert LocalEngine(device="cuda:1").workers == 1
