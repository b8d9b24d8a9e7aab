"""What is compared with what: the options of the two sides, and names to tell them apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath

from detcam.errors import InputError

OPTIONS = ("model", "method", "layers", "target", "config")  # may differ
FILES = ("model", "config")

Side = dict[str, str]  # those of them that were given


def sides(given: Mapping[str, Sequence[str]]) -> tuple[Side, Side]:
    """The options of the first and of the second side.

    Args:
        given: for each of OPTIONS what the user gave: nothing, one value for both sides, or one for each.

    Raises:
        InputError: if an option is given more often, or none is given twice.
    """
    for name, values in given.items():
        if len(values) > 2:
            raise InputError(f"--{name} is given {len(values)} times: give it twice at most, once for each side")
    if all(len(values) < 2 for values in given.values()):
        options = ", ".join(f"--{name}" for name in OPTIONS)
        raise InputError(
            f"nothing to compare: give one of {options} twice, e.g. --model old.pt --model new.pt, or "
            "--method odam --method gradcam"
        )
    first, second = ({name: values[place] for name, values in given.items() if values} for place in (0, -1))
    return first, second


def names(a: Side, b: Side) -> tuple[str, str]:
    """Names that say what tells the sides apart, e.g. "old.pt" and "new.pt"; all that was given if nothing does."""
    telling = [name for name in OPTIONS if a.get(name) != b.get(name)] or list(a)
    pairs = [ends(a[name], b[name]) if name in FILES else (a[name], b[name]) for name in telling]
    return " · ".join(pair[0] for pair in pairs), " · ".join(pair[1] for pair in pairs)


def ends(one: str, other: str) -> tuple[str, str]:
    """The shortest ends of two paths that tell them apart: "run1/best.pt" and "run2/best.pt"."""
    parts = PurePath(one).parts, PurePath(other).parts
    for count in range(1, max(map(len, parts)) + 1):
        short = [PurePath(*path[-count:]).as_posix() for path in parts]
        if short[0] != short[1] or one == other:
            return short[0], short[1]
    return one, other
