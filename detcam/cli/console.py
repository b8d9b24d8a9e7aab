"""What people read while a job runs and when it ends."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from detcam.batch.estimate import Estimate
    from detcam.batch.job import Tally

LINE_SECONDS = 10.0  # between two lines of progress where there is no terminal


@contextmanager
def progress(quiet: bool) -> Iterator[Callable[[Tally], None]]:
    """A bar on a terminal, a line every few seconds elsewhere, both on standard error; what is logged stands above it.

    Args:
        quiet: neither bar nor lines, but what is logged.

    Yields what to call when some pictures are done.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    handler = _Lines(console)
    logger = logging.getLogger("detcam.batch")
    logger.addHandler(handler)
    columns = BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[state]}")
    bar = Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal)
    try:
        with bar:
            task = bar.add_task("explaining", total=None, state="")
            lines = _lines(console)

            def tell(tally: Tally) -> None:
                bar.update(task, completed=tally.done, total=tally.total, state=state(tally))
                if not (quiet or console.is_terminal):
                    lines(tally)

            yield tell
    finally:
        logger.removeHandler(handler)


class _Lines(logging.Handler):
    """What is logged, a line each."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler.emit`."""
        self._console.print(record.getMessage(), markup=False)


def _lines(console: Console) -> Callable[[Tally], None]:
    told = perf_counter() - LINE_SECONDS

    def tell(tally: Tally) -> None:
        nonlocal told
        if perf_counter() - told >= LINE_SECONDS:
            told = perf_counter()
            console.print(f"{tally.done} of {tally.total} pictures, {state(tally)}", markup=False)

    return tell


def state(tally: Tally) -> str:
    """`12.3 pictures a second, 4 min left, 2 errors`."""
    if tally.left is None:
        return "starting workers" if tally.done < tally.total else "all done"
    parts = [f"{tally.rate:.3g} pictures a second", f"{duration(tally.left)} left"]
    return ", ".join([*parts, *([counted(tally.errors, "error")] if tally.errors else [])])


def summary(tally: Tally, out: str, page: Path | None) -> Iterator[str]:
    """What a job did, line by line."""
    new = tally.done - tally.before
    yield (
        f"{counted(tally.done, 'picture')}, {counted(tally.objects, 'object')}"
        f"{f', {tally.empty} without any' if tally.empty else ''} -> {out}"
    )
    if tally.before:
        yield f"{counted(tally.before, 'picture')} were there, {new} are new"
    if new:
        yield f"{duration(tally.seconds)}, {tally.rate:.3g} pictures a second, {size(tally.written)} written"
    if tally.errors:
        yield (
            f"{counted(tally.errors, 'picture')} failed, see pictures/ in {out} where status is 'error'; --resume "
            "--retry-errors does them again:"
        )
        for key, error in tally.first:
            yield f"  {key}: {error}"
    if page is not None:
        yield f"Open {page}"


def sentences(expected: Estimate) -> Iterator[str]:
    """What a job would take, line by line."""
    yield (
        f"{counted(expected.pictures, 'picture')}; tried {expected.sampled}: {expected.each * 1000:.0f} ms and "
        f"{expected.objects:.1f} objects each"
    )
    yield (
        f"expected: {duration(expected.seconds)} with {counted(expected.workers, 'worker')}, {size(expected.bytes)} in "
        f"{expected.shards} shards of each table"
    )
    for key, error in expected.errors:
        yield f"  {key} fails: {error}"


def counted(number: int, noun: str) -> str:
    """`1 picture`, `2 pictures`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """`42 s`, `3.5 min`, `2.1 h`, `4.0 days`."""
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.0f} s" if unit == 1 else f"{seconds / unit:.1f} {name}"
    return f"{seconds / 86_400:.1f} days"


def size(count: float) -> str:
    """`87.6 kB`, `1.2 GB`."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def counted_labels(labels: Sequence[str]) -> str:
    """`5 objects (4 person, 1 bus)`."""
    kinds = [f"{labels.count(label)} {label}" for label in dict.fromkeys(labels)]
    listed = f" ({', '.join(kinds)})" if kinds else ""
    return f"{len(labels)} object{'' if len(labels) == 1 else 's'}{listed}"
