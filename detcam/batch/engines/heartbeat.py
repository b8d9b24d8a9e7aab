"""Signs of life: how an engine sees that a worker does nothing any more, whatever it is that holds it."""

from __future__ import annotations

from typing import Any

LOOK = 0.5  # seconds between two looks at a worker


class Pulse:
    """A worker's signs, in memory that its engine sees, too: a process that is stopped can send no message.

    Args:
        context: of `multiprocessing`.
    """

    def __init__(self, context: Any) -> None:
        self._cells = context.RawArray("Q", [0, 1])  # steps done, and pictures that are explained together

    def __call__(self, together: int | None = None) -> None:
        """See `detcam.batch.worker.Tick`. Threads may lose a step of each other's; the next one is seen."""
        self._cells[0] += 1
        if together is not None:
            self._cells[1] = together

    def read(self) -> tuple[int, int]:
        """The steps done, and the pictures that are explained together."""
        return self._cells[0], self._cells[1]


class Patience:
    """How long an engine has seen no sign of a worker.

    Args:
        pulse: the worker's.
    """

    def __init__(self, pulse: Pulse) -> None:
        self._pulse = pulse
        self.renew()

    def renew(self) -> None:
        """The worker has something new to do."""
        self._pulse(1)
        self._steps, self._silent = self._pulse.read()[0], 0.0

    def ended(self, seconds: float, limit: float) -> bool:
        """Look at the worker: whether it had `limit` seconds for each picture without doing anything.

        Args:
            seconds: since the last look, without those in which the engine was itself stopped: a job that was put
                aside with Ctrl-Z has not used its time.
            limit: seconds for a picture.
        """
        steps, together = self._pulse.read()
        self._silent = self._silent + seconds if steps == self._steps else 0.0
        self._steps = steps
        return self._silent >= limit * together
