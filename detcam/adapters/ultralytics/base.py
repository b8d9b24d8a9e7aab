"""Base of Ultralytics' detectors: numbered layers, of which the last is the head."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from torch import nn

from detcam.adapters.base import Adapter, LayerPlan


class UltralyticsAdapter(Adapter):
    """Base of Ultralytics' detectors."""

    install = 'pip install "detcam[ultralytics]"'
    fuse: ClassVar[Literal["level", "sum"]]  # of the maps that the head reads, see `LayerPlan`
    size: tuple[int, int]  # (height, width) of the network's input

    def __init__(self, module: Any, model: Any, imgsz: int | None = None, processor: Any = None) -> None:
        super().__init__(module, model, imgsz, processor)
        self.imgsz = imgsz or predict_size(model)
        self.sequence = module.model  # the nn.Sequential of numbered layers
        self.backbone = len(module.yaml["backbone"])  # layers 0 .. backbone - 1; the neck or encoder follows
        self.head = self.sequence[-1]
        self.head.export = False
        self.names = names_of(module)

    @classmethod
    def unwrap(cls, model: Any) -> nn.Module:
        """See `Adapter.unwrap`."""
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
    """The nn.Module of a wrapper, or the path of its exported model, both in `.model`; a module as it is."""
    return model.model if hasattr(model, "overrides") else model


def head_of(model: Any) -> Any:
    """The last layer of a wrapper or module; None if its layers are not in a sequence."""
    layers = getattr(module_of(model), "model", None)
    return layers[-1] if isinstance(layers, nn.Sequential) else None


def names_of(module: Any) -> dict[int, str]:
    """The class names of a module by number."""
    return dict(module.names) if isinstance(module.names, dict) else dict(enumerate(module.names))


def predict_size(model: Any) -> int | tuple[int, int]:
    """The input size of the model's predict call: one number, or (height, width)."""
    arguments = getattr(module_of(model), "args", {})
    arguments = arguments if isinstance(arguments, dict) else vars(arguments)
    size = getattr(model, "overrides", {}).get("imgsz") or arguments.get("imgsz") or 640
    return size if isinstance(size, int) else (int(size[0]), int(size[-1]))


def rounded_up(imgsz: int | tuple[int, int], stride: int) -> tuple[int, int]:
    """(height, width) of an input of `imgsz` pixels, rounded up to multiples of `stride` as predict rounds it."""
    height, width = (imgsz, imgsz) if isinstance(imgsz, int) else imgsz
    return -(-height // stride) * stride, -(-width // stride) * stride
