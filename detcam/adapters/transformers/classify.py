"""Image classifiers of the transformers library."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from detcam.adapters.shared.classifier import ClassifierAdapter
from detcam.adapters.transformers.base import checkpoint_processor, made_for, size_of, sized
from detcam.geometry import Geometry

WARPED = 384  # a processor with `crop_pct` crops below this size, and stretches from this size on


class TransformersClassifier(ClassifierAdapter):
    """Image classifiers of transformers.

    `processor` is the model's image processor. Default: the processor of its checkpoint if that is on this machine,
    else of its architecture, with the size in its configuration. `imgsz` is the side of the network's input in pixels.
    """

    family = "transformers classify"
    models = "all ForImageClassification: ViT, DeiT, BEiT, Swin, ConvNeXt, ResNet, MobileViT, ..."
    install = 'pip install "detcam[transformers]"'

    @classmethod
    def serves(cls, model: Any) -> bool:
        """See `Adapter.serves`: a model of transformers for image classification, or derived from one."""
        return made_for(model, "ImageClassification")

    def _set_up(self, module: Any, model: Any, imgsz: int | None, processor: Any) -> None:
        config = module.config
        self.processor = processor or checkpoint_processor(config)
        if self.processor is None:
            self.processor = _architecture_processor(config)
            built = getattr(getattr(config, "vision_config", config), "image_size", None)
            imgsz = imgsz or (built if isinstance(built, int) else None)
        self.options = {} if imgsz is None else sized(self.processor, imgsz)
        self.imgsz = imgsz or size_of(self.processor)
        self.classes = config.num_labels
        self.names = {int(i): name for i, name in config.id2label.items()}

    def _logits(self, batch: Tensor) -> Tensor:
        logits: Tensor = self.module(pixel_values=batch, return_dict=True).logits
        return logits

    def _place(self, image: np.ndarray) -> tuple[Tensor, Geometry]:
        source = (image.shape[0], image.shape[1])
        pixels = self._processed(image)
        network = (pixels.shape[1], pixels.shape[2])
        resized = self._before_crop(image, network)
        # Crops and padding start at the whole pixel before the middle.
        pad = tuple(-((r - n) // 2) if r >= n else (n - r) // 2 for r, n in zip(resized, network, strict=True))
        return pixels, Geometry(source, resized, (pad[0], pad[1]), network)

    def _processed(self, image: np.ndarray, **more: Any) -> Tensor:
        options = {**self.options, **more}
        data = self.processor(images=image, input_data_format="channels_last", return_tensors="pt", **options)
        pixels: Tensor = data["pixel_values"][0]
        return pixels

    def _before_crop(self, image: np.ndarray, network: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of the whole image at its scale in the network's input."""
        if getattr(self.processor, "do_center_crop", False):
            whole = self._processed(image, do_center_crop=False)
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
