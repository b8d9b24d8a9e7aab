"""Image classifiers of torchvision."""

from typing import Any

from torch import nn

from detcam.adapters.base import sides_of
from detcam.adapters.shared.classifier import StepsAdapter, compose_steps, imagenet_names, standard_steps


class TorchvisionClassifier(StepsAdapter):
    """torchvision's classifiers, or classes derived from them.

    A module does not know the preprocessing of its weights. The default is the most common one: resize to 8/7 of
    `imgsz` (224, or the size that a transformer was built for), centre crop, ImageNet's mean and standard deviation.
    Give `processor=weights.transforms()` for the preprocessing of the weights.
    """

    family = "torchvision classify"
    models = "all of torchvision.models with class logits: ResNet, EfficientNet, ConvNeXt, ViT, ..."
    install = "pip install torchvision"

    @classmethod
    def serves(cls, model: Any) -> bool:
        """See `Adapter.serves`: told by the module of the class or of a base class."""
        others = ("detection", "segmentation", "video", "optical_flow", "feature_extraction")
        for base in type(model).__mro__:
            path = base.__module__.split(".")
            if path[:2] == ["torchvision", "models"] and len(path) > 2:
                return path[2] not in others and not path[2].startswith("_")
        return False

    def _set_up(self, module: Any, model: Any, imgsz: int | None, processor: Any) -> None:
        self.imgsz = imgsz or getattr(module, "image_size", 224)
        sides = sides_of(self.imgsz)
        resize = round(max(sides) * 8 / 7)
        self.steps = compose_steps(processor) if processor is not None else standard_steps(resize, sides)
        linear: Any = [m for m in module.modules() if isinstance(m, (nn.Linear, nn.Conv2d))][-1]
        self.classes = linear.out_features if isinstance(linear, nn.Linear) else linear.out_channels
        self.names = imagenet_names(self.classes)
