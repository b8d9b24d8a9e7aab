"""Image classifiers of timm."""

from typing import Any

from torch import nn

from detcam.adapters.base import sides_of
from detcam.adapters.shared.classifier import StepsAdapter, compose_steps, imagenet_names
from detcam.errors import InputError, ModelError


class TimmClassifier(StepsAdapter):
    """timm's classifiers, with the preprocessing of their data configuration; `imgsz` is the side of the crop."""

    family = "timm"
    library = "timm"
    models = "all of timm.create_model with class logits and maps [B, C, h, w] or tokens"
    install = "pip install timm"

    @classmethod
    def unwrap(cls, model: Any) -> nn.Module:
        """See `Adapter.unwrap`: an error for parts of models."""
        if not hasattr(model, "num_classes"):
            raise ModelError(
                f"{type(model).__name__} has no class logits to explain: give the classifier, timm.create_model(...) "
                "without features_only, or adapter=CallableAdapter(...) for the model that it is a part of"
            )
        return model

    def _set_up(self, module: Any, model: Any, imgsz: int | None, processor: Any) -> None:
        from timm.data import create_transform, resolve_model_data_config

        config = resolve_model_data_config(module)
        # The size that the model was made for may differ from that of its pretrained configuration.
        fixed = next((m for m in module.modules() if isinstance(getattr(m, "img_size", None), tuple)), None)
        size = config["input_size"][1:] if fixed is None else fixed.img_size
        if imgsz is not None:
            wanted = sides_of(imgsz)
            if getattr(fixed, "strict_img_size", False) and wanted != size:
                raise InputError(f"imgsz: {imgsz}, but the model takes {size[0]} x {size[1]} pixels only: leave it out")
            size = wanted
        config["input_size"] = (self.channels, *size)
        self.imgsz = size[0] if size[0] == size[1] else size
        self.steps = compose_steps(processor) if processor is not None else create_transform(**config).transforms
        self.classes = module.num_classes
        self.names = imagenet_names(self.classes)
