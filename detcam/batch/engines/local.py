"""Local engine: a process for each worker; a process that dies is replaced, and its images are done again."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from time import monotonic
from typing import Any

from detcam.batch.dataset.rows import Batch, failed
from detcam.batch.engines.local_worker import serve
from detcam.batch.engines.watchdog import EXIT_CODE
from detcam.batch.items import Chunk, Item
from detcam.batch.worker import TIMEOUT, OnBatch, Options
from detcam.errors import DetcamError, plain

log = logging.getLogger(__name__)

TRIES = 2  # deaths of a worker over the same images before they are done one by one, and then before one is given up
STARTS = 3  # deaths in a row of workers that had not begun yet


@dataclass
class _Task:
    """Images to explain: a chunk, or a single image of a chunk that killed or held up its workers."""

    chunk: Chunk
    whole: _Task | None = None  # the chunk that the image belongs to
    deaths: int = 0
    parts: dict[int, Batch] = field(default_factory=dict)  # of a chunk that is done one by one: rows by place


@dataclass
class _Slot:
    """A place for a worker; the process in it is replaced when it dies."""

    name: str
    process: BaseProcess
    connection: Connection
    task: _Task | None = None
    is_ready: bool = False
    began: float = 0.0  # when it got its task, by `monotonic`


class LocalEngine:
    """Runs chunks on this machine; see `detcam.batch.worker.Engine`.

    Args:
        workers: number of processes; None: one for each GPU, or without a GPU one for each core.
        threads: threads of each worker on the CPU; None: the cores shared out among the workers.
        device: device of all workers; None: a GPU for each worker, or without a GPU the CPU.
        timeout: seconds for an image, see `Engine`; 0: no limit.
    """

    def __init__(
        self,
        workers: int | None = None,
        threads: int | None = None,
        device: str | None = None,
        timeout: float = TIMEOUT,
    ) -> None:
        import torch

        gpus: list[str | None] = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        devices = gpus if device is None else [device]
        self.workers = workers or (len(devices) if devices and device != "cpu" else cores())
        self.threads = threads or max(cores() // self.workers, 1)
        self.timeout = timeout
        self._devices = devices or [None]

    def __call__(self, chunks: Iterable[Chunk], options: Options, on_batch: OnBatch) -> None:
        """See `Engine`."""
        _Run(self, chunks, options, on_batch).run()

    def device(self, worker: int) -> str | None:
        """The device of a worker."""
        return self._devices[worker % len(self._devices)]


def fork_context() -> Any:
    """How processes start: forked from a server process that has imported everything and run nothing; else spawned.

    Imports are paid for and held in memory once for all workers, and no lock of this process is copied.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["detcam.batch.worker"])
    return context


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Run:
    """One run of an engine. A worker has one task at a time, so neither side ever waits for the other to read."""

    def __init__(self, engine: LocalEngine, chunks: Iterable[Chunk], options: Options, on_batch: OnBatch) -> None:
        self._engine, self._options, self._on_batch = engine, options, on_batch
        self._tasks = map(_Task, chunks)
        self._again: deque[_Task] = deque()
        self._slots: dict[int, _Slot] = {}
        self._context = fork_context()
        self._failed_starts = 0

    def run(self) -> None:
        try:
            while self._fill():
                numbers = {slot.connection: number for number, slot in self._slots.items()}
                for connection in wait(list(numbers)):
                    self._receive(numbers[connection])  # type: ignore[index]
        finally:
            for slot in self._slots.values():
                slot.connection.close()  # an idle worker ends at that
                slot.process.terminate()
            for slot in self._slots.values():
                slot.process.join(5)
                slot.process.kill()
                slot.process.join()

    def _fill(self) -> bool:
        """Give every free worker a task, and start workers while there are tasks; whether any is under way."""
        for number in range(self._engine.workers):
            slot = self._slots.get(number)
            if slot is not None and slot.task is not None:
                continue
            task = self._again.popleft() if self._again else next(self._tasks, None)
            if task is None:
                break
            if slot is None:
                slot = self._slots[number] = self._start(number)
            self._assign(slot, task)
        return any(slot.task is not None for slot in self._slots.values())

    def _start(self, number: int) -> _Slot:
        ours, theirs = self._context.Pipe()
        name, device = f"worker-{number}", self._engine.device(number)
        arguments = theirs, self._options, device, name, self._engine.threads, self._engine.timeout
        process = self._context.Process(target=serve, args=arguments, name=name, daemon=True)
        with _no_interrupts():  # Ctrl-C reaches the whole process group; this process tells the others to end
            process.start()
        theirs.close()  # else the worker's end would stay open when the worker is dead
        return _Slot(name, process, ours)

    @staticmethod
    def _assign(slot: _Slot, task: _Task) -> None:
        slot.task = task
        if slot.is_ready:
            slot.began = monotonic()
            with suppress(OSError):  # the worker died: reading its connection reports that
                slot.connection.send(task.chunk)

    def _receive(self, number: int) -> None:
        slot = self._slots[number]
        try:
            message = slot.connection.recv()
        except (EOFError, OSError):
            self._replace(number)
            return
        if isinstance(message, Exception):
            raise message
        task = slot.task
        assert task is not None
        if message is None:
            slot.is_ready, self._failed_starts = True, 0
            self._assign(slot, task)
            return
        slot.task = None
        self._fill()  # the worker goes on while its rows are written
        self._finish(task, message)

    def _finish(self, task: _Task, batch: Batch) -> None:
        whole = task.whole
        if whole is None:
            self._on_batch(batch)
            return
        whole.parts[task.chunk.places[0]] = batch
        if len(whole.parts) == len(whole.chunk):
            self._on_batch(Batch.joined([part for _, part in sorted(whole.parts.items())]))

    def _replace(self, number: int) -> None:
        """A worker died: drop it, so that another is started, and do its images again."""
        slot = self._slots.pop(number)
        slot.connection.close()
        slot.process.join()
        task, code, limit = slot.task, slot.process.exitcode, self._engine.timeout
        has_hung = slot.is_ready and code == EXIT_CODE and 0 < limit <= monotonic() - slot.began
        how = f"longer than {limit:g} s" if has_hung else _how(code)
        if not slot.is_ready:
            self._failed_starts += 1
            if self._failed_starts == STARTS:
                raise DetcamError(f"workers die while they start ({how}): use fewer --workers, or a smaller model")
        if task is None:
            return
        items = task.chunk.items
        log.warning(
            "%s %s (%s) at chunk %d, images %s to %s: trying them again", slot.name, "hung" if has_hung else "died",
            how, task.chunk.number, plain(items[0].key), plain(items[-1].key),
        )  # fmt: skip
        task.deaths += slot.is_ready
        if task.deaths < TRIES and not (has_hung and len(items) > 1):
            self._again.append(task)
        elif len(items) > 1:
            log.warning("chunk %d: explaining its images one by one", task.chunk.number)
            self._again.extend(_Task(single, whole=task) for single in task.chunk.singles())
        else:
            log.warning("giving up on %s", plain(items[0].uri))
            reason = hung(items[0], limit) if has_hung else fatal(items[0], how)
            outcome = failed(items[0], reason, slot.name)
            self._finish(task, Batch.of(task.chunk.number, [outcome], self._options.metrics))


def fatal(item: Item, how: str = "") -> str:
    """The reason in the row of an image that killed its workers."""
    return f"{item.uri}: the process that explained it died {TRIES} times{how and f' ({how})'}: explain it on its own"


def hung(item: Item, limit: float) -> str:
    """The reason in the row of an image that held up its workers."""
    return (
        f"{item.uri} took longer than {limit:g} s {TRIES} times: explain it on its own, or try --retry-errors with a "
        "longer --timeout"
    )


def _how(code: int | None) -> str:
    """How a process ended, for display."""
    if code is None or code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
    return f"{name}{', perhaps out of memory' if -code == signal.SIGKILL else ''}"


@contextmanager
def _no_interrupts() -> Iterator[None]:
    """Processes that are started in this block ignore Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
