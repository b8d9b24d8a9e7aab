"""Explain a model of your own: four small functions tell detcam what it needs.

python examples/custom_model.py
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import detcam
from detcam.adapters import CallableAdapter
from detcam.types import Objects

COLOURS = ("red", "green", "blue")


class PatchDetector(nn.Module):
    """Stands for your model: every patch of 16 x 16 pixels is a candidate, with a logit for each colour."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.AvgPool2d(16)
        self.head = nn.Conv2d(3, len(COLOURS), 1)
        nn.init.constant_(self.head.bias, -6.0)
        self.head.weight.data = (15.0 * torch.eye(3) - 10.0 * (1 - torch.eye(3)))[:, :, None, None]

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.features(pixels)).flatten(2).transpose(1, 2)  # [B, A, 3]


def detect(logits: Tensor, conf: float) -> list[dict[str, Tensor]]:
    found = []
    for scores, classes in zip(*logits.sigmoid().max(dim=2), strict=True):
        index = (scores > conf).nonzero().flatten()
        side = int(logits.shape[1] ** 0.5)
        corner = torch.stack([index % side, index // side], dim=1) * 16.0
        boxes = torch.cat([corner, corner + 16], dim=1)
        found.append({"boxes": boxes, "scores": scores[index], "class_ids": classes[index], "index": index})
    return found


def score(logits: Tensor, objects: list[Objects], target: str) -> Tensor:
    return torch.cat([logits[i, o.index, o.class_ids] for i, o in enumerate(objects)])


if __name__ == "__main__":
    picture = np.full((120, 160, 3), 40, np.uint8)
    picture[30:60, 20:50], picture[70:100, 90:140] = (230, 30, 20), (20, 40, 240)
    adapter = CallableAdapter(lambda module, batch: module(batch), detect, score, ["features"], names=COLOURS)
    explanation = detcam.Explainer(PatchDetector(), adapter=adapter, imgsz=160, conf=0.5)(picture)
    print(", ".join(f"{k} {s:.2f}" for k, s in zip(explanation.labels, explanation.scores, strict=True)))
    print(f"pictures in {explanation.save(Path('example-custom-model'))}")
