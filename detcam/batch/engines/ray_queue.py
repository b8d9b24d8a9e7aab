"""The desk of a Ray cluster: it hands out chunks, and knows which of them are held up."""

from __future__ import annotations

import asyncio
import multiprocessing
import threading
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic, sleep
from typing import Any

from detcam.batch.engines.heartbeat import Pulse

SIGNS = 10  # that a worker gives in the time that a picture may take, so that a thousand workers do not flood the desk


@dataclass(frozen=True)
class _Busy:
    """What a worker does, and since when it said nothing."""

    handle: Any
    what: str
    together: int
    since: float = field(default_factory=monotonic)


class Desk:
    """Holds the chunks that are under way, and knows what was begun and not ended: that died with its worker.

    A Ray actor, one for each run. Chunks have places 0, 1, 2, ... in the order in which they are put here; what is
    asked for again, because the process that had it was lost, is still here unless it is done.
    """

    def __init__(self) -> None:
        self._chunks: dict[int, bytes] = {}
        self._put, self._finished = 0, False
        self._changed = asyncio.Condition()
        self._open: Counter[str] = Counter()
        self._busy: dict[str, _Busy] = {}
        self._hung: set[str] = set()

    async def put(self, chunk: bytes) -> None:
        """The next chunk."""
        async with self._changed:
            self._chunks[self._put] = chunk
            self._put += 1
            self._changed.notify_all()

    async def finish(self) -> None:
        """There are no more."""
        async with self._changed:
            self._finished = True
            self._changed.notify_all()

    async def take(self, place: int) -> bytes | None:
        """The chunk at a place, once it is there; b"" if it is done already, None if there are no more."""
        async with self._changed:
            await self._changed.wait_for(lambda: place < self._put or self._finished)
        return self._chunks.get(place, b"") if place < self._put else None

    async def done(self, place: int) -> None:
        """The rows of a chunk are kept."""
        self._chunks.pop(place, None)

    async def begin(self, what: str) -> tuple[int, bool]:
        """Say that something begins; how often it was begun before and never ended, and whether its worker hung."""
        self._open[what] += 1
        return self._open[what] - 1, what in self._hung

    async def end(self, what: str) -> None:
        """Say that it ended."""
        del self._open[what]
        self._hung.discard(what)

    async def alive(self, worker: str, handle: Any, what: str, together: int) -> None:
        """Say that a worker goes on with something, with so many pictures together; from now on it is watched."""
        self._busy[worker] = _Busy(handle, what, together)

    async def rest(self, worker: str) -> None:
        """Say that it does nothing that is watched."""
        self._busy.pop(worker, None)

    async def watch(self, timeout: float) -> None:
        """Kill workers that say nothing for more than `timeout` seconds for each picture, without end.

        Ray starts them again, and gives them their chunk again.
        """
        import ray

        while True:
            await asyncio.sleep(timeout / SIGNS)
            for worker, busy in list(self._busy.items()):
                if monotonic() - busy.since > timeout * (busy.together + 1 / SIGNS):
                    del self._busy[worker]
                    self._hung.add(busy.what)
                    with suppress(Exception):  # it died by itself
                        ray.kill(busy.handle, no_restart=False)


class Signs:
    """Tells the desk what its worker does, and that it goes on as long as it does.

    Args:
        desk: the actor.
        worker: whose signs these are, as the desk knows it.
        handle: of the same, by which it can be killed.
        timeout: seconds for a picture.

    Attributes:
        pulse: for `Worker.run`.
    """

    def __init__(self, desk: Any, worker: str, handle: Any, timeout: float) -> None:
        self._desk, self._worker, self._handle = desk, worker, handle
        self.pulse = Pulse(multiprocessing)
        self._what: str | None = None
        self._lock = threading.Lock()
        threading.Thread(target=self._tell, args=(timeout / SIGNS,), daemon=True).start()

    def watch(self, what: str) -> None:
        """From now on it does this."""
        import ray

        self.pulse(1)
        with self._lock:
            self._what = what
            told = self._desk.alive.remote(self._worker, self._handle, what, 1)
        ray.get(told)

    def rest(self) -> None:
        """It does nothing that is watched."""
        with self._lock:
            self._what = None
            self._desk.rest.remote(self._worker)

    def _tell(self, seconds: float) -> None:
        before = None
        while True:
            sleep(seconds)
            steps, together = self.pulse.read()
            with self._lock:
                if self._what is not None and (steps, together) != before:
                    self._desk.alive.remote(self._worker, self._handle, self._what, together)
            before = steps, together
