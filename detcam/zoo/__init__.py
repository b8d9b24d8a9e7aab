"""The demo models that come with the package: small, trained from scratch on `detcam.scenes`, free to use.

A model NAME is two files here: NAME.yaml (architecture, class names, picture size, measured figures) and
NAME.safetensors (weights; the kernels in half precision). Nothing is downloaded and nothing is unpickled.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from ultralytics import YOLO

FOLDER = Path(__file__).parent


def names() -> tuple[str, ...]:
    """Return the names that `load` takes."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.safetensors")))


def load(name: str = "scenes") -> YOLO:
    """Return a demo model as `ultralytics.YOLO`, on the CPU, float32, in eval mode.

    Its `predict(image)` uses the picture size that it was trained with unless `imgsz` is given, and its
    results carry the class names. Each call builds a new model. Raises ValueError for an unknown name,
    ImportError without Ultralytics.
    """
    if name not in names():
        raise ValueError(f"no demo model {name!r}: there is {', '.join(names()) or 'none'}")
    try:
        from ultralytics import YOLO
    except ImportError as error:
        raise ImportError(f'the demo model {name!r} runs on Ultralytics: pip install "detcam[ultralytics]"') from error
    from safetensors.torch import load_file

    path = FOLDER / f"{name}.yaml"
    description = yaml.safe_load(path.read_text(encoding="utf-8"))
    wrapper = YOLO(str(path), task="segment")  # reads the architecture from the same file
    network: Any = wrapper.model
    network.load_state_dict(load_file(FOLDER / f"{name}.safetensors"), strict=True)  # copies into float32
    network.names = dict(enumerate(description["names"]))
    wrapper.overrides["imgsz"] = network.args["imgsz"] = description["imgsz"]
    network.requires_grad_(False).eval()
    return wrapper
