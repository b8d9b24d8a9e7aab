"""Loading of models by name: a shipped demo model, a weights file or a folder."""

import os
from pathlib import Path
from typing import Any

from detcam import zoo
from detcam.errors import ModelError, nearest, needing
from detcam.models.checkpoint import INSTALL, read_checkpoint, reason
from detcam.models.transformers_folder import read_folder

DOWNLOADABLE = ("yolo", "rtdetr")  # bare names that ultralytics downloads
SUFFIXES = (".pt", ".pth")
EXPORTED = (
    ".onnx", ".engine", ".trt", ".plan", ".torchscript", ".tflite", ".xml", ".mlpackage", ".mlmodel", ".pb", ".mnn",
)  # fmt: skip


def load_model(name: str | os.PathLike[str], trust_checkpoint: bool = False) -> Any:
    """The model behind a path or a name.

    Args:
        name: a `.pt` file in Ultralytics' format; a folder that transformers' `save_pretrained` wrote; the name of a
            shipped demo model (`detcam.zoo.names()`); or a bare name that ultralytics downloads (`yolov8n.pt`).
        trust_checkpoint: load pickled weights with any classes. A pickle can run any code: only for files whose maker
            you trust. Without it, only layers of torch and Ultralytics are built.

    Raises:
        ModelError: if the file does not exist, is not a checkpoint, or holds classes that are not on the allow-list of
            known layers; or if the library is too old.
        DependencyError: if ultralytics or transformers is needed and not installed.
    """
    if str(name) in zoo.names():
        return zoo.load(str(name))
    if "://" in str(name):
        raise ModelError(f"model {name} is a url: download it yourself and give the file")
    path = Path(name)
    try:
        if path.is_dir():
            return read_folder(path, trust_checkpoint)
        exists = path.exists()
        if exists and not path.is_file():
            raise ModelError(f"model {path} is not a regular file: give a .pt file")
    except (OSError, ValueError) as error:  # a loop of links, no permission, a NUL character
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"model {path} cannot be read ({error}): check the path") from None
    if path.suffix == ".safetensors":
        raise ModelError(f"model {path} holds weights only: give the folder with its config.json")
    if path.suffix.lower() in EXPORTED:
        raise ModelError(
            f"model {path} is an exported network, without layers or gradients: give the weights that it was exported "
            "from, or its session as a black box: CallableAdapter(..., layers=[], candidates=...) with method='drise'"
        )
    if path.suffix not in SUFFIXES:
        hint = nearest(str(name), zoo.names())
        if "scenes-yolo" not in zoo.names():  # installed from a wheel
            hint = f"{hint.removesuffix('?')}; the demo models of YOLO lie in a checkout, see detcam.zoo"
        raise ModelError(f"model {str(name)!r} is not a .pt file or demo model: {hint}")
    if not exists:
        path = _downloaded(path, str(name))
    return read_checkpoint(path, trust_checkpoint)


def _downloaded(path: Path, name: str) -> Path:
    """The file that ultralytics downloads for a bare name of its weights."""
    if path.name == name and path.stem.lower().startswith(DOWNLOADABLE):
        with needing(f"{name} would be downloaded by ultralytics, which is not installed: {INSTALL}"):
            from ultralytics.utils.downloads import attempt_download_asset
        try:
            path = Path(attempt_download_asset(name))
        except Exception as error:
            raise ModelError(f"model {name} cannot be downloaded ({reason(error)}): give a local file") from None
    if not path.is_file():
        raise ModelError(f"model {path} does not exist: check the path")
    return path
