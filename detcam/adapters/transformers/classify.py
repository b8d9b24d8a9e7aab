"""Image classifiers of the transformers library."""

from typing import Any

import numpy as np
from torch import Tensor

from detcam.adapters.shared.classifier import ClassifierAdapter
from detcam.adapters.transformers.base import TransformersAdapter, checkpoint_processor, size_of, sized
from detcam.geometry import Geometry

WARPED = 384  # a processor with `crop_pct` crops below this size, and stretches from this size on


class TransformersClassifier(TransformersAdapter, ClassifierAdapter):
    """Image classifiers of transformers.

    `processor` is the model's image processor. Default: the processor of its checkpoint if that is on this machine,
    else of its architecture, with the size in its configuration. `imgsz` is the side of the network's input in pixels.
    """

    family = "transformers classify"
    models = "all ForImageClassification: ViT, DeiT, BEiT, Swin, ConvNeXt, ResNet, MobileViT, ..."
    served = ".*ForImageClassification"

    def _set_up(self, module: Any, model: Any, imgsz: int | None, processor: Any) -> None:
        self.processor = processor or checkpoint_processor(self.config)
        if self.processor is None:
            self.processor = _architecture_processor(self.config)
            built = getattr(getattr(self.config, "vision_config", self.config), "image_size", None)
            imgsz = imgsz or (built if isinstance(built, int) else None)
        self.resize = {} if imgsz is None else sized(self.processor, imgsz)
        self.imgsz = imgsz or size_of(self.processor)
        self.classes = self.config.num_labels

    def _logits(self, batch: Tensor) -> Tensor:
        return self.module(pixel_values=batch, return_dict=True).logits

    def prepare(self, image: np.ndarray) -> tuple[Tensor, Geometry]:
        """See `Adapter.prepare`: the resize, crop and normalisation of the processor."""
        source = (image.shape[0], image.shape[1])
        pixels = self._pixels(image)
        network = (pixels.shape[1], pixels.shape[2])
        resized = self._before_crop(image, network)
        # Crops and padding start at the whole pixel before the middle.
        pad = tuple(-((r - n) // 2) if r >= n else (n - r) // 2 for r, n in zip(resized, network, strict=True))
        return pixels, Geometry(source, resized, (pad[0], pad[1]), network)

    def _before_crop(self, image: np.ndarray, network: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of the whole image at its scale in the network's input."""
        if getattr(self.processor, "do_center_crop", False):
            whole = self._pixels(image, do_center_crop=False)
            return whole.shape[1], whole.shape[2]
        share = getattr(self.processor, "crop_pct", None)
        if share and network[0] < WARPED:
            short = int(network[0] / share)
            height, width = image.shape[:2]
            long = int(short * max(height, width) / min(height, width))
            return (short, long) if height <= width else (long, short)
        return network


def _architecture_processor(config: Any) -> Any:
    """The default image processor of the architecture, or of ViT if there is none."""
    import transformers
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

    names = IMAGE_PROCESSOR_MAPPING_NAMES.get(config.model_type) or {}
    return getattr(transformers, names.get("torchvision") or "ViTImageProcessor")()
