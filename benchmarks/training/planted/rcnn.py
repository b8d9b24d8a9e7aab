"""A two-stage detector of the planted scenes: torchvision's Faster R-CNN on a few convolutions with a pyramid."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchvision.models.detection.image_list import ImageList

from benchmarks.training.planted.scenes import Batch
from benchmarks.training.planted.training import Family, Losses, packed
from detcam import zoo
from detcam.scenes.planted import SIZE
from detcam.scenes.planted_parts import SYMBOLS
from detcam.zoo.rcnn import rcnn

DESCRIPTION: dict[str, Any] = {
    "library": "torchvision",
    "names": list(SYMBOLS),
    "imgsz": SIZE,
    "body": [[16, 2], [24, 2], [24, 1], [40, 2], [40, 1], [48, 2], [48, 1], [32, 2]],  # (channels, stride)
    "stages": [4, 6, 7],  # layers of the body that the pyramid reads: strides 8, 16, 32
    "pyramid": 24,  # channels
    "anchors": [36, 72, 144, 288],  # px, one for each level; objects are 30 to 42 px wide
    "pool": 4,  # cells that a proposal is pooled to, on the finest level
    "box_head": 48,  # channels
}


class Rcnn(Family):
    """Faster R-CNN: a softmax over the background and the classes."""

    name, library = "rcnn", "torchvision"
    steps: ClassVar[dict[str, int]] = {"mark": 1200, "beacon": 600, "context": 1000}
    rate = 3e-3
    channels = DESCRIPTION["pyramid"]

    def build(self) -> nn.Module:
        """See `Family.build`."""
        model: nn.Module = rcnn(DESCRIPTION)
        return model

    def losses(self, model: Any, batch: Batch) -> Losses:
        """See `Family.losses`; the places are the objects' own boxes, as proposals."""
        sizes = [(SIZE, SIZE)] * len(batch.images)
        targets = [
            {"boxes": boxes, "labels": class_ids + 1}
            for boxes, class_ids in zip(batch.boxes, batch.class_ids, strict=True)
        ]
        features = model.backbone(batch.images)  # the first of stride 8
        proposals, first = model.rpn(ImageList(batch.images, sizes), features, targets)
        heads = model.roi_heads
        _, second = heads(features, proposals, sizes, targets)
        logits, _ = heads.box_predictor(heads.box_head(heads.box_roi_pool(features, batch.boxes, sizes)))
        classes = cross_entropy(logits[:, 1:], torch.cat(batch.class_ids))  # most proposals show background
        image = torch.cat([torch.full((len(boxes),), i) for i, boxes in enumerate(batch.boxes)])
        return Losses(sum((*first.values(), *second.values(), classes)), logits, image, features["0"], batch.causes)

    def save(self, name: str, weights: dict[str, Tensor]) -> dict[str, Any]:
        """See `Family.save`."""
        (zoo.FOLDER / f"{name}.safetensors").write_bytes(packed(weights))
        return DESCRIPTION
