"""Watchdog: ends a worker process that hangs, and prints where each of its threads was."""

import faulthandler
import os
import signal

EXIT_CODE = 1  # of a process that `faulthandler` ends
LONGEST = 3e7  # seconds, about a year: `faulthandler` refuses an infinite time
STDERR = 2


class Watchdog:
    """Ends this process when no step of the work is done for too long; a `detcam.batch.worker.Tick`.

    `limit` is in seconds for an image, 0 for no limit. The timer is a C thread of `faulthandler`, so it also fires
    while some thread holds the interpreter's lock.
    """

    def __init__(self, limit: float) -> None:
        self._limit, self._together, self._is_running = limit, 1, False

    def __call__(self, together: int | None = None) -> None:
        """Start the timer anew; see `Tick`."""
        self._together = together or self._together
        if self._limit:
            self._is_running = True
            seconds = min(LONGEST, self._limit * self._together)
            faulthandler.dump_traceback_later(seconds, exit=True, file=STDERR)

    def stop(self) -> None:
        """Stop the timer until the next step."""
        self._is_running = False
        faulthandler.cancel_dump_traceback_later()

    def pause_on_ctrl_z(self) -> None:
        """From now on, time for which Ctrl-Z suspends the job does not count."""
        if hasattr(signal, "SIGTSTP"):
            signal.signal(signal.SIGTSTP, lambda *_: self._suspend())

    def _suspend(self) -> None:
        was_running = self._is_running
        self.stop()
        os.kill(os.getpid(), signal.SIGSTOP)
        if was_running:
            self()
