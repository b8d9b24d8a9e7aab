"""What saving and drawing the objects of a large picture costs: processor time and peak memory.

    python benchmarks/large.py [--objects 30] [--save 48] [--draw 12] [--out benchmarks/results/large.json]

A one-layer network explains an enlarged drawn scene of so many megapixels; its maps are 80 x 80 random cells, which
hardly compress. Each call runs in a process of its own, whose peak memory counts everything, torch too; `explained` is
the process before the call. Limits: `save` under 2 GiB; `overlay(0)` at most 3 times the time and the memory of
`render([0])` at full size, both beyond `explained`.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import cv2
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import detcam
from detcam.adapters import CallableAdapter
from detcam.scenes import HELD_OUT_SEED, draw_scene


def explained(megapixels: float, count: int) -> detcam.Explanation:
    def detect(outputs: Tensor, conf: float) -> list[dict[str, Tensor]]:
        boxes, index = torch.tensor([[8.0, 8, 40, 40]]).repeat(count, 1), torch.arange(count)
        return [{"boxes": boxes, "scores": torch.ones(count), "class_ids": index * 0, "index": index}]

    def score(outputs: Tensor, objects: list[detcam.Objects], target: str) -> Tensor:
        return torch.cat([outputs[i].flatten()[o.index] for i, o in enumerate(objects)])

    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.Conv2d(4, 1, 1))
    adapter = CallableAdapter(lambda module, batch: module(batch), detect, score, layers=["0"])
    scale = (megapixels * 1e6 / (480 * 640)) ** 0.5
    picture = cv2.resize(draw_scene(HELD_OUT_SEED).image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    explanation = detcam.Explainer(network, adapter=adapter, imgsz=64, conf=0)(picture)
    return dataclasses.replace(explanation, maps=[torch.rand(80, 80) for _ in range(count)])


def measure(what: str, megapixels: float, count: int) -> dict[str, float]:
    """Processor seconds of a call, the peak memory of this process in MiB, and the bytes that were written."""
    explanation = explained(megapixels, count)
    began = time.process_time()
    written = 0
    if what == "save":
        with tempfile.TemporaryDirectory() as folder:
            explanation.save(folder)
            written = sum(path.stat().st_size for path in Path(folder).iterdir())
    elif what == "overlay":
        explanation.overlay(0)
    elif what == "render":
        explanation.render([0], dtype=torch.float32)
    seconds = time.process_time() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": round(seconds, 2), "peak_mib": round(peak), "written_mib": round(written / 2**20)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--objects", type=int, default=30)
    parser.add_argument("--save", type=float, default=48)
    parser.add_argument("--draw", type=float, default=12)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        size = given.save if given.child == "save" else given.draw
        print(json.dumps(measure(given.child, size, given.objects)))
        return
    results: dict[str, dict[str, Any]] = {}
    for call in ("explained", "render", "overlay", "save"):
        command = [sys.executable, __file__, *sys.argv[1:], "--child", call]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        results[call] = json.loads(done.stdout.splitlines()[-1])
    table = Table("call", "processor s", "peak MiB", "written MiB")
    for call, row in results.items():
        size = given.save if call == "save" else given.draw
        table.add_row(f"{call}, {size:g} MP", *map(str, row.values()))
    Console().print(table)
    if given.out:
        facts = {
            "command": "python " + " ".join(sys.argv), "machine": platform.machine(), "threads": 1,
            "date": date.today().isoformat(), "objects": given.objects, "save_mp": given.save, "draw_mp": given.draw,
            "versions": {name: importlib.metadata.version(name) for name in ("detcam", "torch", "opencv-python")},
        }  # fmt: skip
        given.out.write_text(json.dumps({**facts, "calls": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
