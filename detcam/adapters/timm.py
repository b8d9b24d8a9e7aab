"""Image classifiers of timm."""

from __future__ import annotations

from typing import Any

from detcam.adapters.shared.classifier import StepsAdapter, compose_steps, imagenet_names
from detcam.models.versions import libraries_of


class TimmClassifier(StepsAdapter):
    """timm's classifiers, with the preprocessing of their data configuration; `imgsz` is the side of the crop."""

    family = "timm"
    models = "all of timm.create_model with class logits and maps [B, C, h, w] or tokens"
    install = "pip install timm"

    @classmethod
    def serves(cls, model: Any) -> bool:
        """See `Adapter.serves`."""
        return "timm" in libraries_of(model)

    def _set_up(self, module: Any, model: Any, imgsz: int | None, processor: Any) -> None:
        from timm.data import create_transform, resolve_model_data_config

        config = resolve_model_data_config(module)
        if imgsz is not None:
            config["input_size"] = (self.channels, imgsz, imgsz)
        self.imgsz = config["input_size"][1]
        self.steps = compose_steps(processor) if processor is not None else create_transform(**config).transforms
        self.classes = module.num_classes
        self.names = imagenet_names(self.classes)
