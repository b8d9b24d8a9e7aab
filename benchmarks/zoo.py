"""The demo models on held-out scenes: what they find, and how much of each object's heat lies on the object.

    python benchmarks/zoo.py [--scenes 50] [--out benchmarks/results/zoo.json]

Energy is the share of a heatmap's sum (normalised per object, at source resolution) in the object's own box, or for
the segmenter in its own mask (each connected region of a class, without the background). `times_area` is the mean
energy over the mean share of the picture that box or mask takes up: 1 is what a heatmap without any knowledge gets.
Found are labelled objects with a detection of their class at IoU 0.5 and score 0.25; precision counts each once, so a
second detection of the same object is wrong.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from detcam import Explainer, Explanation
from detcam.scenes import CLASSES, HELD_OUT_SEED, Scene, draw_scene

FIRST = HELD_OUT_SEED + 20_000  # seeds that neither training nor tests use
MODELS = ("scenes", "scenes-yolo", "scenes-detr", "scenes-semantic")


def regions(explanation: Explanation, masks: bool) -> Tensor:
    """[N, H, W] bool: each object's mask or box."""
    if masks and explanation.masks is not None:
        return explanation.masks
    height, width = explanation.image.shape[:2]
    x, y = torch.arange(width) + 0.5, torch.arange(height) + 0.5
    left, top, right, bottom = (side[:, None] for side in explanation.boxes.unbind(1))
    rows, columns = (y > top) & (y < bottom), (x > left) & (x < right)
    return rows[:, :, None] & columns[:, None, :]


def energies(explanation: Explanation, masks: bool) -> list[tuple[float, float]]:
    """(Energy, share of the picture's area) of every object but the background."""
    found = []
    for label, heat, region in zip(explanation.labels, explanation.heatmaps, regions(explanation, masks), strict=True):
        if label != "background":
            total = float(heat.sum())
            found.append((float(heat[region].sum()) / total if total else 0.0, float(region.float().mean())))
    return found


def found_of(scene: Scene, explanation: Explanation) -> int:
    """How many labelled objects were found."""
    from torchvision.ops import box_iou

    overlaps = box_iou(torch.from_numpy(scene.boxes), explanation.boxes) >= 0.5
    hits = overlaps & torch.tensor([[CLASSES[i] == label for label in explanation.labels] for i in scene.class_ids])
    return int(hits.any(dim=1).sum())


def counts(scene: Scene, explanation: Explanation) -> np.ndarray:
    """[classes + 1, classes + 1] pixels of each labelled class (row) that were given each class (column)."""
    wanted, given = (np.zeros(scene.image.shape[:2], np.int64) for _ in range(2))
    for class_id, mask in zip(scene.class_ids, scene.masks, strict=True):
        wanted[mask] = 1 + class_id
    assert explanation.masks is not None
    for class_id, mask in zip(explanation.class_ids.tolist(), explanation.masks.numpy(), strict=True):
        given[mask] = class_id
    n = len(CLASSES) + 1
    return np.bincount((wanted * n + given).ravel(), minlength=n * n).reshape(n, n)


def quality(name: str, scenes: list[Scene], explanations: list[Explanation]) -> dict[str, float]:
    """Recall and precision of a detector, or the mean IoU over classes and background of the segmenter."""
    if name.endswith("semantic"):
        table = sum(counts(scene, found) for scene, found in zip(scenes, explanations, strict=True))
        both = np.diag(table)
        return {"mean_iou": float(np.mean(both / (table.sum(axis=0) + table.sum(axis=1) - both)))}
    found = sum(found_of(scene, explanation) for scene, explanation in zip(scenes, explanations, strict=True))
    labelled, given = sum(len(scene.boxes) for scene in scenes), sum(map(len, explanations))
    return {"recall": found / labelled, "precision": found / given}


def measure(name: str, scenes: list[Scene]) -> list[dict[str, Any]]:
    """One row for each layer preset; `auto` says which one layers="auto" is."""
    rows = []
    semantic = name.endswith("semantic")
    for layers in ("stem", "level", "evidence"):
        explainer = Explainer(name, layers=layers, segments="component" if semantic else "class")
        explanations = [explainer(scene.image) for scene in scenes]
        values = np.array([pair for found in explanations for pair in energies(found, semantic)])
        energy, area = values.mean(axis=0).tolist()
        row = {"model": name, "method": explainer.method.name, "layers": layers}
        row |= {"auto": layers == "stem", "objects": len(values)}
        row |= {"energy": energy, "area": area, "times_area": energy / area, **quality(name, scenes, explanations)}
        rows.append({key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the demo models on held-out scenes.")
    parser.add_argument("--scenes", type=int, default=50)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "zoo.json")
    args = parser.parse_args()
    scenes = [draw_scene(seed) for seed in range(FIRST, FIRST + args.scenes)]
    rows = [row for name in MODELS for row in measure(name, scenes)]
    packages = ("torch", "ultralytics", "transformers", "detcam")
    facts = {
        "benchmark": "zoo",
        "date": date.today().isoformat(),
        "device": f"{platform.machine()} CPU, {os.cpu_count()} cores",
        "versions": {"python": platform.python_version(), **{p: importlib.metadata.version(p) for p in packages}},
        "first_seed": FIRST,
        "scenes": args.scenes,
        "results": rows,
    }
    args.out.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    columns = ("model", "layers", "auto", "objects", "energy", "area", "times_area", "recall", "precision", "mean_iou")
    table = Table(*columns)
    for row in rows:
        table.add_row(*(str(row.get(column, "")) for column in columns))
    Console().print(table)


if __name__ == "__main__":
    main()
