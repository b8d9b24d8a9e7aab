"""Explanations of hand-made maps on disk, for pages to be made of."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import torch
from support import explanation_of, random_picture
from torch import Tensor

from detcam import Explanation
from detcam.geometry import Geometry
from detcam.saved import MAPS, NAME, PICTURE, preview

EVIL = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(2)>",
    "\"double\" 'single' `back` &amp; \\u003c",
    "שלום <b>עולם</b>",
    "🦊 fox\u2028line",
    "@@script@@ ${1}",
    "]]> --> <!-- <script>",
)

APART = torch.tensor([[10.0, 10, 60, 60], [100, 20, 150, 90], [20, 70, 90, 115]])  # boxes in a picture of 160 x 120


def blobs(n: int, size: tuple[int, int] = (20, 32)) -> list[Tensor]:
    """N raw maps [h, w], each with one smooth hill somewhere, so that hottest cells differ."""
    rows, columns = torch.arange(size[0])[:, None], torch.arange(size[1])
    middles = torch.rand(n, 2) * torch.tensor([size[0], size[1]])
    hills = [torch.exp(-((rows - y) ** 2 + (columns - x) ** 2) / 18) * 5 for y, x in middles.tolist()]
    return [hill + torch.rand(size) * 0.3 - 0.2 for hill in hills]


def boxes_in(n: int, size: tuple[int, int]) -> Tensor:
    """[N, 4] boxes in a picture of (height, width)."""
    height, width = size
    corner = torch.rand(n, 2) * torch.tensor([width * 0.6, height * 0.6])
    extent = torch.rand(n, 2) * torch.tensor([width * 0.25, height * 0.25]) + 8
    return torch.cat([corner, corner + extent], dim=1)


def made(
    image: np.ndarray,
    n: int,
    labels: tuple[str, ...] | None = None,
    boxes: Tensor | None = None,
    geometry: Geometry | None = None,
    maps: list[Tensor] | None = None,
    **settings: object,
) -> Explanation:
    """An explanation with N hills, made by `settings`."""
    size = (image.shape[0], image.shape[1])
    boxes = boxes_in(n, size) if boxes is None else boxes
    explanation = explanation_of(image, maps or blobs(n), geometry, labels, boxes)
    defaults = {"model": "hand.pt", "method": "odam", "layers": ["model.9"], "target": "class"}
    return dataclasses.replace(explanation, settings={**defaults, **settings})


def save_light(folder: Path, explanation: Explanation, source: str | None = None) -> None:
    """What a page reads and no more: no full heatmaps, no overlays; the energies are 0, 1/N, 2/N ..."""
    document = {"source": source, **explanation.to_dict()}
    for i, item in enumerate(document["objects"]):
        item["energy_in_box"] = i / len(explanation)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / NAME).write_text(json.dumps(document), encoding="utf-8")
    (folder / PICTURE).write_bytes(preview(explanation.image))
    np.savez(folder / MAPS, **{f"map_{i:03d}": raw.numpy() for i, raw in enumerate(explanation.maps)})


def save_many(root: Path, pictures: int, objects: int, seed: int, size: tuple[int, int] = (120, 160)) -> None:
    """`pictures` folders with `objects` each, scores from .9 to .5, of the classes "even" and "odd"."""
    labels = tuple("even" if i % 2 == 0 else "odd" for i in range(objects))
    for i in range(pictures):
        name = f"photo {i:04d}.jpg"
        save_light(root / f"{i:04d}", made(random_picture(seed + i, *size), objects, labels), name)
