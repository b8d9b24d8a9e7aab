"""Oldest supported version of each library, and what is said of older versions."""

from __future__ import annotations

import re
import sys
import warnings
from functools import cache
from typing import Any

from detcam.errors import ModelError

# By import name. The tests of the library's families passed with exactly this version, which is also the bound in
# pyproject.toml.
OLDEST: dict[str, str] = {
    "ultralytics": "8.4.183",
    "torchvision": "0.25.0",
    "transformers": "5.10.1",
    "timm": "1.0.3",
    "rfdetr": "1.11.0",
    "segmentation_models_pytorch": "0.4.0",
}


TRIED = ("ultralytics",)  # whose forks and older versions are tried: an upgrade would overwrite a fork


def require_supported(model: Any) -> None:
    """Raise a ModelError that names both versions if the library of `model` is too old; see `require`."""
    for library in libraries_of(model) & OLDEST.keys():
        require(library)


def libraries_of(model: Any) -> set[str]:
    """The top-level packages of the model's class and of its base classes."""
    return {base.__module__.split(".")[0] for base in type(model).__mro__}


def require(library: str) -> None:
    """Raise a ModelError that names both versions if `library`, an import name, is too old; warn if it is in `TRIED`.

    Passes if the library is not imported, or has no version.
    """
    installed = str(getattr(sys.modules.get(library), "__version__", ""))
    if installed and _numbers(installed) < _numbers(OLDEST[library]):
        name, oldest = library.replace("_", "-"), OLDEST[library]
        if library in TRIED:
            _warn(f"{name} {installed} is older than {oldest}, the oldest that detcam was tested with: it is tried")
            return
        raise ModelError(
            f"{name} {installed} is too old: detcam explains models of {oldest} or newer: "
            f'pip install "{name}>={oldest}"'
        )


@cache
def _warn(message: str) -> None:
    """Warn once in a process."""
    warnings.warn(message, stacklevel=3)


def _numbers(version: str) -> tuple[int, ...]:
    """The release part of a version: (0, 29, 2) of "0.29.2+cpu"."""
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0])[:3])
