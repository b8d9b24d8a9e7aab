"""The driver is interrupted, killed, and gone on with: the same rows as of an undisturbed run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from photos import OPTIONS, assert_same_rows, held, joined, plain_work, write_photos
from support import heeding_ctrl_c

from detcam.batch.dataset.dataset import Dataset
from detcam.batch.dataset.folder import Folder
from detcam.batch.dataset.rows import Batch
from detcam.batch.engines.local import LocalEngine
from detcam.batch.job import run
from detcam.batch.sources.open import open_source

PATIENCE = 180.0  # seconds: other tests may run beside these


def until(condition: Callable[[], bool], process: subprocess.Popen[str] | None = None) -> None:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < PATIENCE, "it never came to that"
        assert process is None or process.poll() is None, f"it ended: {process.communicate()}"
        time.sleep(0.02)


def started(source: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    options = ["--model", "scenes-yolo", "--imgsz", "160", "--workers", "2", "--threads", "1"]
    command = ["batch", str(source), "--out", str(out), *options, *more]
    return subprocess.Popen(
        [sys.executable, "-c", "import photos; photos.command_with_held_pictures()", *command],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heeding_ctrl_c,
        start_new_session=True,  # a group of its own, which Ctrl-C reaches as a whole
    )


def gone(processes: list[psutil.Process]) -> bool:
    return not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes)


@pytest.mark.nightly
def test_an_interrupted_and_killed_driver(seed: int, tmp_path: Path) -> None:
    """Two pictures are held back at a time, so that both workers are at work when the driver ends."""
    paths = write_photos(tmp_path / "in", seed, 12)  # 6 chunks
    listed, out = tmp_path / "list.txt", tmp_path / "out"
    listed.write_text("\n".join(str(path) for path in paths))
    dataset = Dataset(Folder(out))
    for place in (2, 7, 10):  # of chunks 1, 3 and 5
        held(paths[place]).touch()

    driver = started(listed, out, "--chunk", "2")
    until(lambda: dataset.done() == {0, 2}, driver)
    family = psutil.Process(driver.pid).children(recursive=True)
    os.killpg(driver.pid, signal.SIGINT)
    printed, told = driver.communicate(timeout=PATIENCE)
    assert driver.returncode == 130
    assert printed == ""
    assert told.splitlines()[-1] == f"interrupted: 4 of 12 images are done in {out}: go on with --resume"
    assert "Traceback" not in told
    until(lambda: gone(family))

    held(paths[2]).unlink()
    driver = started(listed, out, "--resume")
    until(lambda: dataset.done() == {0, 1, 2, 4}, driver)
    family = psutil.Process(driver.pid).children(recursive=True)
    assert len(family) >= 2
    driver.kill()
    driver.wait()
    until(lambda: gone(family))  # they wait for pictures, and yet end with the driver
    for place in (7, 10):
        held(paths[place]).unlink()
    assert dataset.done() == {0, 1, 2, 4}

    source = open_source(listed)
    tally = run(source, str(out), OPTIONS, LocalEngine(1, threads=1), resume=True)
    assert (tally.before, tally.done) == (8, 12)
    rows = joined([Batch(n, dataset.objects(n), dataset.pictures(n)) for n in sorted(dataset.done())])
    assert_same_rows(rows, joined(plain_work(source, 2)))
    assert not [path for path in out.rglob(".*") if path.is_file()]
