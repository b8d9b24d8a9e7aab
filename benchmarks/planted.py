"""The judge's table on planted scenes: what interventions show, heat on the cause, D-DiFull and the same-class grid.

The methods that read gradients or activations, at both presets of layers, and baselines; the class logit is explained,
and with --targets margin also its lead over the other class. The JSON is written after every few scenes, so a run that
is stopped leaves figures for the scenes that it judged, and says how many.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from detcam.evaluate.difull import difull, same_class_grid
from detcam.evaluate.interventions import Witness, causality
from detcam.evaluate.planted import MEASURES, judge, seeds_of
from detcam.evaluate.report import versions
from detcam.evaluate.statistics import bootstrap, paired
from detcam.methods import METHODS
from detcam.methods.base import Method
from detcam.scenes import HELD_OUT_SEED
from detcam.scenes.planted import VARIANTS

OUT = Path(__file__).parents[1] / "benchmarks" / "results" / "planted.json"
TOGETHER = 10  # scenes between two writes
REFERENCE = "odam @ level"
ALSO = ("fused",)  # combinations of methods that read gradients
LAYERS = ("level", "evidence")


def default_methods() -> list[str]:
    """The methods that read gradients or activations, and combinations of them."""
    plain = [name for name, method in METHODS.items() if issubclass(method, Method) and name != "cam"]
    return plain + [name for name in ALSO if name in METHODS]


def judged(variant: str, seeds: list[int], methods: list[str], target: str, write: Any) -> dict[str, Any]:
    """The rows of one variant and target, handed to `write` after every few scenes."""
    values: dict[str, list[np.ndarray]] = {}
    scene_of: list[np.ndarray] = []
    summary: dict[str, Any] = {}
    for start in range(0, len(seeds), TOGETHER):
        table = judge(variant, seeds[start : start + TOGETHER], methods, LAYERS, target=target)
        scene_of.append(table.scenes + start)
        for name, own in table.values.items():
            values.setdefault(name, []).append(own)
        summary = summarised(values, np.concatenate(scene_of))
        done = min(start + TOGETHER, len(seeds))
        write({"scenes": done, "left_out": table.left_out, **summary})
        print(f"{variant} {target}: {done}/{len(seeds)} scenes", file=sys.stderr, flush=True)
    return summary


def summarised(values: dict[str, list[np.ndarray]], scenes: np.ndarray) -> dict[str, Any]:
    """Means with intervals, and differences from the reference on identical objects."""
    whole = {name: np.concatenate(parts) for name, parts in values.items()}
    rows, differences = {}, {}
    for name, own in whole.items():
        rows[name] = {m.name: rounded(asdict(bootstrap(own[:, i], scenes))) for i, m in enumerate(MEASURES)}
        if REFERENCE in whole and name != REFERENCE:
            other = whole[REFERENCE]
            differences[name] = {
                m.name: rounded(asdict(paired(own[:, i], other[:, i], scenes))) for i, m in enumerate(MEASURES)
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
    parser.add_argument("--grids", type=int, default=25, help="pictures of four tiles")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--targets", nargs="+", default=["class"], choices=("class", "margin"))
    parser.add_argument("--methods", nargs="+", default=default_methods())
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

            show(f"{variant}, target {target}", judged(variant, seeds, args.methods, target, keep)["rows"], console)
    if args.grids:
        document["difull"] = difull(args.methods, LAYERS, args.grids)
        document["same_class_grid"] = same_class_grid(args.methods, LAYERS, args.grids)
        for game in ("difull", "same_class_grid"):
            for row in document[game]:
                console.print(game, row["name"], row["objects"], f"{row['inside']['mean']:.3f}")
    write()


if __name__ == "__main__":
    main()
