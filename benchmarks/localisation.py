"""How well heatmaps keep to their own object, on pictures with YOLO-seg polygon labels.

An explained object counts if it matches a labelled one: same class, box IoU over 0.5, best score first, each label
once. Energies are shares of the heatmap's sum (normalised per object, at source resolution). ODI is the energy in the
other labelled objects' masks (their union without the object's own mask) over the energy in all masks: lower is better,
and an object without labelled company has 0. The pointing game asks whether the hottest pixel lies in the labelled box,
or in the mask. A blank map scores 0 on all but ODI, which it leaves undefined and out of the means.

Reported are the mean over all objects, the mean over pictures of each picture's mean, and the mean over the (up to)
three best-scored objects of every picture, each for objects that score at least 0.25 and 0.5.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from detcam import Explainer, Explanation
from detcam.images import SUFFIXES

REPOSITORY = Path(__file__).parents[1]
IOU = 0.5
CONFIDENCES = (0.25, 0.5)
STRONGEST = 3


@dataclass(frozen=True)
class Label:
    """One labelled object in source pixels."""

    class_id: int
    box: np.ndarray  # [4] xyxy
    mask: np.ndarray  # [H, W] bool


@dataclass(frozen=True)
class Scores:
    """How one object's heatmap did."""

    energy_in_box: float
    energy_in_mask: float
    odi: float
    pointing_box: float
    pointing_mask: float


@dataclass(frozen=True)
class Matched:
    image: str
    confidence: float
    scores: Scores


def read_labels(path: Path, height: int, width: int) -> list[Label]:
    """The polygons `class x1 y1 x2 y2 ...` of a file, coordinates as shares of the picture; no file: no objects."""
    labels = []
    for line in path.read_text().splitlines() if path.exists() else []:
        class_id, *numbers = line.split()
        polygon = np.array(numbers, dtype=float).reshape(-1, 2) * (width, height)
        mask = np.zeros((height, width), np.uint8)
        # A pixel belongs to the polygon by its centre, at half-integers; fillPoly counts centres from 0.
        cv2.fillPoly(mask, [np.round(polygon - 0.5).astype(np.int32)], 1)
        labels.append(Label(int(class_id), np.concatenate([polygon.min(axis=0), polygon.max(axis=0)]), mask > 0))
    return labels


def box_iou(a: np.ndarray, b: np.ndarray) -> float:
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    shared = float(np.prod(sides.clip(min=0)))
    return shared / (float(np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2])) - shared + 1e-9)


def match(explanation: Explanation, labels: Sequence[Label]) -> list[tuple[int, int]]:
    """(object, label) pairs, best score first."""
    free, pairs = set(range(len(labels))), []
    boxes, classes = explanation.boxes.cpu().numpy(), explanation.class_ids.tolist()
    for i in explanation.scores.argsort(descending=True).tolist():
        overlaps = {j: box_iou(boxes[i], labels[j].box) for j in free if labels[j].class_id == classes[i]}
        best = max(overlaps, key=overlaps.__getitem__, default=None)
        if best is not None and overlaps[best] > IOU:
            free.remove(best)
            pairs.append((i, best))
    return pairs


def score(heatmap: np.ndarray, own: Label, labels: Sequence[Label]) -> Scores:
    """Judge one heatmap [H, W]."""
    total = float(heatmap.sum())
    if total <= 0:
        return Scores(0.0, 0.0, math.nan, 0.0, 0.0)
    everything = np.any([label.mask for label in labels], axis=0)
    in_masks = float(heatmap[everything].sum())
    in_others = float(heatmap[everything & ~own.mask].sum())
    y, x = np.unravel_index(heatmap.argmax(), heatmap.shape)
    x1, y1, x2, y2 = own.box
    height, width = heatmap.shape
    columns, rows = np.arange(width) + 0.5, np.arange(height) + 0.5
    inside = ((rows >= y1) & (rows < y2))[:, None] & ((columns >= x1) & (columns < x2))
    return Scores(
        energy_in_box=float(heatmap[inside].sum()) / total,
        energy_in_mask=float(heatmap[own.mask].sum()) / total,
        odi=in_others / in_masks if in_masks > 0 else math.nan,
        pointing_box=float(inside[y, x]),
        pointing_mask=float(own.mask[y, x]),
    )


