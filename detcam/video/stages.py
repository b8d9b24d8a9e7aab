"""Threads that hand things on: stages that work at the same time, with bounded room between them, and their clocks."""

from __future__ import annotations

import queue
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Generic, TypeVar

T = TypeVar("T")

POLL = 0.1  # seconds after which a waiting thread looks whether it is still needed


class Clock:
    """What the seconds of one thread went into: `parts`, by name; they add up to `alive`.

    Attributes:
        parts: part -> seconds. "input" is waiting for the stage before, "room" for the stage behind.
    """

    def __init__(self) -> None:
        self.parts: defaultdict[str, float] = defaultdict(float)
        self._first = self._last = perf_counter()

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Count what happens inside for `part`."""
        begin = perf_counter()
        try:
            yield
        finally:
            self._last = perf_counter()
            self.parts[part] += self._last - begin

    def start(self) -> None:
        """The thread begins its work now."""
        self._first = perf_counter()

    @property
    def alive(self) -> float:
        """Seconds from the start to the end of the last part."""
        return self._last - self._first

    def to_dict(self) -> dict[str, float]:
        """All parts and "alive", in seconds."""
        return {**{part: round(seconds, 4) for part, seconds in self.parts.items()}, "alive": round(self.alive, 4)}


def timed(items: Iterable[T], clock: Clock, part: str) -> Iterator[T]:
    """The same items; the time that each took to come counts for `part`."""
    iterator = iter(items)
    while True:
        with clock(part):
            try:
                item = next(iterator)
            except StopIteration:
                return
        yield item


class _End:
    """The last thing that a stage hands on: nothing more comes, perhaps because of an error."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


class Ahead(Generic[T]):
    """The items of an iterable, made in a thread of its own, at most `room` of them ahead.

    An error in that thread is raised where the items are taken.

    Args:
        items: what to run through; it is closed in its own thread, if it can be.
        room: how many finished items may wait.
        clock: of the thread that makes them.
        newest: when there is no room, drop the oldest waiting item rather than wait: for live sources.
        stop: ends the waiting for items when it is set, as if no more came.
    """

    def __init__(
        self, items: Iterable[T], room: int, clock: Clock, newest: bool = False, stop: threading.Event | None = None
    ) -> None:
        self._items, self._clock, self._newest = items, clock, newest
        self._stop = stop or threading.Event()
        self._closed = threading.Event()
        self._queue: queue.Queue[T | _End] = queue.Queue(room)
        self.dropped = 0
        self._thread = threading.Thread(target=self._run, name="detcam video", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self._clock.start()
        end = _End()
        try:
            for item in self._items:
                with self._clock("room"):
                    if not self._hand_on(item):
                        break
        except BaseException as error:
            end = _End(error)
        finally:
            close = getattr(self._items, "close", None)
            if close is not None:
                close()
        self._hand_on(end)

    def _hand_on(self, item: T | _End) -> bool:
        """Whether the item found room before the stage was closed."""
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=0 if self._newest else POLL)
                return True
            except queue.Full:
                if self._newest:
                    self._drop_oldest()
        return False

    def _drop_oldest(self) -> None:
        try:
            self._queue.get_nowait()
            self.dropped += 1
        except queue.Empty:
            pass  # it was taken just now

    def __iter__(self) -> Iterator[T]:
        while not (self._closed.is_set() or self._stop.is_set()):
            try:
                item = self._queue.get(timeout=POLL)
            except queue.Empty:
                continue
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            yield item

    def close(self) -> None:
        """End the thread; what it has made is thrown away."""
        self._closed.set()
        self._thread.join(timeout=5)  # a stream that keeps silent holds its thread for longer
