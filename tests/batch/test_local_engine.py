"""The local engine: all of the work, whatever kills its processes; and none of them is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from photos import (
    OPTIONS,
    Deadly,
    Endless,
    Frozen,
    Given,
    assert_same_rows,
    items_of,
    joined,
    plain_work,
    write_photos,
)

from detcam import InputError
from detcam.batch.dataset.rows import Batch
from detcam.batch.engines import watchdog
from detcam.batch.engines.local import LocalEngine, cores
from detcam.batch.items import Item, chunks
from detcam.batch.worker import Options
from detcam.errors import DetcamError


def workers_of(process: psutil.Process | None = None) -> list[psutil.Process]:
    """The workers that a process has now: what its fork server started, or it itself where there is none."""
    children = [c for c in (process or psutil.Process()).children(recursive=True) if "python" in c.name()]
    mains = {child.pid for child in children if child.ppid() == (process or psutil.Process()).pid}
    return [child for child in children if child.pid not in mains]


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.nightly)])
def test_a_killed_worker_costs_nothing(
    workers: int, seed: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = Given(items_of(write_photos(tmp_path, seed, 4 * workers)))
    expected = joined(plain_work(source, 2))
    batches: list[Batch] = []
    killed: list[int] = []

    def keep(batch: Batch) -> None:
        batches.append(batch)
        if not killed:  # at the first result, the workers are at work on the next images
            victim = workers_of()[0]
            killed.append(victim.pid)
            victim.send_signal(signal.SIGKILL)

    LocalEngine(workers, threads=1)(chunks(source, 2), OPTIONS, keep)
    assert killed
    assert_same_rows(joined(batches), expected)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 1
    assert "SIGKILL" in messages[0]
    assert any(item.key in messages[0] for item in source.items()), "the log names pictures"
    assert workers_of() == []


@pytest.mark.nightly
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


@pytest.mark.nightly
def test_a_picture_that_hangs_costs_its_row_only(limit: float, seed: int, tmp_path: Path) -> None:
    """A reader that waits for ever, and a decoder that holds the interpreter's lock; nothing of theirs is left."""
    items = items_of(write_photos(tmp_path, seed, 6))
    endless: Any = Endless("endless.png")
    frozen: Any = Frozen("frozen.png")
    source = Given([*items[:2], endless, *items[2:4], frozen, *items[4:]])
    batches: list[Batch] = []
    LocalEngine(2, threads=1, timeout=limit)(chunks(source, 4), OPTIONS, batches.append)
    objects, pictures = joined(batches)
    rows = pictures.to_pylist()
    assert [row["key"] for row in rows] == [item.key for item in source.items()]
    failed = {row["key"]: row["error"] for row in rows if row["status"] == "error"}
    assert list(failed) == ["endless.png", "frozen.png"]
    assert all(f"deadly/{key} took longer than {limit:g} s" in error for key, error in failed.items())
    assert all("try --retry-errors with a longer --timeout" in error for error in failed.values())
    sound = pictures.filter([row["status"] != "error" for row in rows])
    assert_same_rows((objects, sound), joined(plain_work(Given(items), 6)))
    assert workers_of() == []


def watched(seconds: float, *steps: str) -> subprocess.CompletedProcess[str]:
    """A process with a watchdog of `seconds` that takes these steps, stops it, and prints "went on"."""
    code = "\n".join(
        [
            "import ctypes, os, runpy, signal, subprocess, time",
            f"step = runpy.run_path({watchdog.__file__!r})['Watchdog'](float('{seconds}'))",
            *steps,
            "step.stop(), print('went on')",
        ]
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


@pytest.mark.parametrize("steps", [["time.sleep(60)"], ["step(3)", "step()", "ctypes.PyDLL(None).sleep(60)"]])
def test_a_process_that_hangs_ends_and_shows_where(steps: list[str]) -> None:
    done = watched(0.3, "step()", *steps)
    assert (done.returncode, done.stdout) == (watchdog.EXIT_CODE, "")
    assert "Timeout" in done.stderr
    assert f"line {3 + len(steps)} in <module>" in done.stderr


@pytest.mark.parametrize(
    ("seconds", "steps"),
    [
        (0.1, ["step(600)", "step()", "time.sleep(0.3)"]),
        (0.1, ["step.stop()", "time.sleep(0.3)"]),
        (0, ["step()", "time.sleep(0.3)"]),
        (float("inf"), ["step()"]),
        pytest.param(3, ["for _ in range(8): step(), time.sleep(0.5)"], marks=pytest.mark.nightly),
    ],
)
def test_only_time_without_a_step_counts_once_for_each_image_in_work(seconds: float, steps: list[str]) -> None:
    done = watched(seconds, *steps)
    assert (done.returncode, done.stdout) == (0, "went on\n"), done.stderr


@pytest.mark.nightly
def test_time_for_which_ctrl_z_suspends_a_job_does_not_count() -> None:
    resume = "subprocess.Popen(['sh', '-c', f'sleep 5; kill -CONT {os.getpid()}'])"
    done = watched(3, "step.pause_on_ctrl_z()", resume, "step()", "os.kill(os.getpid(), signal.SIGTSTP)")
    assert (done.returncode, done.stdout) == (0, "went on\n"), done.stderr


@pytest.mark.parametrize("wrong", [{"method": "nope"}, {"model": "nope.pt"}, {"layers": "nope"}])
def test_options_that_cannot_be_used_end_the_run(wrong: dict[str, str]) -> None:
    source = Given([Item(str(i), f"nowhere/{i}") for i in range(4)])
    with pytest.raises(InputError, match="nope"):
        LocalEngine(1)(chunks(source, 2), Options(**{"model": "scenes-yolo", **wrong}), lambda batch: None)
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
