"""How far scores fall without the hottest pixels of a map: `e.check(i)` of several methods on photographs.

Of each object as many pixels are hidden as a quarter of its box has; beside it as many random pixels, and the hottest
of the map that the same method makes of the object with shuffled weights. Intervals are by bootstrap over images.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from objects import REPOSITORY, surroundings
from rich.console import Console
from rich.table import Table

from detcam import Explainer
from detcam.evaluate.judge import Protocol, pictures
from detcam.evaluate.metrics.bootstrap import bootstrap
from detcam.models.load import load_model

MAPS = (("layerig", "stem"), ("odam", "level"), ("odam", "evidence"), ("gaussian", "auto"), ("noise", "auto"))
COLUMNS = ("hottest", "random", "shuffled", "passed")


def measured(explainer: Explainer, paths: list[Path]) -> dict[str, list[float]]:
    """The falls of all objects, whether each map passed, and the image of each object."""
    rows: list[tuple[float, ...]] = []
    for place, path in enumerate(paths):
        for check in explainer(path).checks:
            falls = (check.hottest, check.random, check.shuffled)
            rows.append((*(np.nan if fall is None else fall for fall in falls), check.passed, place))
    return dict(zip((*COLUMNS, "image"), map(list, zip(*rows, strict=True)), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--pictures", type=int, help="look at the first so many pictures only")
    parser.add_argument("--objects", type=int, default=4, help="best-scored objects of a picture")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=REPOSITORY / "benchmarks" / "results" / "checks.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, console = load_model(args.weights), Console(width=120)
    paths = pictures(args.images, Protocol(pictures=args.pictures))
    table, maps = Table("map", "objects", *COLUMNS), {}
    for method, layers in MAPS:
        values = measured(Explainer(model, method, layers, max_det=args.objects), paths)
        images = np.array(values.pop("image"), np.int64)
        found: dict[str, Any] = {name: bootstrap(np.array(line, float), images) for name, line in values.items()}
        maps[f"{method} @ {layers}"] = {
            name: [round(v, 4) for v in (i.mean, i.low, i.high)] + [i.count, i.pictures] for name, i in found.items()
        }
        cells = (f"{i.mean:.2f} ({i.low:.2f} to {i.high:.2f})" for i in found.values())
        table.add_row(f"{method} @ {layers}", str(len(images)), *cells)
        console.print(f"{method} @ {layers}: {len(images)} objects", markup=False)
    console.print(table)
    command = (
        f"python benchmarks/checks.py --weights {Path(args.weights).name} --images DIR --pictures {len(paths)} "
        f"--objects {args.objects} --threads {args.threads}"
    )
    facts = {"benchmark": "checks", **surroundings(torch.device("cpu")), "command": command}
    facts["values"] = "mean, low and high end of 95 % over images, objects, images"
    args.out.write_text(json.dumps({**facts, "maps": maps}, indent=1) + "\n")


if __name__ == "__main__":
    main()
