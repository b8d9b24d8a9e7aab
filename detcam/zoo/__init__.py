"""The demo models that come with the package: small, trained on `detcam.scenes`, free to use.

A model NAME is NAME.yaml (what it is, and how it was trained) beside its weights, the kernels in half precision: for
Ultralytics NAME.safetensors, with the architecture, class names and picture size in NAME.yaml; for transformers the
library's own files in the folder NAME. Nothing is downloaded and nothing is unpickled.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from detcam.errors import DependencyError, ModelError, nearest

FOLDER = Path(__file__).parent


def names() -> tuple[str, ...]:
    """Return the names that `load` takes."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


def load(name: str = "scenes") -> Any:
    """Return a demo model, on the CPU, float32, in eval mode: a model of its own library. Each call builds a new one.

    One of Ultralytics is a `ultralytics.YOLO` or `ultralytics.RTDETR`, whose `predict(image)` uses the picture size
    that it was trained with unless `imgsz` is given, and whose results carry the class names. One of transformers is
    the library's model, with class names in its configuration and its image processor's settings in the folder that
    `model.config._name_or_path` names.

    Raises:
        ModelError: for an unknown name.
        DependencyError: if the model's library is not installed.
    """
    if name not in names():
        raise ModelError(f"no demo model {name!r}: {nearest(str(name), names())}")
    description = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    library = description.get("library", "ultralytics")
    try:
        return _BUILDERS[library](name, description)
    except ImportError as error:
        raise DependencyError(f'the demo model {name!r} runs on {library}: pip install "detcam[{library}]"') from error


def _ultralytics(name: str, description: dict[str, Any]) -> Any:
    from safetensors.torch import load_file
    from ultralytics import RTDETR, YOLO

    path = str(FOLDER / f"{name}.yaml")  # they read the architecture from the same file
    queries = description["head"][-1][2] == "RTDETRDecoder"
    wrapper: Any = RTDETR(path) if queries else YOLO(path, task=description.get("task", "segment"))
    network = wrapper.model
    network.load_state_dict(load_file(FOLDER / f"{name}.safetensors"), strict=True)  # copies into float32
    network.names = dict(enumerate(description["names"]))
    wrapper.overrides["imgsz"] = network.args["imgsz"] = description["imgsz"]
    network.requires_grad_(False).eval()
    return wrapper


def _transformers(name: str, description: dict[str, Any]) -> Any:
    import transformers
    from safetensors.torch import load_file

    folder = FOLDER / name
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    network = getattr(transformers, description["class"])(config)
    network.load_state_dict(load_file(folder / "model.safetensors"), strict=True)  # copies into float32
    return network.requires_grad_(False).eval()


_BUILDERS = {"ultralytics": _ultralytics, "transformers": _transformers}
