"""Image classifiers of Ultralytics."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from detcam.adapters.shared.classifier import StepsAdapter
from detcam.adapters.ultralytics.yolo import module_of, predict_size


class UltralyticsClassifier(StepsAdapter):
    """Ultralytics' classify models; `imgsz` is the side of the network's input, or (height, width), in pixels."""

    family = "ultralytics classify"
    models = "YOLO classify: v8, 11, 12, 26, and torchvision backbones with its head"
    install = 'pip install "detcam[ultralytics]"'

    @classmethod
    def serves(cls, model: Any) -> bool:
        """See `Adapter.serves`: an Ultralytics wrapper or module whose last layer is a Classify head."""
        if not any(base.__module__.split(".")[0] == "ultralytics" for base in type(model).__mro__):
            return False
        layers = getattr(module_of(model), "model", None)
        return isinstance(layers, nn.Sequential) and type(layers[-1]).__name__ == "Classify"

    @classmethod
    def unwrap(cls, model: Any) -> nn.Module:
        """See `Adapter.unwrap`."""
        module: nn.Module = module_of(model)
        return module

    def _set_up(self, module: Any, model: Any, imgsz: int | None, processor: Any) -> None:
        from ultralytics.data.augment import classify_transforms

        self.imgsz = imgsz or predict_size(model)
        size = (self.imgsz, self.imgsz) if isinstance(self.imgsz, int) else self.imgsz
        size = (-(-size[0] // 32) * 32, -(-size[1] // 32) * 32)  # as predict rounds it
        own = getattr(module, "transforms", None)  # a trained model keeps those that it was trained with
        side = None if own is None else own.transforms[0].size
        fits = ((side, side) if isinstance(side, int) else side) == size
        self.steps = (processor or (own if own is not None and fits else classify_transforms(size))).transforms
        module.model[-1].export = False
        self.classes = module.model[-1].linear.out_features
        self.names = dict(module.names) if isinstance(module.names, dict) else dict(enumerate(module.names))

    def _logits(self, batch: Tensor) -> Tensor:
        logits: Tensor = self.module(batch)[1]
        return logits
