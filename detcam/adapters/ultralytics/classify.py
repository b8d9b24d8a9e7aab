"""Image classifiers of Ultralytics."""

from typing import Any

from torch import Tensor, nn

from detcam.adapters.base import sides_of
from detcam.adapters.shared.classifier import StepsAdapter
from detcam.adapters.ultralytics.base import PredictReader, head_of, kinds_of, module_of, names_of, predict_size


class UltralyticsClassifier(PredictReader, StepsAdapter):
    """Ultralytics' classify models; `imgsz` is the side of the network's input, or its (height, width), in pixels."""

    family = "ultralytics classify"
    models = "YOLO classify: v8, 11, 12, 26, and torchvision backbones with its head"

    @classmethod
    def serves(cls, model: Any) -> bool:
        """See `Adapter.serves`: an Ultralytics wrapper or module whose last layer is a Classify head."""
        return super().serves(model) and "Classify" in kinds_of(head_of(model))

    @classmethod
    def unwrap(cls, model: Any) -> nn.Module:
        return module_of(model)

    def _set_up(self, module: Any, model: Any, imgsz: int | None, processor: Any) -> None:
        from ultralytics.data.augment import classify_transforms

        self.imgsz = imgsz or predict_size(model)
        size = sides_of(self.imgsz, 32)
        trained = getattr(module, "transforms", None)  # of the training
        side = None if trained is None else trained.transforms[0].size
        fits = ((side, side) if isinstance(side, int) else side) == size
        self.steps = (processor or (trained if trained is not None and fits else classify_transforms(size))).transforms
        module.model[-1].training = True  # then it returns logits, also before Ultralytics 8.4
        self.classes = module.model[-1].linear.out_features
        self.names = names_of(module, self.classes)

    def _logits(self, batch: Tensor) -> Tensor:
        logits: Tensor = self.module(batch)
        return logits
