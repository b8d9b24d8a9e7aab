"""Allow-list of the classes in a checkpoint: layers of torch and Ultralytics, and a few plain values.

PyTorch's restricted unpickler (`weights_only=True`) builds objects of listed classes only, but a file can also *call*
these classes with any arguments: a constructor may open files, download weights or evaluate text. So each class is
listed as a shell that makes an empty object and takes no arguments, and each function as a function of detcam that
makes plain values. Whatever a file contains, of a library only `__setstate__` runs.
"""

import sys
from collections.abc import Callable, Iterable
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any, ClassVar

import numpy as np
from torch import nn

LAYERS = ("torch.nn.modules", "ultralytics.nn.modules", "ultralytics.nn.tasks")  # subclasses of nn.Module only
LOSSES = ("ultralytics.utils.loss", "ultralytics.utils.tal", "ultralytics.nn.distill_model")  # of unfinished trainings
RENAMED = {
    "ultralytics.nn.modules.block.Silence": "torch.nn.modules.linear.Identity",  # YOLOv9e
    "ultralytics.nn.tasks.YOLOv10DetectionModel": "ultralytics.nn.tasks.DetectionModel",
    "ultralytics.utils.loss.v10DetectLoss": "ultralytics.utils.loss.E2EDetectLoss",
    "ultralytics.yolo.utils.IterableSimpleNamespace": "ultralytics.utils.IterableSimpleNamespace",  # before 8.0.44
}
OTHERS = (  # further classes in Ultralytics' weights; the transforms are of classifiers
    "ultralytics.utils.IterableSimpleNamespace",
    *(f"torchvision.transforms.transforms.{name}" for name in ("Compose", "Normalize", "Resize", "CenterCrop")),
    "torchvision.transforms.transforms.ToTensor",
)
INTERPOLATION = "torchvision.transforms.functional.InterpolationMode"
PLAIN_KINDS = "biufc"  # numpy's letters for numbers: an object array could hold anything


class Shell:
    """Stands for a class while a checkpoint is read, and makes empty objects of that class."""

    cls: ClassVar[type]


def allowed(names: Iterable[str]) -> tuple[list[Any], list[str]]:
    """Substitutes for the classes and functions that a checkpoint names.

    Returns entries for `torch.serialization.safe_globals`, and the names that are not on the list.
    """
    entries: list[Any] = []
    refused = []
    for name in names:
        if name in _FUNCTIONS:
            entries.append((_FUNCTIONS[name], name))
        elif (cls := _class(RENAMED.get(name, name))) is not None:
            # The unpickler fills objects of listed classes only. No file can name this entry: names are read by line.
            entries += [(_shell(cls), name), (cls, f"{name}\n")]
        else:
            refused.append(name)
    return [*entries, (_Dtype, "dtype\n")], refused


def _class(name: str) -> type | None:
    """The class of that name if it is on the allow-list and its library is imported."""
    module, _, attribute = name.rpartition(".")
    cls = getattr(sys.modules.get(module), attribute, None)
    if not isinstance(cls, type):
        return None
    home = cls.__module__
    layer = issubclass(cls, nn.Module) and (home in LAYERS or home.rpartition(".")[0] in LAYERS)
    return cls if layer or (home == module and module in LOSSES) or name in (*OTHERS, INTERPOLATION) else None


def _shell(original: type) -> type[Shell]:
    cls: Any = original

    def empty(_: type) -> Any:
        return cls.__new__(cls)

    def member(_: type, value: Any) -> Any:
        return cls(value)

    enumeration = f"{cls.__module__}.{cls.__qualname__}" == INTERPOLATION
    return type("Shell", (Shell,), {"cls": cls, "__new__": member if enumeration else empty})


def _attribute(owner: Any, name: str) -> Any:
    """`getattr` for the uses in checkpoints: a layer's method, e.g. `Detect.forward`, or an enumeration's member."""
    known = owner.cls if isinstance(owner, type) and issubclass(owner, Shell) else None
    if known is not None and isinstance(name, str) and not name.startswith("_"):
        return getattr(known, name)
    if isinstance(owner, nn.Module) and name in ("forward", "forward_fuse"):
        return getattr(type(owner), name).__get__(owner)
    raise ValueError(f"getattr of a {type(owner).__name__}")


class _Dtype:
    """A numpy dtype of numbers."""

    def __init__(self, letters: str, *_: Any) -> None:
        self.dtype = np.dtype(letters)
        if self.dtype.kind not in PLAIN_KINDS:
            raise ValueError(f"a numpy value of {self.dtype}")

    def __setstate__(self, state: Any) -> None:
        """Ignores byte order and padding, which numbers do not need."""


def _scalar(dtype: _Dtype, data: bytes) -> Any:
    return np.frombuffer(data, dtype.dtype, count=1)[0].item()


def _path(kind: type) -> Callable[..., Any]:
    return lambda *parts: kind(*[part for part in parts if isinstance(part, str)])


_FUNCTIONS: dict[str, Any] = {
    "builtins.getattr": _attribute,
    "numpy.dtype": _Dtype,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,
    **{f"{module}.PosixPath": _path(PurePosixPath) for module in ("pathlib", "pathlib._local")},
    **{f"{module}.WindowsPath": _path(PureWindowsPath) for module in ("pathlib", "pathlib._local")},
}
