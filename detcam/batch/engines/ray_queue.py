"""Queue of chunks on a Ray cluster, which also counts how often a chunk or an image ended its worker."""

import asyncio
from time import monotonic


class ChunkQueue:
    """The chunks under way, and the work that began and never ended because its worker died.

    A Ray actor, one for each run. Chunks have places 0, 1, 2, ... in the order of `put`. A chunk can be asked for
    again, because the process that had it was lost, until it is done.
    """

    def __init__(self) -> None:
        self._chunks: dict[int, bytes] = {}
        self._count, self._is_finished = 0, False
        self._changed = asyncio.Condition()
        self._begun: dict[str, list[float]] = {}  # work -> when it began, by `monotonic`

    async def put(self, chunk: bytes) -> None:
        """Add the next chunk."""
        async with self._changed:
            self._chunks[self._count] = chunk
            self._count += 1
            self._changed.notify_all()

    async def finish(self) -> None:
        """Say that no more chunks come."""
        async with self._changed:
            self._is_finished = True
            self._changed.notify_all()

    async def take(self, place: int) -> bytes | None:
        """The chunk at a place, as soon as it is there; b"" if it is done already, None if no more come."""
        async with self._changed:
            await self._changed.wait_for(lambda: place < self._count or self._is_finished)
        return self._chunks.get(place, b"") if place < self._count else None

    async def done(self, place: int) -> None:
        """Forget a chunk whose rows are written."""
        self._chunks.pop(place, None)

    async def begin(self, work: str, age: float) -> tuple[int, float]:
        """Record that a worker begins some work: a chunk, an image or a start.

        Returns how many times the work began before without an end, and the seconds that the last of them had. `age` is
        the seconds since the worker's process started, which replaces the one that died over this work.
        """
        now, earlier = monotonic(), self._begun.setdefault(work, [])
        result = len(earlier), max(now - age - earlier[-1], 0.0) if earlier else 0.0
        earlier.append(now)
        return result

    async def end(self, work: str) -> None:
        """Record that the work ended."""
        del self._begun[work]
