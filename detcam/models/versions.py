"""Versions: the oldest supported one of each library, what is said of older ones, and what made an explanation."""

import hashlib
import importlib.metadata
import re
import sys
import warnings
from functools import cache
from typing import Any

import torch
from torch import nn

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


def installed(package: str) -> str | None:
    """The version of a package on this machine, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


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


class Origin:
    """What makes the explanations of a model: packages and weights, which are read again when they were written to."""

    def __init__(self, module: nn.Module, model: Any) -> None:
        names = {"detcam", "torch"} | (libraries_of(model) | libraries_of(module)) & OLDEST.keys()
        self._versions = {name: str(getattr(sys.modules.get(name), "__version__", "")) for name in sorted(names)}
        self._module, self._tensors = module, [*module.parameters(), *module.buffers()]
        self._weights: tuple[int, str | None] = -1, None

    def facts(self) -> dict[str, Any]:
        """{"versions": {package: version}, "weights": digest or None, see `weights_digest`}."""
        writes = sum(tensor._version for tensor in self._tensors if not tensor.is_inference())
        if self._weights[0] != writes:
            self._weights = writes, weights_digest(self._module)
        return {"versions": self._versions, "weights": self._weights[1]}


def weights_digest(module: nn.Module) -> str | None:
    """The SHA-256 of the names, types, shapes and values of a state dict; None if they are not plain tensors."""
    digest = hashlib.sha256()
    try:
        for name, value in sorted(module.state_dict().items()):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode(errors="replace"))
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    except (AttributeError, RuntimeError, TypeError):  # packed int8 weights, sparse or sharded tensors
        return None
    return digest.hexdigest()
