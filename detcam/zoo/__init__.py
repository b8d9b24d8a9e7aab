"""Demo models of the package: small, trained on `detcam.scenes`, free to use.

A model NAME is NAME.yaml (description and training) and its weights, with kernels in half precision: for Ultralytics
and torchvision NAME.safetensors, with the architecture, class names and image size in NAME.yaml; for transformers the
library's files in the folder NAME. Nothing is downloaded and nothing is unpickled.

Models that were trained with Ultralytics' code, which Ultralytics calls AGPL-3.0, lie in the folder "ultralytics" of a
checkout, and in no wheel. The environment variable DETCAM_ZOO names a further folder to look in.
"""

import os
from pathlib import Path
from typing import Any

import yaml

from detcam.errors import DependencyError, ModelError, nearest
from detcam.zoo.rcnn import rcnn

FOLDER = Path(__file__).parent


def names() -> tuple[str, ...]:
    """Return the names for `load`; those of models for planted scenes come last."""
    found = sorted({path.stem for folder in _folders() for path in folder.glob("*.yaml")})
    return tuple(sorted(found, key=lambda name: name.startswith("planted_")))


def files(name: str) -> list[Path]:
    """Return the files of a model; an empty list for an unknown name."""
    folder = next((folder for folder in _folders() if (folder / f"{name}.yaml").exists()), None)
    return [] if folder is None else sorted([*folder.glob(f"{name}.*"), *(folder / name).glob("*")])


def _folders() -> list[Path]:
    given = os.environ.get("DETCAM_ZOO")
    return [FOLDER, FOLDER / "ultralytics", *([Path(given)] if given else [])]


def load(name: str = "scenes") -> Any:
    """Return a new demo model of its library, on the CPU, float32, in eval mode.

    A model of Ultralytics is a `ultralytics.YOLO` or `ultralytics.RTDETR`; `predict(image)` uses the image size of
    training unless `imgsz` is given, and its results have the class names. A model of transformers has the class names
    in its configuration and the settings of its image processor in the folder `model.config._name_or_path`. A model of
    torchvision is a `FasterRCNN` or `MaskRCNN` with the class names in `names`; class 0 is the background.

    Raises:
        ModelError: for an unknown name.
        DependencyError: without the model's library.
    """
    given = {path.suffix: path for path in files(name)}
    if ".yaml" not in given:
        raise ModelError(f"no demo model {name!r}: {nearest(str(name), names())}")
    description = yaml.safe_load(given[".yaml"].read_text(encoding="utf-8"))
    library = description.get("library", "ultralytics")
    try:
        return _BUILDERS[library](given, description)
    except ImportError as error:
        raise DependencyError(f'the demo model {name!r} runs on {library}: pip install "detcam[{library}]"') from error


def _ultralytics(given: dict[str, Path], description: dict[str, Any]) -> Any:
    from safetensors.torch import load_file
    from ultralytics import RTDETR, YOLO

    path = str(given[".yaml"])  # Ultralytics reads the architecture from this file
    queries = description["head"][-1][2] == "RTDETRDecoder"
    wrapper: Any = RTDETR(path) if queries else YOLO(path, task=description.get("task", "segment"))
    network = wrapper.model
    network.load_state_dict(load_file(given[".safetensors"]), strict=True)  # copies into float32
    network.names = dict(enumerate(description["names"]))
    wrapper.overrides["imgsz"] = network.args["imgsz"] = description["imgsz"]
    network.requires_grad_(False).eval()
    return wrapper


def _transformers(given: dict[str, Path], description: dict[str, Any]) -> Any:
    import transformers
    from safetensors.torch import load_file

    weights = given[".safetensors"]
    config = transformers.AutoConfig.from_pretrained(weights.parent, local_files_only=True)
    network = getattr(transformers, description["class"])(config)
    network.load_state_dict(load_file(weights), strict=True)  # copies into float32
    return network.requires_grad_(False).eval()


def _torchvision(given: dict[str, Path], description: dict[str, Any]) -> Any:
    from safetensors.torch import load_file

    network = rcnn(description)
    network.names = dict(enumerate(("background", *description["names"])))
    network.load_state_dict(load_file(given[".safetensors"]), strict=True)  # copies into float32
    return network.requires_grad_(False).eval()


_BUILDERS = {"ultralytics": _ultralytics, "transformers": _transformers, "torchvision": _torchvision}
