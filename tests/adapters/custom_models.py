"""A small detector that no library made, and the functions that describe it to `CallableAdapter`."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from detcam.adapters import CallableAdapter
from detcam.types import Objects

SIZE, STRIDE, KINDS = 64, 8, 3
MEAN = torch.tensor([0.4, 0.5, 0.6])[:, None, None]


class Grid(nn.Module):
    """A small detector: an anchor in each cell of 8 pixels, logits [B, A, 3] and boxes [B, A, 4] in pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.ReLU(inplace=True), nn.BatchNorm2d(8))
        self.neck = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
        self.head = nn.Conv2d(8, KINDS + 4, 3, 1, 1)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        raw = self.head(self.neck(self.backbone(pixels)))
        height, width = raw.shape[2:]
        raw = raw.flatten(2).transpose(1, 2)
        y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
        centre = torch.stack([x.flatten(), y.flatten()], dim=1).to(raw) * STRIDE
        sides = raw[..., KINDS:].sigmoid() * 2 * STRIDE
        return raw[..., :KINDS], torch.cat([centre - sides[..., :2], centre + sides[..., 2:]], dim=2)


def random_grid(seed: int) -> nn.Module:
    """In eval mode, with random weights."""
    torch.manual_seed(seed)
    model = Grid()
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        nn.init.normal_(norm.running_mean, 0, 0.2)
    nn.init.normal_(model.head.weight, 0, 0.5)
    return model.eval()


def forward(module: nn.Module, batch: Tensor) -> tuple[Tensor, Tensor]:
    logits, boxes = module(batch - MEAN.to(batch))
    return logits, boxes


def detect(outputs: tuple[Tensor, Tensor], conf: float) -> list[dict[str, Tensor]]:
    rows = []
    for logits, boxes in zip(*outputs, strict=True):
        scores, classes = logits.sigmoid().max(dim=1)
        i = scores.argsort(descending=True)
        i = i[scores[i] > conf]
        rows.append({"boxes": boxes[i], "scores": scores[i], "class_ids": classes[i], "index": i})
    return rows


def score(outputs: tuple[Tensor, Tensor], objects: list[Objects], target: str) -> Tensor:
    logits, boxes = outputs
    if target == "box":
        return torch.cat([boxes[i, o.index] * boxes.new_tensor([-1, -1, 1, 1]) for i, o in enumerate(objects)])
    return torch.cat([logits[i, o.index, o.class_ids] for i, o in enumerate(objects)])


def adapter(**changed: Any) -> CallableAdapter:
    given = {"forward": forward, "detect": detect, "score": score, "layers": ["neck.1"], "targets": ("class", "box")}
    return CallableAdapter(**{**given, "names": ["cat", "dog"], **changed})


def predict(model: nn.Module, image: np.ndarray, conf: float) -> dict[str, Tensor]:
    """The objects in source pixels of an image twice as wide as high, letterboxed by hand."""
    square = np.full((SIZE, SIZE, 3), 114, np.uint8)
    square[SIZE // 4 : -SIZE // 4] = cv2.resize(image, (SIZE, SIZE // 2), interpolation=cv2.INTER_LINEAR)
    with torch.no_grad():
        (row,) = detect(forward(model, torch.from_numpy(square).permute(2, 0, 1)[None] / 255), conf)
    boxes = (row["boxes"] - torch.tensor([0, SIZE // 4, 0, SIZE // 4])) * (image.shape[1] / SIZE)
    return {**row, "boxes": boxes.clamp(min=0).minimum(torch.tensor(image.shape[1::-1] * 2))}
