"""Base of Ultralytics' detectors: numbered layers, of which the last is the head."""

from typing import Any, ClassVar, Literal

import cv2
import numpy as np
from torch import nn

from detcam.adapters.base import Adapter, LayerPlan
from detcam.errors import ModelError
from detcam.models.versions import OLDEST


class PredictReader(Adapter):
    """Base of Ultralytics' adapters: images are read as by its predict call."""

    library = "ultralytics"
    install = 'pip install "detcam[ultralytics]"'

    def __init__(self, module: Any, model: Any, imgsz: Any = None, processor: Any = None) -> None:
        super().__init__(module, model, imgsz, processor)
        self.channels = int(module.yaml.get("channels") or module.yaml.get("ch") or 3)

    @property
    def reading(self) -> tuple[int, bool]:
        return self.channels, True

    def fit(self, image: np.ndarray) -> np.ndarray:
        """See `Adapter.fit`: 16 bits become their high byte, colour becomes grey, and grey is repeated."""
        if image.dtype == np.uint16:
            image = (image >> 8).astype(np.uint8)
        if self.channels == 1 and image.shape[2] in (3, 4):
            return cv2.cvtColor(np.ascontiguousarray(image[:, :, :3]), cv2.COLOR_RGB2GRAY)[:, :, None]
        return np.repeat(image, self.channels, axis=2) if image.shape[2] == 1 else super().fit(image)


class UltralyticsAdapter(PredictReader):
    """Base of Ultralytics' detectors."""

    fuse: ClassVar[Literal["level", "sum"]]  # of the maps that the head reads, see `LayerPlan`
    size: tuple[int, int]  # (height, width) of the network's input

    def __init__(self, module: Any, model: Any, imgsz: int | None = None, processor: Any = None) -> None:
        super().__init__(module, model, imgsz, processor)
        self.imgsz = imgsz or predict_size(model)
        self.sequence = module.model  # the nn.Sequential of numbered layers
        self.backbone = len(module.yaml["backbone"])  # layers 0 .. backbone - 1; the neck or encoder follows
        self.head = self.sequence[-1]
        self.head.export = False
        self.names = names_of(module, self.head.nc)

    @classmethod
    def unwrap(cls, model: Any) -> nn.Module:
        return module_of(model)

    def layers(self, preset: str) -> LayerPlan:
        """See `Adapter.layers`: "level" are the maps that enter the head."""
        if preset == "level":
            inputs = self._inputs_of(len(self.sequence) - 1)
            return LayerPlan(tuple(f"model.{i}" for i in inputs), cut_all=True, fuse=self.fuse)
        # What follows the backbone reads its last layer and, through skips, earlier ones.
        beyond = range(self.backbone, len(self.sequence))
        entries = {i for layer in beyond for i in self._inputs_of(layer) if i < self.backbone}
        return LayerPlan(tuple(f"model.{i}" for i in sorted(entries)), cut_all=True, fuse="sum")

    def _inputs_of(self, layer: int) -> list[int]:
        """The indices of the layers that feed `layer`, in the order of its inputs."""
        source: Any = self.sequence[layer].f
        sources = [source] if isinstance(source, int) else source
        return [layer + i if i < 0 else i for i in sources]


def module_of(model: Any) -> Any:
    """The nn.Module with the sequence of layers in a wrapper, predictor, trainer or average of weights.

    Of a wrapper around an exported model, its path; anything else as it is.
    """
    while not isinstance(getattr(model, "model", None), nn.Sequential):
        held = (getattr(model, name, None) for name in ("ema", "model", "module"))
        inside = next((part for part in held if part is not None), None)
        if inside is None:
            return model
        model = inside
    return model


def head_of(model: Any) -> Any:
    """The last layer of a wrapper or module; None if its layers are not in a sequence."""
    layers = getattr(module_of(model), "model", None)
    return layers[-1] if isinstance(layers, nn.Sequential) else None


def kinds_of(head: Any) -> set[str]:
    """The names of a head's class and of the classes that it derives from."""
    return {base.__name__ for base in type(head).__mro__}


def require_parts(module: Any, parts: tuple[str, ...]) -> None:
    """Raise a ModelError if the head of a module lacks an attribute that objects are read by, and name it."""
    head = head_of(module)
    if missing := [part for part in parts if not hasattr(head, part)]:
        raise ModelError(
            f"{type(module).__name__} with head {type(head).__name__} has no {missing[0]}, by which objects are read: "
            f"derive the head from that of ultralytics {OLDEST['ultralytics']} or newer, or give "
            "adapter=CallableAdapter(...)"
        )


def names_of(module: Any, classes: int) -> dict[int, str]:
    """The names of `classes` classes by number, as predict reads them; "class 17" where a module has none."""
    given = getattr(module, "names", None) or {}
    items = given.items() if isinstance(given, dict) else enumerate(given)
    known = {int(i): str(name) for i, name in items if str(i).isdecimal()}
    return {**{i: f"class {i}" for i in range(classes)}, **known}


def predict_size(model: Any) -> int | tuple[int, int]:
    """The input size of the model's predict call: one number, or (height, width)."""
    arguments = getattr(module_of(model), "args", {})
    arguments = arguments if isinstance(arguments, dict) else vars(arguments)
    size = getattr(model, "overrides", {}).get("imgsz") or arguments.get("imgsz") or 640
    return size if isinstance(size, int) else (int(size[0]), int(size[-1]))
