"""Randomised weights on planted scenes: rank correlation of the maps with those of a shuffled model, for each family.

Every weight tensor of a planted model is shuffled; the same anchors, queries and regions are explained for the same
class, see `detcam.evaluate.metrics.stability.cascade`. |r| counts a map that only turns its sign as unchanged.
"""

from __future__ import annotations

import argparse
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from summaries import interval, write

from detcam import Explainer
from detcam.evaluate.metrics.bootstrap import bootstrap
from detcam.evaluate.metrics.stability import PASSED, cascade
from detcam.evaluate.planted.interventions import FAMILIES, Witness
from detcam.evaluate.planted.judge import seeds_of
from detcam.evaluate.report import versions
from detcam.scenes.planted import VARIANTS

OUT = Path(__file__).parents[1] / "benchmarks" / "results" / "randomised.json"


def judged(family: str, variant: str, seeds: list[int], method: str, layers: str) -> dict[str, Any]:
    """The objects of a planted model and [mean, low, high, count] of r and |r|, bootstrapped over scenes."""
    witness = Witness(variant, family=family)
    explainer = Explainer(witness.model, method, layers=layers, **witness.options)
    rows, scenes = [], []
    for number, seed in enumerate(seeds):
        found = witness.find(seed)
        if not found.owners:
            continue
        image = found.scene.image
        plain = explainer(image)
        changes = cascade(explainer, image, plain, found.positions.tolist(), stages=1)[-1]
        rows.append(changes.double().cpu().numpy())
        scenes += [number] * len(changes)
    values, scene_of = np.concatenate(rows), np.array(scenes)
    kept = np.isfinite(values)  # a constant map of the shuffled model has no ranks
    summary = {
        name: interval(bootstrap(v[kept], scene_of[kept]).__dict__) for name, v in (("r", values), ("|r|", abs(values)))
    }
    return {"objects": len(values), "constant": int((~kept).sum()), **summary}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument("--scenes", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--method", default="layerig")
    parser.add_argument("--layers", default="stem")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    command = f"python benchmarks/randomised.py --families {' '.join(args.families)} --scenes {args.scenes}"
    command += f" --seed {args.seed} --method {args.method} --layers {args.layers}"
    document: dict[str, Any] = {"command": command, "date": str(date.today()), "versions": versions(), "rows": {}}
    table = Table("family", "cause", "objects", "r", "|r|", f"|r| < {PASSED}")
    for family in args.families:
        for variant in VARIANTS:
            row = judged(family, variant, seeds_of(args.scenes, args.seed), args.method, args.layers)
            document["rows"].setdefault(family, {})[variant] = row
            write(args.out, document)
            texts = [f"{row[name][0]:.2f} ({row[name][1]:.2f} to {row[name][2]:.2f})" for name in ("r", "|r|")]
            table.add_row(family, variant, str(row["objects"]), *texts, "yes" if row["|r|"][2] < PASSED else "no")
            print(family, variant, row, flush=True)
    Console().print(table)


if __name__ == "__main__":
    main()
