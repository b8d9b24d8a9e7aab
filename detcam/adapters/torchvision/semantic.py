"""Semantic segmenters of torchvision."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from detcam.adapters.base import ImageSize
from detcam.adapters.shared.channels import cycled
from detcam.adapters.shared.semantic import PRESET_SIDE, SemanticAdapter
from detcam.geometry import Geometry
from detcam.images import unit_tensor


class TorchvisionSegmenterAdapter(SemanticAdapter):
    """torchvision's DeepLabV3, FCN and LRASPP.

    Images are prepared as for torchvision's weights: the shorter side resized to `imgsz` pixels (520 by default),
    ImageNet's mean and standard deviation; or by `processor`, e.g. `weights.transforms()`, from uint8 [3, H, W] to
    float [3, h, w]. torchvision leaves the label map at that size; here the logits are resized bilinearly to the
    source image before the arg max. Class 0 is the background.
    """

    family = "torchvision"
    models = "DeepLabV3, FCN, LRASPP, any backbone"
    install = "pip install torchvision"

    def __init__(self, module: Any, model: Any, imgsz: ImageSize | None = None, processor: Any = None) -> None:
        from torchvision.models.segmentation import FCN_ResNet50_Weights

        super().__init__(module, model, imgsz, processor)
        weights = FCN_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1
        self.imgsz = imgsz or PRESET_SIDE
        preset = weights.transforms(resize_size=PRESET_SIDE)
        preset.mean, preset.std = (cycled(values, self.channels) for values in (preset.mean, preset.std))
        if imgsz is not None:
            preset.resize_size = [imgsz] if isinstance(imgsz, int) else list(imgsz)
        self.transform = processor or preset
        last = [part for part in module.classifier.modules() if isinstance(part, nn.Conv2d)][-1]
        names = list(weights.meta["categories"])
        if last.out_channels != len(names):
            names = ["background", *(f"class {i}" for i in range(1, last.out_channels))]
        if last.out_channels == 1:  # trained with a sigmoid
            names, self.multilabel = ["foreground"], True
        self.plans = _torchvision_plans(module)
        self._watch("classifier", dict(enumerate(names)))

    @classmethod
    def serves(cls, model: Any) -> bool:
        """See `Adapter.serves`: a segmenter of torchvision, or derived from one."""
        return any(base.__module__.startswith("torchvision.models.segmentation.") for base in type(model).__mro__)

    def prepare(self, image: np.ndarray) -> tuple[Tensor, Geometry]:
        image = self.fit(image)
        raw = torch.from_numpy(image).permute(2, 0, 1) if image.dtype == np.uint8 else unit_tensor(image)
        pixels = self.transform(raw).to(self.device, self.dtype)
        size = (pixels.shape[1], pixels.shape[2])
        return pixels, Geometry((image.shape[0], image.shape[1]), size, (0, 0), size)

    def _run(self, batch: Tensor) -> Tensor:
        output = self.module(batch)
        return output["out"] if isinstance(output, dict) else output


def _torchvision_plans(network: Any) -> dict[str, tuple[str, ...]]:
    """Layers of the presets. "level": input of the last classifiers; "evidence": the backbone's maps for the head."""
    stages: Mapping[str, str] = getattr(network.backbone, "return_layers", {})
    wanted = {name: f"backbone.{stage}" for stage, name in stages.items() if name in ("out", "low", "high")}
    evidence = tuple(wanted.values()) or ("backbone",)
    if not isinstance(network.classifier, nn.Sequential):  # LRASPP: one classifier for the low map, one for the high
        return {"level": (wanted["low"], "classifier.cbr"), "evidence": evidence}
    return {"level": (f"classifier.{len(network.classifier) - 2}",), "evidence": evidence}
