"""The package's exceptions: each message says what is wrong, where, and what to do.

    DetcamError
        InputError (also a ValueError)      what the caller gave cannot be used
            ImageError                      the image cannot be read
            ModelError                      the model cannot be loaded, or no adapter explains it
            LayerError                      the layer does not exist, does not run, or carries nothing
            MethodError                     the method does not exist
            TargetError                     the target does not exist for this model
            OutputError                     the output cannot be written
        DependencyError (also an ImportError)   a library is missing; names the extra to install

Public functions raise only these on purpose, except that `detcam.ops` raises TypeError and ValueError, like torch's
operators. The command line prints them as a single line and exits with code 2.
"""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

LONGEST = 1000  # characters of a message: names in a hostile file may have no end
JOINERS = "\u200c\u200d"  # inside words of Persian or Hindi, and inside emoji


def plain(text: object) -> str:
    r"""A name or message as a single line without control characters, which are escaped: `\x1b`, `\n`.

    Names of files and classes may come from strangers, and could otherwise move the cursor or hide text.
    """
    shown = (c if c.isprintable() or c in JOINERS else c.encode("unicode_escape").decode("ascii") for c in str(text))
    return "".join(shown)


class DetcamError(Exception):
    """Base class of every error that detcam raises on purpose."""

    def __init__(self, message: object = "") -> None:
        line = plain(message)
        super().__init__(line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} ... {line[-LONGEST // 3 :]}")


class InputError(DetcamError, ValueError):
    """What the caller gave cannot be used. The command line answers with exit code 2."""


class ImageError(InputError):
    """The image cannot be read."""


class ModelError(InputError):
    """The model cannot be loaded, or no adapter explains it."""


class LayerError(InputError):
    """The layer does not exist, does not run, or the score does not depend on it."""


class MethodError(InputError):
    """The method does not exist."""


class TargetError(InputError):
    """The target does not exist for this model."""


class OutputError(InputError):
    """The output cannot be written."""


class DependencyError(DetcamError, ImportError):
    """A required library is not installed; the message names the extra that installs it."""


@contextmanager
def writing(place: object, advice: str) -> Iterator[None]:
    """Context that turns an OSError into an OutputError: what cannot be written, why, and what to do."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{place} cannot be written ({error.strerror or error}): {advice}") from None


@contextmanager
def needing(message: str) -> Iterator[None]:
    """Context for an import that turns an ImportError into a DependencyError with this message."""
    try:
        yield
    except ImportError:
        raise DependencyError(message) from None


def nearest(name: str, choices: Iterable[str]) -> str:
    """A hint with the choices nearest to a misspelt `name`, to end a message with."""
    choices = list(choices)
    close = difflib.get_close_matches(name, choices, n=3, cutoff=0.4)
    if close:
        return f"did you mean {' or '.join(repr(c) for c in close)}?"
    return f"choose one of {', '.join(choices[:12])}{', ...' if len(choices) > 12 else ''}"
