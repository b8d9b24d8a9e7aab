"""The two sides of a comparison: their options, and names that tell them apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath

from detcam.errors import InputError

OPTIONS = ("model", "method", "layers", "target", "config")  # may differ
FILES = ("model", "config")

Side = dict[str, str]  # option -> value, for the options that were given


def sides(given: Mapping[str, Sequence[str]]) -> tuple[Side, Side]:
    """The options of the first and the second side.

    Args:
        given: the values of each of OPTIONS: none, a single value for both sides, or one value for each side.

    Raises:
        InputError: if an option is given more than twice, or no option is given twice.
    """
    for name, values in given.items():
        if len(values) > 2:
            raise InputError(f"--{name} is given {len(values)} times: give it at most twice, once for each side")
    if all(len(values) < 2 for values in given.values()):
        options = ", ".join(f"--{name}" for name in OPTIONS)
        raise InputError(
            f"nothing to compare: give at least one of {options} twice, e.g. --model old.pt --model new.pt, or "
            "--method odam --method gradcam"
        )
    first, second = ({name: values[place] for name, values in given.items() if values} for place in (0, -1))
    return first, second


def names(a: Side, b: Side) -> tuple[str, str]:
    """Names made of the options that differ, e.g. "old.pt" and "new.pt"; of all given options if none differs."""
    different = [name for name in OPTIONS if a.get(name) != b.get(name)] or list(a)
    pairs = [ends(a[name], b[name]) if name in FILES else (a[name], b[name]) for name in different]
    return " · ".join(pair[0] for pair in pairs), " · ".join(pair[1] for pair in pairs)


def ends(first: str, second: str) -> tuple[str, str]:
    """The shortest ends of two paths that differ: "run1/best.pt" and "run2/best.pt"."""
    parts = PurePath(first).parts, PurePath(second).parts
    for count in range(1, max(map(len, parts)) + 1):
        short = [PurePath(*path[-count:]).as_posix() for path in parts]
        if short[0] != short[1] or first == second:
            return short[0], short[1]
    return first, second
