"""Terminal output of all commands: consoles, progress, examples of use, and numbers with their nouns."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import inf
from time import monotonic

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LINE_SECONDS = 5.0  # between two lines of progress where there is no terminal


def console(stderr: bool = False, quiet: bool = False) -> Console:
    """A console that never breaks a path: the terminal wraps lines that are too long."""
    return Console(stderr=stderr, quiet=quiet, highlight=False, soft_wrap=True)


Bar = Callable[..., None]  # reports that `done` steps are done: done, total=None, state="", line="", visible=None
AddBar = Callable[..., Bar]  # name of the work, total=None, done=0, visible=True


@contextmanager
def progress(
    console: Console, quiet: bool = False, seconds: float | None = None, at_once: bool = False, remaining: bool = True
) -> Iterator[AddBar]:
    """Progress bars on a terminal, and lines elsewhere.

    Args:
        quiet: neither bars nor lines.
        seconds: least time between two lines, LINE_SECONDS if None.
        at_once: the first line comes without delay.
        remaining: show an estimate of the time left.
    """
    pause = LINE_SECONDS if seconds is None else seconds
    columns = [
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[state]}"),
        *([TimeRemainingColumn()] if remaining else []),
    ]  # fmt: skip
    bars = Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal)
    last = -inf if at_once else monotonic()

    def add(doing: str, total: int | None = None, done: int = 0, visible: bool = True) -> Bar:
        task = bars.add_task(doing, total=total, completed=done, visible=visible, state="")

        def tell(
            done: int, total: int | None = None, state: str = "", line: str = "", visible: bool | None = None
        ) -> None:
            """`state` stands beside the bar, `line` in place of a bar."""
            nonlocal last
            bars.update(task, completed=done, total=total, state=state, visible=visible)
            if line and not (quiet or console.is_terminal) and monotonic() - last >= pause:
                last = monotonic()
                console.print(line, markup=False)

        return tell

    with bars:
        yield add


@contextmanager
def log_lines(console: Console, logger: str) -> Iterator[None]:
    """Prints what is logged, above the progress bars of the same console."""

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            console.print(record.getMessage(), markup=False)

    handler = Lines()
    logging.getLogger(logger).addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger(logger).removeHandler(handler)


def counted(number: int, noun: str) -> str:
    """`1 image`, `2 images`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def counted_labels(labels: Sequence[str]) -> str:
    """`5 objects (4 person, 1 bus)`."""
    kinds = [f"{labels.count(label)} {label}" for label in dict.fromkeys(labels)]
    listed = f" ({', '.join(kinds)})" if kinds else ""
    return f"{counted(len(labels), 'object')}{listed}"


def examples(*commands: str, more: str = "") -> str:
    """The epilogue of a command's help: examples, and what else there is to say."""
    return "\n\n".join(["Examples:", *(f"`{command}`" for command in commands), more]).strip()