def mean(scores: Iterable[Scores]) -> Scores:
    """The mean of each score over those that are defined."""
    rows = list(scores)
    columns = {f.name: [getattr(row, f.name) for row in rows] for f in fields(Scores)}
    defined = {name: [v for v in values if not math.isnan(v)] for name, values in columns.items()}
    return Scores(**{name: sum(v) / len(v) if v else math.nan for name, v in defined.items()})


def summarise(matched: Sequence[Matched], confidence: float) -> dict[str, Any]:
    kept = [m for m in matched if m.confidence >= confidence]
    pictures: dict[str, list[Scores]] = {}
    for m in kept:  # of each picture the strongest first
        pictures.setdefault(m.image, []).append(m.scores)
    return {
        "confidence": confidence,
        "objects": len(kept),
        "pictures": len(pictures),
        "blank_maps": sum(m.scores.energy_in_box == 0 and math.isnan(m.scores.odi) for m in kept),
        "mean_over_objects": asdict(mean(m.scores for m in kept)),
        "mean_over_pictures": asdict(mean(mean(s) for s in pictures.values())),
        f"mean_over_{STRONGEST}_strongest": asdict(mean(one for s in pictures.values() for one in s[:STRONGEST])),
    }


def show(rows: Sequence[dict[str, Any]], title: str, console: Console) -> None:
    table = Table(title=title, title_justify="left")
    for heading in ("conf", "mean over", "objects", "pictures", "blank"):
        table.add_column(heading, justify="right")
    for heading in ("in box", "in mask", "ODI", "pointing box", "pointing mask"):
        table.add_column(heading, justify="right")
    for row in rows:
        for kind in (key for key in row if key.startswith("mean_over_")):
            counts = (row["objects"], row["pictures"], row["blank_maps"])
            values = [f"{value:.3f}" for value in row[kind].values()]
            over = kind.removeprefix("mean_over_").replace("_", " ")
            table.add_row(f"{row['confidence']}", over, *map(str, counts), *values)
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--labels", type=Path, required=True)
    parser.add_argument("--method", default="auto")
    parser.add_argument("--layers", nargs="+", default=["auto"], help="a preset, or names of modules")
    parser.add_argument("--target", default="class")
    parser.add_argument("--device")
    parser.add_argument("--limit", type=int, help="look at the first so many pictures only")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "benchmarks" / "results" / "localisation.json")
    args = parser.parse_args()
    layers = args.layers[0] if len(args.layers) == 1 else args.layers
    explainer = Explainer(args.weights, args.method, layers, args.target, conf=min(CONFIDENCES), device=args.device)
    console, matched = Console(width=120), []
    images = sorted(p for p in args.images.iterdir() if p.suffix.lower() in SUFFIXES)[: args.limit]
    for path in track(images, "explaining", console=console):
        explanation = explainer(path)
        labels = read_labels(args.labels / f"{path.stem}.txt", *explanation.image.shape[:2])
        for i, j in match(explanation, labels):
            heatmap = explanation.render([i], dtype=torch.float32)[0].double().cpu().numpy()
            result = score(heatmap, labels[j], labels)
            matched.append(Matched(path.stem, float(explanation.scores[i]), result))
    rows = [summarise(matched, confidence) for confidence in CONFIDENCES]
    weights, settings = Path(args.weights).name, explainer.settings
    console.print()
    show(rows, f"{weights}: {settings['method']}, {args.target}, {' '.join(args.layers)}", console)
    report = {"benchmark": "localisation", "images": len(images), "matching_iou": IOU}
    report |= {"settings": {**settings, "model": weights, "preset": args.layers}, "results": rows}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=2) + "\n")
    console.print(f"written to {args.out}")


if __name__ == "__main__":
    main()
