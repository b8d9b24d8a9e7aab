"""Which objects of overlapping tiles are one: rules for duplicates, counted on mosaics of drawn scenes.

    python benchmarks/tiles.py [--pictures 4] [--out benchmarks/results/tiles.json]

A mosaic is 4 x 4 scenes of 480 x 640 pixels, of which all objects are known, at full and at half scale; "scenes-yolo"
explains tiles of 640 pixels that overlap by 0.2. Found are labelled objects with a detection of their class at IoU 0.5;
extra are the other detections: objects counted twice, fragments, and the model's own mistakes. `whole` is the model on
each scene by itself, where nothing is cut; `own` is `detcam.analysis.tiles.distinct`.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torchvision.ops import batched_nms, box_iou

from detcam import Explainer, Objects
from detcam.analysis import tiles
from detcam.scenes import HELD_OUT_SEED, draw_scene

FIRST = HELD_OUT_SEED + 40_000  # seeds that neither training nor tests use
ROWS, COLUMNS, HEIGHT, WIDTH = 4, 4, 480, 640
TILE, OVERLAP, IOU = 640, 0.2, 0.7
Rule = Callable[[Objects, Tensor, tuple[int, int]], Tensor]


def none(objects: Objects, bounds: Tensor, size: tuple[int, int]) -> Tensor:
    return torch.arange(len(objects))


def nms(objects: Objects, bounds: Tensor, size: tuple[int, int]) -> Tensor:
    return batched_nms(objects.boxes, objects.scores, objects.class_ids, IOU)


def own(edge: float, iou: float = IOU) -> Rule:
    def rule(objects: Objects, bounds: Tensor, size: tuple[int, int]) -> Tensor:
        tiles.EDGE = edge
        return tiles.distinct(objects, bounds, size, iou)

    return rule


def contained(threshold: float) -> Rule:
    """Greedy by score alone, with the intersection over the smaller box for every pair, as SAHI's default."""

    def rule(objects: Objects, bounds: Tensor, size: tuple[int, int]) -> Tensor:
        order = objects.scores.argsort(descending=True)
        boxes, kinds = objects.boxes[order], objects.class_ids[order]
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
        low, high = torch.maximum(boxes[:, None, :2], boxes[:, :2]), torch.minimum(boxes[:, None, 2:], boxes[:, 2:])
        shared = (high - low).clamp(min=0).prod(dim=2) / torch.minimum(areas[:, None], areas)
        stays = torch.ones(len(order), dtype=torch.bool)
        for i in range(len(order)):
            stays[i + 1 :] &= ~(stays[i] & (shared[i] > threshold) & (kinds == kinds[i]))[i + 1 :]
        return order[stays]

    return rule


RULES: dict[str, Rule] = {
    "none": none,
    "NMS, IoU 0.7": nms,
    "intersection over the smaller, 0.5": contained(0.5),
    "intersection over the smaller, 0.7": contained(0.7),
    "own, edge 0": own(0.0),
    "own, edge 0.003": own(0.003),
    "own, edge 0.01": own(0.01),
    "own, edge 0.03": own(0.03),
    "own, edge 0.01, 0.5": own(0.01, 0.5),
}


def counted(objects: Objects, kept: Tensor, boxes: Tensor, kinds: Tensor) -> tuple[int, int]:
    """Labelled objects that were found, and further objects."""
    chosen = objects.select(kept)
    fits = box_iou(boxes, chosen.boxes) * (kinds[:, None] == chosen.class_ids)
    found = 0
    for column in chosen.scores.argsort(descending=True).tolist():
        row = int(fits[:, column].argmax())
        if fits[row, column] > 0.5:
            found += 1
            fits[row] = 0
    return found, len(kept) - found


def mosaic(number: int, scale: float) -> tuple[np.ndarray, Tensor, Tensor, list[np.ndarray]]:
    """The picture, its boxes and classes, and its scenes."""
    scenes = [draw_scene(FIRST + number * ROWS * COLUMNS + i, (HEIGHT, WIDTH)) for i in range(ROWS * COLUMNS)]
    rows = [np.concatenate([s.image for s in scenes[i * COLUMNS :][:COLUMNS]], axis=1) for i in range(ROWS)]
    boxes = [scene.boxes + np.array([i % COLUMNS * WIDTH, i // COLUMNS * HEIGHT] * 2) for i, scene in enumerate(scenes)]
    picture = cv2.resize(np.concatenate(rows), None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    labels = torch.from_numpy(np.concatenate(boxes) * scale).float()
    return picture, labels, torch.from_numpy(np.concatenate([s.class_ids for s in scenes])), [s.image for s in scenes]


def measured(explainer: Explainer, pictures: int, scale: float) -> dict[str, Any]:
    counts = {name: np.zeros(2, int) for name in ["whole", *RULES]}
    total = 0
    taken: list[tuple[Objects, Tensor, tuple[int, int]]] = []

    def keep_all(objects: Objects, bounds: Tensor, size: tuple[int, int], iou: float) -> Tensor:
        taken[:] = [(objects, bounds, size)]
        return torch.arange(len(objects))

    real = tiles.distinct
    for number in range(pictures):
        picture, boxes, kinds, scenes = mosaic(number, scale)
        total += len(boxes)
        tiles.distinct = keep_all  # type: ignore[assignment]
        tiles.explain_tiles(explainer, picture, TILE, OVERLAP)
        tiles.distinct = real
        for name, rule in RULES.items():
            counts[name] += counted(taken[0][0], rule(*taken[0]), boxes, kinds)
        parts = [explainer(image).objects for image in scenes]
        shifts = [torch.tensor([i % COLUMNS * WIDTH, i // COLUMNS * HEIGHT] * 2) for i in range(len(parts))]
        every = Objects.joined(parts)
        moved = torch.cat([part.boxes + shift for part, shift in zip(parts, shifts, strict=True)]) * scale
        at_once = Objects(**{**vars(every), "boxes": moved})
        counts["whole"] += counted(at_once, torch.arange(len(every)), boxes, kinds)
    return {"objects": total, **{name: {"found": int(f), "extra": int(e)} for name, (f, e) in counts.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=4)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    explainer = Explainer("scenes-yolo", "odam")
    results = {f"scale {scale}": measured(explainer, given.pictures, scale) for scale in (1.0, 0.5)}
    table = Table("rule", *(f"{name}: found, extra" for name in results))
    for rule in ["whole", *RULES]:
        table.add_row(rule, *(f"{r[rule]['found']} of {r['objects']}, {r[rule]['extra']}" for r in results.values()))
    Console().print(table)
    if given.out:
        versions = {name: importlib.metadata.version(name) for name in ("detcam", "torch", "ultralytics")}
        command = f"python benchmarks/tiles.py --pictures {given.pictures}"
        facts = {"command": command, "machine": platform.machine(), "date": date.today().isoformat()}
        given.out.write_text(json.dumps({**facts, "versions": versions, **results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
