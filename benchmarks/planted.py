"""Evaluation on planted scenes: effect of interventions, heat on the cause, D-DiFull and the same-class grid.

All methods at both presets of layers, and baselines; methods that sweep forwards take part in the first --expensive
scenes. The target is the class logit, with --targets margin also its margin over the other class. The JSON is written
every few scenes: a stopped run leaves the figures of the scenes it has judged, with their number.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from causality import causality
from difull import difull, same_class_grid
from rich.console import Console
from rich.table import Table
from summaries import interval, write

from detcam.evaluate.contenders import BASELINES, NEEDS_AN_ARGUMENT
from detcam.evaluate.metrics.bootstrap import bootstrap
from detcam.evaluate.planted.interventions import FAMILIES, Witness
from detcam.evaluate.planted.judge import MEASURES, judge, seeds_of
from detcam.evaluate.report import versions
from detcam.methods import METHODS, SweepMethod
from detcam.options import LAYER_PRESETS
from detcam.scenes import HELD_OUT_SEED
from detcam.scenes.planted import VARIANTS

OUT = Path(__file__).parents[1] / "benchmarks" / "results" / "planted.json"
CHUNK = 10  # scenes between two writes
LAYERS = LAYER_PRESETS


def all_methods() -> list[str]:
    """The methods that need no argument."""
    return [name for name in METHODS if name not in (*BASELINES, *NEEDS_AN_ARGUMENT)]


def expensive(name: str) -> bool:
    """Whether a method takes many forwards or backwards per image."""
    return issubclass(METHODS[name], SweepMethod)


def judged(
    variant: str, seeds: list[int], args: argparse.Namespace, target: str, keep: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """The rows of one variant and target, passed to `keep` every few scenes."""
    values: dict[str, list[np.ndarray]] = {}
    scene_of: list[np.ndarray] = []
    left_out: dict[str, str] = {}
    summary: dict[str, Any] = {}
    for start in range(0, len(seeds), CHUNK):
        here = [name for name in args.methods if start < args.expensive or not expensive(name)]
        chunk = seeds[start : start + CHUNK]
        table = judge(variant, chunk, here, args.layers, target=target, family=args.family)
        scene_of.append(table.scenes + start)
        left_out |= table.left_out
        for name, rows in table.values.items():
            values.setdefault(name, []).append(rows)
        done = min(start + CHUNK, len(seeds))
        summary = {"scenes": done, "left_out": left_out, **summarised(values, np.concatenate(scene_of))}
        keep(summary)
        print(f"{variant} {target}: {done}/{len(seeds)} scenes", file=sys.stderr, flush=True)
    return summary


def summarised(values: dict[str, list[np.ndarray]], scenes: np.ndarray) -> dict[str, Any]:
    """[mean, low, high, count] of each measure; expensive methods have the first objects only."""
    rows = {}
    for name, parts in values.items():
        table = np.concatenate(parts)
        of_scene = scenes[: len(table)]
        rows[name] = {m.name: interval(asdict(bootstrap(table[:, i], of_scene))) for i, m in enumerate(MEASURES)}
    return {"objects": len(scenes), "rows": rows}


def show(title: str, rows: dict[str, Any], console: Console) -> None:
    """Print a table of means."""
    table = Table("", *(measure.name for measure in MEASURES), title=title)
    for name, row in rows.items():
        table.add_row(name, *(f"{row[measure.name][0]:.3f}" for measure in MEASURES))
    console.print(table)


def main() -> None:
    """Intervene, judge, write."""
    parser = argparse.ArgumentParser(description="Judge methods on planted scenes.")
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--expensive", type=int, default=20, help="scenes for methods that sweep forwards")
    parser.add_argument("--grids", type=int, default=25, help="pictures of four tiles, for YOLO only")
    parser.add_argument("--family", default="yolo", choices=FAMILIES, help="of the models")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--targets", nargs="+", default=["class"], choices=("class", "margin"))
    parser.add_argument("--methods", nargs="+", default=all_methods())
    parser.add_argument("--layers", nargs="+", default=LAYERS)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    document: dict[str, Any] = {
        "command": " ".join(["python", "benchmarks/planted.py", *sys.argv[1:]]),
        "date": date.today().isoformat(),
        "versions": versions(),
        "intervals": "mean over objects; 95 % bootstrap over scenes",
        "measures": [asdict(measure) for measure in MEASURES],
        "causality": {},
        "judged": {},
    }

    seeds = seeds_of(args.scenes, 0)
    for variant in args.variants:
        shown = causality(Witness(variant, family=args.family), range(HELD_OUT_SEED, HELD_OUT_SEED + args.scenes))
        document["causality"][variant] = {k: round(v, 4) for k, v in asdict(shown).items() if v is not None}
        print(variant, document["causality"][variant], file=sys.stderr, flush=True)
    console = Console(width=150)
    for target in args.targets:
        for variant in args.variants:

            def keep(part: dict[str, Any], key: str = f"{variant} {target}") -> None:
                document["judged"][key] = part
                write(args.out, document)

            table = judged(variant, seeds, args, target, keep)
            show(f"{variant}, target {target}", table["rows"], console)
    if args.grids and args.family == "yolo":
        refused = {name.split(" @ ")[0] for part in document["judged"].values() for name in part["left_out"]}
        cheap = [name for name in args.methods if not expensive(name) and name not in refused]
        for title, game in (("difull", difull), ("same_class_grid", same_class_grid)):
            rows = game(cheap, args.layers, args.grids)
            document[title] = {row["name"]: interval(row["inside"]) for row in rows}
            for row in rows:
                console.print(title, row["name"], row["objects"], f"{row['inside']['mean']:.3f}")
    write(args.out, document)


if __name__ == "__main__":
    main()
