"""Reader of `.pt` checkpoints that runs no code in them: a checkpoint is a pickle, and a pickle is a program."""

import io
import pickle
import pickletools
import re
import threading
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from detcam.errors import ModelError, needing
from detcam.files import read_regular
from detcam.models.allowed_classes import allowed
from detcam.models.versions import require

TRUST = "if you trust its maker, give --trust-checkpoint (in Python trust_checkpoint=True)"
SOURCE = "install the package, or the fork of ultralytics, that it was trained with"
INSTALL = 'pip install "detcam[ultralytics]"'
LARGEST = 2**30  # bytes: limit for old files that are searched for names
USUAL = ("torch.", "collections.", "copyreg.", "copy_reg.", "_codecs.", "builtins.object", "builtins.set")  # not layers
REPOSITORIES = ("models", "utils")  # top-level packages of YOLOv5's and YOLOv7's repositories, which no index has
_LOCK = threading.Lock()  # torch's list of allowed classes is global


def read_checkpoint(path: Path, trust: bool = False) -> nn.Module:
    """The model in a checkpoint, on the CPU, float32, in eval mode.

    The file is one of `torch.save`: a model, or a dict with a model as "ema" or "model", as from Ultralytics. With
    `trust`, files that are refused otherwise are also unpickled, which runs any code in them. Raises a ModelError if
    the file is damaged, holds no model, or names a class that is not on the list of known layers; a DependencyError if
    the model is from Ultralytics, which is not installed.
    """
    try:
        loaded = _restricted(path)
    except ModelError:
        if not trust:
            raise
        loaded = _unpickled(path)
    return _model(loaded, path)


def _restricted(path: Path) -> Any:
    _check_archive(path)
    try:
        names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))  # a set has no fixed order
    except Exception as error:  # an instruction or text that the restricted unpickler does not support
        raise _unknown(path, named(path), error) from None
    _import_ultralytics(names, path)
    entries, refused = allowed(names)
    if refused:
        raise _refusal(path, refused)
    try:
        with _LOCK, torch.serialization.safe_globals(entries):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling can raise any error
        raise _unknown(path, [], error) from None


def _unpickled(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # unpickling can raise any error
        elsewhere = [name for name in named(path) if name.split(".")[0] in REPOSITORIES]
        if elsewhere:
            raise _of_repository(path, elsewhere[0]) from None
        if isinstance(error, ImportError) or "Can't get attribute" in str(error):
            raise ModelError(f"model {path} needs code that is not here ({reason(error)}): {SOURCE}") from None
        raise ModelError(f"model {path} cannot be loaded ({reason(error)}): get a complete copy") from None


def _check_archive(path: Path) -> None:
    """Refuse archives unlike those of `torch.save`: compressed entries, or paths outside the archive."""
    if not zipfile.is_zipfile(path):
        if names := named(path):
            raise _refusal(path, names)
        with path.open("rb") as file:
            pickled = file.read(1) == pickle.PROTO
        if pickled:
            raise ModelError(f"model {path} cannot be loaded safely: it is a pickle from before PyTorch 1.6: {TRUST}")
        raise ModelError(f"model {path} cannot be loaded (not an archive of torch.save): get a complete copy")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise ModelError(f"model {path} cannot be loaded ({reason(error)}): get a complete copy") from None
    if any(entry.filename.endswith("/constants.pkl") for entry in entries):
        raise ModelError(f"model {path} is a TorchScript archive: give the checkpoint that it was exported from")
    packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    if packed or sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise ModelError(f"model {path} cannot be loaded (its entries exceed the file's size): save it with torch.save")
    if any(".." in re.split(r"[/\\]", entry.filename) or entry.filename.startswith("/") for entry in entries):
        raise ModelError(f"model {path} cannot be loaded (an entry's path leaves the archive): save it with torch.save")


def _import_ultralytics(names: Iterable[str], path: Path) -> None:
    if not any(name.startswith("ultralytics.") for name in names):
        return
    with needing(f"{path.name} is an Ultralytics checkpoint and ultralytics is not installed: {INSTALL}"):
        import ultralytics.nn.tasks
        import ultralytics.utils.loss  # noqa: F401
    require("ultralytics")


def _model(loaded: Any, path: Path) -> nn.Module:
    """The model in a loaded checkpoint, ready to run."""
    wrapper = loaded if isinstance(loaded, dict) else {"model": loaded}
    model: Any = wrapper.get("ema") if wrapper.get("ema") is not None else wrapper.get("model")
    if isinstance(getattr(model, "model", None), nn.Module) and not isinstance(model, nn.Module):
        model = model.model  # a library's wrapper, saved whole
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"model {path} cannot be loaded (it holds no model, perhaps weights only): build the model in Python "
            "and give it to Explainer"
        )
    try:
        held = sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])
        if held > path.stat().st_size:
            raise ValueError("its tensors are larger than the file")
        model = model.float().eval()
    except Exception as error:  # attributes are missing without the constructor
        raise ModelError(f"model {path} cannot be loaded ({reason(error)}): get a complete copy") from None
    if isinstance(loaded, dict):
        model.args = wrapper.get("train_args") or getattr(model, "args", {})
    return model


