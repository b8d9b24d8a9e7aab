"""A semantic segmenter of the planted scenes: UPerNet of transformers on a small ResNet."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate
from transformers import ResNetConfig, SegformerImageProcessor, UperNetConfig, UperNetForSemanticSegmentation

from benchmarks.training.planted.scenes import Batch
from benchmarks.training.planted.training import Family, Losses, packed
from detcam import zoo
from detcam.scenes.planted import SIZE
from detcam.scenes.planted_parts import SYMBOLS

BACKGROUND_WEIGHT = 0.3  # most pixels are background
PROCESSOR = SegformerImageProcessor(size={"height": SIZE, "width": SIZE})


def configuration() -> UperNetConfig:
    """The model's configuration: a background and the classes."""
    backbone = ResNetConfig(
        embedding_size=16,
        hidden_sizes=[16, 24, 40, 48],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = UperNetConfig(backbone_config=backbone, hidden_size=16, pool_scales=[1, 2], use_auxiliary_head=False)
    names = dict(enumerate(("background", *SYMBOLS)))
    config.id2label, config.label2id = names, {name: i for i, name in names.items()}
    return config


class Semantic(Family):
    """UPerNet: a softmax over the background and the classes in each cell of 4 x 4 pixels; objects are the bodies."""

    name, library = "semantic", "transformers"
    steps: ClassVar[dict[str, int]] = {"mark": 500, "beacon": 600, "context": 800}
    rate = 3e-3
    channels = 24

    def build(self) -> nn.Module:
        """See `Family.build`."""
        return UperNetForSemanticSegmentation(configuration())

    def losses(self, model: Any, batch: Batch) -> Losses:
        """See `Family.losses`; the places are the cells whose middle lies on an object."""
        mean, std = (torch.tensor(values)[:, None, None] for values in (PROCESSOR.image_mean, PROCESSOR.image_std))
        features = model.backbone((batch.images - mean) / std).feature_maps
        logits = model.decode_head(features)  # [images, classes, h, w]
        full = interpolate(logits, batch.labels.shape[1:], mode="bilinear")  # as the model does
        weights = torch.tensor([BACKGROUND_WEIGHT] + [1.0] * len(SYMBOLS))
        own = cross_entropy(full, batch.labels, weights)
        cells = interpolate(batch.labels[:, None].float(), logits.shape[2:], mode="nearest-exact")[:, 0] > 0
        image, row, column = cells.nonzero().unbind(1)
        return Losses(own, logits[image, :, row, column], image, features[1], batch.causes)

    def save(self, name: str, weights: dict[str, Tensor]) -> dict[str, Any]:
        """See `Family.save`."""
        configuration().save_pretrained(zoo.FOLDER / name)
        PROCESSOR.save_pretrained(zoo.FOLDER / name)
        (zoo.FOLDER / name / "model.safetensors").write_bytes(packed(weights))
        return {"library": self.library, "class": UperNetForSemanticSegmentation.__name__}
