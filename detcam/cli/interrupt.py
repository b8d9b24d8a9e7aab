"""Ctrl-C, the same in every command: one line that says what was stopped, what is written and how to go on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

CODE = 130  # as a shell has it: 128 and the number of SIGINT
NOTHING = "nothing is written"


class Interrupted(Exception):
    """Ctrl-C ended a command. The message says what is written, and how to go on where there is a way."""


@contextmanager
def interruptible(written: Callable[[], str]) -> Iterator[None]:
    """Turns Ctrl-C in the work inside into `Interrupted`, which `detcam.cli.app.run` answers to.

    Args:
        written: called when it comes; what the message says.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(written()) from None