def named(path: Path) -> list[str]:
    """The classes and functions in a file's pickles that no checkpoint needs; for messages only."""
    names: dict[str, None] = {}
    with suppress(Exception):  # a damaged archive has no names, and the last pickle ends, or is damaged
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                inside = next(name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl")
                data = archive.read(inside)
        else:
            data = read_regular(path, LARGEST)
        stream = io.BytesIO(data)
        while True:  # old files hold several pickles
            for name in _globals(stream):
                names[name] = None
    return allowed(name for name in names if not name.startswith(USUAL))[1]


def _globals(stream: io.BytesIO) -> Iterator[str]:
    """The names of the classes and functions in a pickle."""
    texts = [""]  # in the order in which they are put on the stack
    memo: dict[Any, str] = {}
    for code, value, _ in pickletools.genops(stream):
        if code.name == "GLOBAL":
            yield str(value).replace("__builtin__", "builtins").replace(" ", ".")
        elif code.name == "STACK_GLOBAL":
            yield ".".join(texts[-2:])
        elif "GET" in code.name:
            texts.append(memo.get(value, ""))
        elif "PUT" in code.name or code.name == "MEMOIZE":
            memo[len(memo) if value is None else value] = texts[-1]
        elif isinstance(value, str):
            texts.append(value)


def _of_repository(path: Path, name: str) -> ModelError:
    return ModelError(
        f"model {path} was saved by a repository's own code ({name}), as YOLOv5's and YOLOv7's: load it inside that "
        "repository and give the module with adapter=CallableAdapter(...), or give Ultralytics' weights, e.g. "
        "yolov5nu.pt"
    )


def _refusal(path: Path, names: list[str]) -> ModelError:
    if names[0].split(".")[0] in REPOSITORIES:
        return _of_repository(path, names[0])
    others = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return ModelError(
        f"model {path} cannot be loaded safely: it holds {names[0]}{others}, which is not one of the known "
        f"layers and could run any code: {TRUST}"
    )


def _unknown(path: Path, names: list[str], error: Exception) -> ModelError:
    if not isinstance(error, pickle.UnpicklingError):
        return ModelError(f"model {path} cannot be loaded ({reason(error)}): get a complete copy")
    if names:
        return _refusal(path, names)
    return ModelError(f"model {path} cannot be loaded safely ({reason(error)}): {TRUST}")


def reason(error: Exception) -> str:
    """The first line of an error's message, shortened."""
    lines = str(error).strip().splitlines()
    return (lines[0][:200] if lines else type(error).__name__).rstrip(".:")
