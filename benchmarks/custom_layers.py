"""Custom layers in YOLO: the maps of every method that reads gradients, beside plain autograd and its formula.

Each layer of `edited_layers.py`, and each mechanism of `edited_mechanisms.py`, is put into the backbone, neck or head
of a small random YOLO in double precision. A figure is the largest difference of a map from its reference, as a share
of the map's largest value. Methods take turns at the three places, and at "level", "evidence", "stem" and a layer by
name; --all compares everything everywhere, as the nightly tests do. Where torch has no second derivative, `shapleycam`
is refused; an int8 layer on the way is refused by name.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from edited_layers import LAYERS
from edited_maps import METHODS, compared, rows, thinned
from edited_mechanisms import MECHANISMS
from edited_yolo import PLACES, edited
from objects import REPOSITORY, surroundings
from rich.console import Console
from rich.table import Table


def measure(kind: type[torch.nn.Module], place: str, pairs: Iterable[tuple[str, str]]) -> dict[str, Any]:
    cell = compared(*edited(kind, place), pairs)
    worst: tuple[float, Any] = max(((error, at) for at, error in cell.errors.items()), default=(0.0, None))
    sentences: dict[str, list[str]] = {}
    for (method, _), sentence in cell.refused.items():
        sentences.setdefault(sentence, []).append(method)
    return {
        "layer": kind.__name__,
        "place": place,
        "compared": len(cell.errors),
        "worst": worst[0],
        "worst_at": worst[1],
        "windows_left": sum(any("in windows" in text for text in texts) for texts in cell.warned.values()),
        "refused": {sentence: sorted(set(methods)) for sentence, methods in sentences.items()},
    }


def show(rows: list[dict[str, Any]], console: Console) -> None:
    table = Table(title="largest difference from plain autograd, as a share of the map's maximum", title_justify="left")
    table.add_column("layer")
    for place in PLACES:
        table.add_column(place, justify="right")
    table.add_column("maps refused")
    for name in dict.fromkeys(row["layer"] for row in rows):
        mine = {row["place"]: row for row in rows if row["layer"] == name}
        refused = {method for row in mine.values() for methods in row["refused"].values() for method in methods}
        few = ", ".join(sorted(refused)) if len(refused) < 3 else f"{len(refused)} methods"
        figures = (f"{mine[p]['worst']:.0e}" if p in mine and mine[p]["compared"] else "-" for p in PLACES)
        table.add_row(name, *figures, few)
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", help="names of layers, default all")
    parser.add_argument("--all", action="store_true", help="every method at all layers, in all places")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "benchmarks" / "results" / "custom_layers.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of TorchScript and quantisation, that they will go
    results: list[dict[str, Any]] = []
    report = {"benchmark": "custom_layers", "command": " ".join(["python benchmarks/custom_layers.py", *sys.argv[1:]])}
    report |= {**surroundings(torch.device("cpu")), "methods": list(METHODS), "results": results}
    for number, kind in enumerate((*LAYERS, *MECHANISMS)):
        if args.only is not None and kind.__name__ not in args.only:
            continue
        for turn, place in enumerate(PLACES, start=len(PLACES) * number):
            results.append(measure(kind, place, rows() if args.all else thinned(turn)))
        args.out.write_text(json.dumps(report, indent=1) + "\n")
        print(kind.__name__, *(f"{row['worst']:.1e}" for row in results[-len(PLACES) :]), file=sys.stderr, flush=True)
    show(results, Console(width=120))


if __name__ == "__main__":
    main()
