"""How well heatmaps keep to their own object, on labelled pictures; `detcam evaluate` judges much more.

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

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from detcam import Explainer, Explanation
from detcam.evaluate.labels.base import Label
from detcam.evaluate.labels.read import read_labels
from detcam.evaluate.matching import IOU, match
from detcam.evaluate.metrics.localisation import (
    energy_in_box,
    energy_in_mask,
    object_discrimination,
    pointing_box,
    pointing_mask,
)
from detcam.images import SUFFIXES

REPOSITORY = Path(__file__).parents[1]
CONFIDENCES = (0.25, 0.5)
STRONGEST = 3
JUDGED = (energy_in_box, energy_in_mask, object_discrimination, pointing_box, pointing_mask)


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


def judged(explanation: Explanation, labels: Sequence[Label]) -> list[tuple[int, Scores]]:
    """(object, scores) of those that match a label, best score first."""
    found = match(explanation, labels)
    if not found.objects:
        return []
    case = found.case(explanation.render(found.objects, dtype=torch.float32))
    columns = [function(case).tolist() for function in JUDGED]
    return [(i, Scores(*values)) for i, values in zip(found.objects, zip(*columns, strict=True), strict=True)]


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
    console, matched, labels = Console(width=120), [], read_labels(args.labels)
    images = sorted(p for p in args.images.iterdir() if p.suffix.lower() in SUFFIXES)[: args.limit]
    for path in track(images, "explaining", console=console):
        explanation = explainer(path)
        for i, scores in judged(explanation, labels.of(path, *explanation.image.shape[:2])):
            matched.append(Matched(path.stem, float(explanation.scores[i]), scores))
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
