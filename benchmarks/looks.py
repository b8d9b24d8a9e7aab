"""Does the page of what a model looks at give a spurious cue away? On planted scenes, where the cause is known.

The same bodies are told apart by a mark on them (the control: nothing outside matters), by a beacon beside the box, or
by the ground around it, which was never meant to count. `on the cause` is the share of the heat on the pixels that do
decide, which is unknown for photographs; the other columns are statistics of `detcam.analysis.heat_summary.summarise`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from detcam import Explainer
from detcam.analysis.heat_summary import summarise
from detcam.boxes import box_iou
from detcam.evaluate.contenders import reads_layers
from detcam.evaluate.report import versions
from detcam.methods import get_method
from detcam.scenes import HELD_OUT_SEED
from detcam.scenes.planted import VARIANTS, draw_planted

RESULT = Path(__file__).parent / "results" / "looks.json"


def measured(variant: str, method: str, scenes: int) -> dict[str, Any]:
    """Heat statistics of a variant's model under a method, as a row of the table."""
    made = get_method(method)
    layers = "evidence" if reads_layers(made) and made.layers == "level" else "auto"
    explainer = Explainer(f"planted_{variant}", method, layers)
    on_cause: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in track(range(HELD_OUT_SEED, HELD_OUT_SEED + scenes), f"{method} {variant}", transient=True):
            scene = draw_planted(seed, variant)
            path = Path(folder) / f"{seed}.png"
            cv2.imwrite(str(path), scene.image[:, :, ::-1])
            explanation = explainer(path)
            explanation.save(Path(folder) / str(seed), path)
            owners = box_iou(explanation.boxes, torch.from_numpy(scene.boxes)).argmax(dim=1).tolist()
            for heat, owner in zip(explanation.heatmaps.numpy(), owners, strict=True):
                on_cause.append(float(heat[scene.causes[owner]].sum() / heat.sum()) if heat.any() else np.nan)
        (summary,) = summarise(folder)
    statistics = summary.statistics()
    assert statistics.quartiles is not None
    return {
        "variant": variant, "method": method, "objects": statistics.measured, "median outside": statistics.quartiles[2],
        "quartiles": statistics.quartiles, "mostly outside": statistics.mostly, "in other boxes": statistics.others,
        "on the cause": float(np.nanmean(on_cause)),
    }  # fmt: skip


def main() -> None:
    """Print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=40, help="of each variant")
    parser.add_argument("--methods", nargs="+", default=["layerig", "odam", "integratedgradients", "occlusion"])
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    rows = [measured(variant, method, arguments.scenes) for method in arguments.methods for variant in VARIANTS]
    table = Table("method", "decided by", "objects", "median outside", "mostly outside", "on the cause")
    for row in rows:
        shares = [f"{row[name]:.2f}" for name in ("median outside", "on the cause")]
        mostly = f"{row['mostly outside'] / row['objects']:.2f}"
        table.add_row(row["method"], row["variant"], str(row["objects"]), shares[0], mostly, shares[1])
    Console().print(table)
    document = {
        "command": f"python benchmarks/looks.py --scenes {arguments.scenes} --methods {' '.join(arguments.methods)}",
        "date": date.today().isoformat(),
        "versions": versions(),
        "scenes": arguments.scenes,
        "rows": rows,
    }
    arguments.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
