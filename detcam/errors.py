"""The package's exceptions: each message says what is wrong, where, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DetcamError(Exception):
    """Base class of every error that detcam raises on purpose."""


class InputError(DetcamError, ValueError):
    """What the caller gave cannot be used. The command line answers with exit code 2."""


class ImageError(InputError):
    """The picture cannot be read."""


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


def nearest(name: str, choices: Iterable[str]) -> str:
    """A hint that names the choices nearest to a misspelt `name`, ready to end a message with."""
    choices = list(choices)
    close = difflib.get_close_matches(name, choices, n=3, cutoff=0.4)
    if close:
        return f"did you mean {' or '.join(repr(c) for c in close)}?"
    return f"choose one of {', '.join(choices[:12])}{', ...' if len(choices) > 12 else ''}"
