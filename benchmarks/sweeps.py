"""What a sweep of forwards costs for 1 object and for many of one picture: it should be the same.

A masked forward does not depend on the object, so one sweep serves all of them; what grows with their number is only
the sums at the end. Every method explains the 1 and the N strongest anchors of YOLOv8n on one picture, in interleaved
rounds, and ends with one full-resolution float32 heatmap per object. What is no forward shows in the last column: the
time of one call over that of as many bare forwards, one by one, as the method declares. The ratio of processor time
beside that of time tells them apart on a machine with other work.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from objects import REPOSITORY, THREADS, load, make_task, picture, seconds, surroundings
from rich.console import Console
from rich.table import Table
from torch import nn

from detcam import Explainer
from detcam.methods import SweepMethod
from detcam.methods.channels import AblationCAM, ReciproCAM
from detcam.methods.perturbation import DRISE, RISE, Occlusion, ScoreCAM

LAYER = "model.9"  # 256 channels
TARGET = 1.10  # many objects may cost this many times what one costs


def methods(masks: int) -> list[tuple[SweepMethod, int]]:
    """Each method, and the whole forwards that it makes; 0 where it makes forwards of the tail."""
    return [
        (RISE(masks=masks), masks + 2),
        (DRISE(masks=masks), masks + 2),
        (Occlusion(cells=9, patch=2), 64 + 2),
        (ScoreCAM(), 256 + 2),
        (AblationCAM(), 0),
        (ReciproCAM(cells=10), 0),
    ]


def measure(model: nn.Module, size: int, many: int, masks: int, repeats: int) -> list[dict[str, Any]]:
    image = picture(size)
    task = make_task(model, image, many)

    def explainer(method: SweepMethod, count: int) -> Explainer:
        return Explainer(model, method, [LAYER], conf=task.conf, iou=task.iou, max_det=count, imgsz=size)

    def bare() -> None:
        with torch.no_grad():
            model(task.x)

    field = [(method, forwards, explainer(method, 1), explainer(method, many)) for method, forwards in methods(masks)]
    forward: list[float] = []
    times: dict[tuple[str, int], list[tuple[float, float]]] = {}
    bare()
    for _ in range(repeats):
        for method, _, one, all_of_them in field:
            forward += [seconds(bare, task.x.device) for _ in range(3)]
            for count, run in ((1, one), (many, all_of_them)):

                def explain(run: Explainer = run, count: int = count) -> None:
                    assert run(image).heatmaps.shape[0] == count

                start = time.process_time()
                elapsed = seconds(explain, task.x.device)
                times.setdefault((method.name, count), []).append((elapsed, time.process_time() - start))
    rows = []
    for method, forwards, _, _ in field:
        one, all_of_them = (statistics.median(t for t, _ in times[method.name, count]) for count in (1, many))
        pairs = list(zip(times[method.name, 1], times[method.name, many], strict=True))  # neighbours drift together
        rows.append({
            "method": method.name,
            "layer": LAYER if "activations" in method.reads else None,
            "seconds_1": one,
            f"seconds_{many}": all_of_them,
            "ratio": statistics.median(b[0] / a[0] for a, b in pairs),
            "processor_ratio": statistics.median(b[1] / a[1] for a, b in pairs),
            "x_its_bare_forwards": all_of_them / (forwards * statistics.median(forward)) if forwards else None,
        })  # fmt: skip
    return rows


def show(rows: list[dict[str, Any]], many: int, console: Console) -> None:
    table = Table(title=f"one sweep for 1 and for {many} objects", title_justify="left")
    headings = "method", "1 object, s", f"{many} objects, s", f"ratio (target {TARGET})", "of processor time"
    for heading in (*headings, "x its bare forwards"):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for row in rows:
        share = row["x_its_bare_forwards"]
        table.add_row(
            row["method"], f"{row['seconds_1']:.2f}", f"{row[f'seconds_{many}']:.2f}", f"{row['ratio']:.3f}",
            f"{row['processor_ratio']:.3f}",
            f"{share:.2f}" if share else "tail only",
        )  # fmt: skip
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help="YOLOv8 weights; default: those beside the repository, or random")
    parser.add_argument("--objects", type=int, default=50)
    parser.add_argument("--masks", type=int, default=64, help="masks of RISE and D-RISE")
    parser.add_argument("--imgsz", type=int, default=640)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=THREADS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="10 objects at 320 pixels, 16 masks, once")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "benchmarks" / "results" / "sweeps.json")
    args = parser.parse_args()
    if args.quick:
        args.objects, args.imgsz, args.masks, args.repeats = 10, 320, 16, 1
    torch.set_num_threads(args.threads)
    model, name = load(args.weights, args.device)
    console = Console(width=120)
    rows = measure(model, args.imgsz, args.objects, args.masks, args.repeats)
    show(rows, args.objects, console)
    report = {"benchmark": "sweeps", **surroundings(torch.device(args.device)), "weights": name, "imgsz": args.imgsz}
    report |= {"objects": args.objects, "masks": args.masks, "repeats": args.repeats, "target": TARGET, "results": rows}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=2) + "\n")
    console.print(f"written to {args.out}")


if __name__ == "__main__":
    main()
