"""Stages: pipeline threads with bounded queues between them, and clocks of their time."""

import queue
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from time import perf_counter
from typing import Any, Generic, TypeVar

T = TypeVar("T")

POLL = 0.1  # seconds after which a waiting thread checks whether it is still needed
END = object()  # the last element in the queue of a stage


class Clock:
    """Seconds of a thread in parts that add up to `alive`; "input" waits for the stage before, "room" for the next."""

    def __init__(self) -> None:
        self.parts: defaultdict[str, float] = defaultdict(float)
        self._first = self._last = perf_counter()

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Count the time inside the context for `part`."""
        begin = perf_counter()
        try:
            yield
        finally:
            self._last = perf_counter()
            self.parts[part] += self._last - begin

    def start(self) -> None:
        """Set the start of the thread's life to now."""
        self._first = perf_counter()

    @property
    def alive(self) -> float:
        """Seconds from the start to the end of the last part."""
        return self._last - self._first

    def to_dict(self) -> dict[str, float]:
        """All parts and "alive", in seconds."""
        return {**{part: round(seconds, 4) for part, seconds in self.parts.items()}, "alive": round(self.alive, 4)}


def timed(items: Iterable[T], clock: Clock, part: str) -> Iterator[T]:
    """The same items; the time spent waiting for each counts for `part`."""
    iterator = iter(items)
    while True:
        with clock(part):
            try:
                item = next(iterator)
            except StopIteration:
                return
        yield item


class Ahead(Generic[T]):
    """The items of an iterable, produced in a separate thread that runs at most `room` items ahead.

    An error in that thread is raised in the thread that iterates; the iterable's `close`, if any, is called in the
    thread, whose clock is `clock`. With `newest`, for live sources, a full queue drops its oldest item instead of
    waiting. When `stop` is set, the iteration ends.
    """

    def __init__(
        self, items: Iterable[T], room: int, clock: Clock, newest: bool = False, stop: threading.Event | None = None
    ) -> None:
        self._items, self._clock, self._newest = items, clock, newest
        self._stop = stop or threading.Event()
        self._closed = threading.Event()
        self._queue: queue.Queue[Any] = queue.Queue(room)  # of T, and then END
        self._error: BaseException | None = None  # that ended the items
        self.dropped = 0
        self._thread = threading.Thread(target=self._run, name="detcam video", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self._clock.start()
        try:
            for item in self._items:
                with self._clock("room"):
                    if not self._put(item):
                        break
        except BaseException as error:
            self._error = error
        finally:
            close = getattr(self._items, "close", None)
            if close is not None:
                close()
        self._put(END)

    def _put(self, item: object) -> bool:
        """Put an item into the queue; False if the stage was closed before there was room."""
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=0 if self._newest else POLL)
                return True
            except queue.Full:
                if self._newest:
                    with suppress(queue.Empty):  # another thread took it just now
                        self._queue.get_nowait()
                        self.dropped += 1
        return False

    def __iter__(self) -> Iterator[T]:
        while not (self._closed.is_set() or self._stop.is_set()):
            try:
                item = self._queue.get(timeout=POLL)
            except queue.Empty:
                continue
            if item is END:
                if self._error is not None:
                    raise self._error
                return
            yield item

    def close(self) -> None:
        """End the thread and discard its items."""
        self._closed.set()
        self._thread.join(timeout=5)  # a thread that waits for a silent stream takes longer
