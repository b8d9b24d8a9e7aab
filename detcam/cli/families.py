"""Table of the families of models: supported models and targets, installation, and tested versions."""

import importlib.metadata
from typing import Any

from detcam.adapters import ADAPTERS, Adapter, CallableAdapter
from detcam.models.versions import OLDEST

# The newest version of each library that the tests of its families ran with, by the first word of the family's name;
# the oldest version is in `detcam.models.versions`.
TESTED: dict[str, str] = {
    "ultralytics": "8.4.190",
    "torchvision": "0.29.2",
    "transformers": "5.23.0",
    "rfdetr": "1.11.2",
    "timm": "1.0.31",
    "segmentation-models-pytorch": "0.6.0",
}


def family_rows() -> list[dict[str, Any]]:
    """A row for each family.

    Keys: family, models (for display), targets, install (a command or an instruction), oldest and tested (the library
    with the oldest and the newest tested version, or None), installed (the version on this machine, or None).
    """
    adapters: tuple[type[Adapter], ...] = (*ADAPTERS, CallableAdapter)
    return [
        {
            "family": adapter.family,
            "models": adapter.models,
            "targets": list(adapter.targets),
            "install": adapter.install,
            "oldest": _named(adapter.family, OLDEST.get(_library(adapter.family).replace("-", "_"))),
            "tested": _named(adapter.family, TESTED.get(_library(adapter.family))),
            "installed": installed(_library(adapter.family)),
        }
        for adapter in adapters
    ]


def _library(family: str) -> str:
    return family.split()[0]


def _named(family: str, version: str | None) -> str | None:
    return f"{_library(family)} {version}" if version else None


def installed(package: str) -> str | None:
    """The version of a package on this machine, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
