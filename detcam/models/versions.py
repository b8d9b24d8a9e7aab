"""The oldest version of each library whose models are explained, and one clear line for what is older."""

from __future__ import annotations

import re
import sys
from typing import Any

from detcam.errors import ModelError

# By the name that the library is imported by. The tests of its families passed with exactly this version; the bounds in
# pyproject.toml are the same.
OLDEST: dict[str, str] = {
    "ultralytics": "8.4.183",
    "torchvision": "0.25.0",
    "transformers": "5.10.1",
    "timm": "1.0.3",
    "rfdetr": "1.11.0",
    "segmentation_models_pytorch": "0.4.0",
}


def require_supported(model: Any) -> None:
    """Raise a ModelError that names both versions if a library that `model` comes from is too old."""
    for library in {base.__module__.split(".")[0] for base in type(model).__mro__} & OLDEST.keys():
        require(library)


def require(library: str) -> None:
    """Raise a ModelError that names both versions if `library`, by the name that it is imported by, is too old.

    One that is not imported, or does not say its version, passes.
    """
    installed = str(getattr(sys.modules.get(library), "__version__", ""))
    if installed and _numbers(installed) < _numbers(OLDEST[library]):
        name, oldest = library.replace("_", "-"), OLDEST[library]
        raise ModelError(
            f"{name} {installed} is too old: detcam explains models of {oldest} or newer: "
            f'pip install "{name}>={oldest}"'
        )


def _numbers(version: str) -> tuple[int, ...]:
    """The release part of a version: (0, 29, 2) of "0.29.2+cpu"."""
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0])[:3])
