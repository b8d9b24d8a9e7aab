"""The judge's table on planted scenes: what interventions show, heat on the cause, D-DiFull and the same-class grid.

All methods, at both presets of layers, and baselines; those that sweep forwards take part in the first --dear scenes.
The class logit is explained, and with --targets margin also its lead over the other class. The JSON is written after
every few scenes, so a run that is stopped leaves figures for the scenes that it judged, and says how many.
"""

from __future__ import annotations

import argparse
import json
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

from detcam.evaluate.contenders import BASELINES, NEEDS_AN_ARGUMENT
from detcam.evaluate.metrics.bootstrap import bootstrap, paired
from detcam.evaluate.planted.interventions import Witness
from detcam.evaluate.planted.judge import MEASURES, judge, seeds_of
from detcam.evaluate.report import versions
from detcam.methods import METHODS, SweepMethod
from detcam.scenes import HELD_OUT_SEED
from detcam.scenes.planted import VARIANTS

OUT = Path(__file__).parents[1] / "benchmarks" / "results" / "planted.json"
TOGETHER = 10  # scenes between two writes
REFERENCE = "odam @ level"
LAYERS = ("level", "evidence")


def all_methods() -> list[str]:
    """Those that can take part by name alone."""
    return [name for name in METHODS if name not in (*BASELINES, *NEEDS_AN_ARGUMENT)]


def dear(name: str) -> bool:
    """Whether a method takes many forwards or backwards for a picture."""
    return issubclass(METHODS[name], SweepMethod)


def judged(
    variant: str, seeds: list[int], few: int, methods: list[str], target: str, write: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """The rows of one variant and target, handed to `write` after every few scenes."""
    values: dict[str, list[np.ndarray]] = {}
    scene_of: list[np.ndarray] = []
    left_out: dict[str, str] = {}
    summary: dict[str, Any] = {}
    for start in range(0, len(seeds), TOGETHER):
        here = [name for name in methods if start < few or not dear(name)]
        table = judge(variant, seeds[start : start + TOGETHER], here, LAYERS, target=target)
        scene_of.append(table.scenes + start)
        left_out |= table.left_out
        for name, own in table.values.items():
            values.setdefault(name, []).append(own)
        done = min(start + TOGETHER, len(seeds))
        summary = {"scenes": done, "left_out": left_out, **summarised(values, np.concatenate(scene_of))}
        write(summary)
        print(f"{variant} {target}: {done}/{len(seeds)} scenes", file=sys.stderr, flush=True)
    return summary


def summarised(values: dict[str, list[np.ndarray]], scenes: np.ndarray) -> dict[str, Any]:
    """Means with intervals, and differences from the reference on identical objects: who is dear has the first ones."""
    whole = {name: np.concatenate(parts) for name, parts in values.items()}
    rows, differences = {}, {}
    for name, own in whole.items():
        count = len(own)
        rows[name] = {m.name: rounded(asdict(bootstrap(own[:, i], scenes[:count]))) for i, m in enumerate(MEASURES)}
        if REFERENCE in whole and name != REFERENCE:
            other = whole[REFERENCE][:count]
            differences[name] = {
                m.name: rounded(asdict(paired(own[:, i], other[:, i], scenes[:count]))) for i, m in enumerate(MEASURES)
            }
    return {"objects": len(scenes), "rows": rows, f"minus {REFERENCE}": differences}


def rounded(values: dict[str, Any]) -> dict[str, Any]:
    """The same with floats of four decimals."""
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in values.items()}


def show(title: str, rows: dict[str, Any], console: Console) -> None:
    """Print a table of means."""
    table = Table("", *(measure.name for measure in MEASURES), title=title)
    for name, row in rows.items():
        table.add_row(name, *(f"{row[measure.name]['mean']:.3f}" for measure in MEASURES))
    console.print(table)


def main() -> None:
    """Intervene, judge, write."""
    parser = argparse.ArgumentParser(description="Judge methods on planted scenes.")
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--dear", type=int, default=20, help="scenes for methods that sweep forwards")
    parser.add_argument("--grids", type=int, default=25, help="pictures of four tiles")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--targets", nargs="+", default=["class"], choices=("class", "margin"))
    parser.add_argument("--methods", nargs="+", default=all_methods())
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

    def write() -> None:
        args.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")

    seeds = seeds_of(args.scenes, 0)
    for variant in args.variants:
        shown = causality(Witness(variant), range(HELD_OUT_SEED, HELD_OUT_SEED + args.scenes))
        document["causality"][variant] = {k: round(v, 4) for k, v in asdict(shown).items() if v is not None}
        print(variant, document["causality"][variant], file=sys.stderr, flush=True)
    console = Console(width=150)
    for target in args.targets:
        for variant in args.variants:

            def keep(part: dict[str, Any], key: str = f"{variant} {target}") -> None:
                document["judged"][key] = part
                write()

            table = judged(variant, seeds, args.dear, args.methods, target, keep)
            show(f"{variant}, target {target}", table["rows"], console)
    if args.grids:
        refused = {name.split(" @ ")[0] for part in document["judged"].values() for name in part["left_out"]}
        cheap = [name for name in args.methods if not dear(name) and name not in refused]
        document["difull"] = difull(cheap, LAYERS, args.grids)
        document["same_class_grid"] = same_class_grid(cheap, LAYERS, args.grids)
        for game in ("difull", "same_class_grid"):
            for row in document[game]:
                console.print(game, row["name"], row["objects"], f"{row['inside']['mean']:.3f}")
    write()


if __name__ == "__main__":
    main()
