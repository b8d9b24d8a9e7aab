"""Sentences of `detcam batch`: the state of a job, its result, and its estimate."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.filesize import decimal

from detcam.cli.console import counted

if TYPE_CHECKING:
    from detcam.batch.estimate import Estimate
    from detcam.batch.job import Tally


def state(tally: Tally) -> str:
    """`12.3 images a second, 4 min left, 2 errors`."""
    if tally.left is None:
        return "starting workers" if tally.done < tally.total else "all done"
    parts = [f"{tally.rate:.3g} images a second", f"{duration(tally.left)} left"]
    return ", ".join([*parts, *([counted(tally.errors, "error")] if tally.errors else [])])


def summary(tally: Tally, out: str, page: Path | None) -> Iterator[str]:
    """The result of a job, line by line."""
    new = tally.done - tally.before
    yield (
        f"{counted(tally.done, 'image')}, {counted(tally.objects, 'object')}"
        f"{f', {tally.empty} without any' if tally.empty else ''} -> {out}"
    )
    if tally.before:
        yield f"{counted(tally.before, 'image')} were done before, {new} are new"
    if new:
        yield f"{duration(tally.seconds)}, {tally.rate:.3g} images a second, {decimal(tally.written)} written"
    if tally.errors:
        yield (
            f"{counted(tally.errors, 'image')} failed, see pictures/ in {out} where status is 'error'; --resume "
            "--retry-errors tries them again:"
        )
        for key, error in tally.first:
            yield f"  {key}: {error}"
    if page is not None:
        yield f"Open {page}"


def sentences(expected: Estimate) -> Iterator[str]:
    """The estimate of a job, line by line."""
    yield (
        f"{counted(expected.pictures, 'image')}; tried {expected.sampled}: {expected.each * 1000:.0f} ms and "
        f"{expected.objects:.1f} objects each"
    )
    yield (
        f"expected: {duration(expected.seconds)} with {counted(expected.workers, 'worker')}, "
        f"{decimal(expected.bytes)} in {expected.shards} shards of each table"
    )
    for key, error in expected.errors:
        yield f"  {key} fails: {error}"


def duration(seconds: float) -> str:
    """`42 s`, `3.5 min`, `2.1 h`, `4.0 days`."""
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.0f} s" if unit == 1 else f"{seconds / unit:.1f} {name}"
    return f"{seconds / 86_400:.1f} days"
