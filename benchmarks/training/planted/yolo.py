"""A YOLO detector of the planted scenes: Ultralytics' YOLOv8, scaled far down."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from safetensors.torch import save
from torch import Tensor, nn
from ultralytics.nn.tasks import DetectionModel

from benchmarks.training.common import ULTRALYTICS, halved
from benchmarks.training.planted.scenes import Batch
from benchmarks.training.planted.training import Family, Losses
from detcam.scenes.planted import SIZE
from detcam.scenes.planted_parts import SYMBOLS

ARCHITECTURE: dict[str, Any] = {
    "nc": len(SYMBOLS),
    "reg_max": 8,  # of the strides that a side of a box may measure: objects are small
    "backbone": [
        [-1, 1, "Conv", [12, 3, 2]],
        [-1, 1, "Conv", [24, 3, 2]],
        [-1, 1, "C2f", [24, True]],
        [-1, 1, "Conv", [40, 3, 2]],
        [-1, 1, "C2f", [40, True]],  # 4: stride 8
        [-1, 1, "Conv", [64, 3, 2]],
        [-1, 1, "C2f", [64, True]],  # 6: stride 16
        [-1, 1, "Conv", [80, 3, 2]],
        [-1, 1, "C2f", [80, True]],
        [-1, 1, "SPPF", [80, 5]],  # 9: stride 32
    ],
    "head": [
        [-1, 1, "nn.Upsample", [None, 2, "nearest"]],
        [[-1, 6], 1, "Concat", [1]],
        [-1, 1, "C2f", [64]],
        [-1, 1, "nn.Upsample", [None, 2, "nearest"]],
        [[-1, 4], 1, "Concat", [1]],
        [-1, 1, "C2f", [40]],  # 15
        [-1, 1, "Conv", [40, 3, 2]],
        [[-1, 12], 1, "Concat", [1]],
        [-1, 1, "C2f", [64]],  # 18
        [-1, 1, "Conv", [64, 3, 2]],
        [[-1, 9], 1, "Concat", [1]],
        [-1, 1, "C2f", [80]],  # 21
        [[15, 18, 21], 1, "Detect", ["nc"]],
    ],
}


class Yolo(Family):
    """YOLOv8: a sigmoid for each class."""

    name, library = "yolo", "ultralytics"
    steps: ClassVar[dict[str, int]] = {"mark": 800, "beacon": 240, "context": 800}
    rate = 3e-3
    without = 0  # the models that ship were trained before scenes without causes were

    def build(self) -> nn.Module:
        """See `Family.build`."""
        model = DetectionModel(ARCHITECTURE | {"ch": 3}, verbose=False)
        model.args = SimpleNamespace(box=7.5, cls=0.5, dfl=1.5, cls_pw=0.0)
        return model

    def losses(self, model: Any, batch: Batch) -> Losses:
        """See `Family.losses`; the places are the anchors in the objects' boxes."""
        image = torch.cat([torch.full((len(boxes),), i) for i, boxes in enumerate(batch.boxes)])
        boxes = torch.cat(batch.boxes) / SIZE
        middle, side = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
        targets = {
            "img": batch.images,
            "batch_idx": image.float(),
            "cls": torch.cat(batch.class_ids).float()[:, None],
            "bboxes": torch.cat([middle, side], dim=1),
        }
        predictions = model(batch.images)
        loss, _ = model.loss(targets, predictions)  # of all images together
        inside = ((anchors() - middle[:, None]).abs() < side[:, None] / 2).all(dim=2)  # [n, A]
        row, anchor = inside.nonzero().unbind(1)
        return Losses(loss.sum() / len(batch.images), predictions["scores"][image[row], :, anchor], image[row])

    def save(self, name: str, weights: dict[str, Tensor]) -> dict[str, Any]:
        """See `Family.save`."""
        (ULTRALYTICS / f"{name}.safetensors").write_bytes(save(halved(weights)))
        return {"task": "detect", **ARCHITECTURE, "names": list(SYMBOLS), "imgsz": SIZE}


def anchors() -> Tensor:
    """[A, 2] (x, y) of the anchors, as shares of the image."""
    cells = []
    for stride in (8, 16, 32):
        line = (torch.arange(SIZE // stride) + 0.5) * stride / SIZE
        cells.append(torch.stack(torch.meshgrid(line, line, indexing="ij"), dim=-1).reshape(-1, 2).flip(1))
    return torch.cat(cells)
