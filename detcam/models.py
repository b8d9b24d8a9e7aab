"""From what the user names to a model: a shipped demo model or a weights file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from detcam import zoo
from detcam.errors import ModelError, nearest
from detcam.versions import require

DOWNLOADABLE = ("yolo", "rtdetr")  # bare names that ultralytics fetches by itself


def load_model(name: str | os.PathLike[str]) -> Any:
    """The model behind a path or a name.

    Args:
        name: a `.pt` file in Ultralytics' format, the name of a shipped demo model (`detcam.zoo.names()`), or a bare
            name that ultralytics downloads (`yolov8n.pt`).

    Raises:
        ModelError: if there is no such file, it is no checkpoint, or it holds classes that are not on the allow-list
            of known layers: a checkpoint is a pickle, which could otherwise run any code; or the library is too old.
        ImportError: if ultralytics is needed and not installed.
    """
    path = Path(name)
    if str(name) in zoo.names():
        return zoo.load(str(name))
    if path.suffix != ".pt":
        raise ModelError(f"model {str(name)!r} is no .pt file and no demo model: {nearest(str(name), zoo.names())}")
    bare = path.name == str(name) and path.stem.lower().startswith(DOWNLOADABLE)
    if not path.exists() and not bare:
        raise ModelError(f"model {path} does not exist: check the path")
    if path.is_dir():
        raise ModelError(f"model {path} is a directory: give the .pt file in it")
    return _load_checkpoint(path)


def _load_checkpoint(path: Path) -> Any:
    try:
        import ultralytics.nn.tasks as tasks
    except ImportError:
        raise ImportError(
            f"{path.name} is an Ultralytics checkpoint and ultralytics is not installed: "
            'pip install "detcam[ultralytics]"'
        ) from None
    require("ultralytics")
    try:
        checkpoint, _ = tasks.torch_safe_load(str(path), safe_only=True)
        module = (checkpoint.get("ema") or checkpoint["model"]).float()
    except Exception as error:  # unpickling raises anything; the reason's first line is what a user can act on
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"model {path} cannot be loaded ({reason}): give a .pt that Ultralytics saved") from None
    module.args = checkpoint.get("train_args") or getattr(module, "args", {})
    return module.eval()
