"""Ctrl-C in all commands: a line that says what was stopped, what is written and how to go on."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

CODE = 130  # the exit code of shells: 128 plus the number of SIGINT
NOTHING = "nothing is written"


class Interrupted(Exception):
    """Ctrl-C ended a command. The message says what is written, and how to go on if that is possible."""


@contextmanager
def interruptible(written: Callable[[], str]) -> Iterator[None]:
    """Turns Ctrl-C inside into `Interrupted` with the message of `written`, which `detcam.cli.app.run` prints."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(written()) from None


@contextmanager
def stop_on_interrupt() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets, so that the current step is finished; a second Ctrl-C ends the command at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # Python delivers signals to the main thread only
        return
    before = signal.getsignal(signal.SIGINT)

    def handle(number: int, frame: object) -> None:
        stop.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, handle)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
