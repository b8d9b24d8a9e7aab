"""Speed and memory of `detcam batch`: images per second, speed-up by a second worker, growth of memory.

python benchmarks/batch.py [--images 200] [--imgsz 160] [--engines local,ray] [--coco DIR] [--out FILE]

Each run is the command in a new process, on the same images: drawn scenes, flipped and with noise, so all differ; or,
with --coco, copies of the images of a folder. One thread per worker.

rate       images a second from the first shard to the last; `whole` is the time from the command's start to its end
memory     unique memory (USS) of all processes of the command, sampled once a second; its growth: peak of the last
           third over peak of the second third, when everything is loaded
same       a digest of all rows' keys, labels and rounded box coordinates; equal for all runs

Targets: 2 workers at least 1.6 times 1 worker; Ray at least .75 times local; memory within 10 %.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pyarrow.parquet as pq
import torch
from objects import surroundings
from rich.console import Console
from rich.table import Table

from detcam.scenes import draw_scene

SCENES = 24  # different drawings, because drawing takes longer than explaining
RUNS = (("local", 1), ("local", 2), ("ray", 2))
SAMPLING = 1.0  # seconds: reading the memory of all processes takes processor time
SPEED_UP, RAY_SHARE, GROWTH = 1.6, 0.75, 1.1


def write_scenes(folder: Path, count: int) -> None:
    """Write `count` JPEG files of 320 x 240 pixels."""
    scenes = [draw_scene(seed, (240, 320)).image for seed in range(SCENES)]
    generator = np.random.default_rng(0)
    for i in range(count):
        image = scenes[i % SCENES][:, :: 1 if i // SCENES % 2 else -1].copy()
        top, left = generator.integers(0, 200), generator.integers(0, 280)
        image[top : top + 40, left : left + 40] ^= generator.integers(0, 16, (40, 40, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"{i:06d}.jpg"), image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])


def copy_pictures(source: Path, folder: Path, count: int) -> None:
    """Copy the images of a folder, repeatedly, to `count` files."""
    paths = sorted(path for path in source.rglob("*") if path.suffix.lower() in (".jpg", ".png"))
    for i in range(count):
        path = paths[i % len(paths)]
        shutil.copy(path, folder / f"{i:06d}{path.suffix}")


def run(photos: Path, out: Path, engine: str, workers: int, options: list[str]) -> dict[str, Any]:
    """Run a job and measure it."""
    command = [
        sys.executable, "-m", "detcam", "batch", str(photos), "--out", str(out), "--engine", engine,
        "--workers", str(workers), "--threads", "1", "--json", *options,
    ]  # fmt: skip
    began = time.time()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        memory = watch(process)
        assert process.stdout is not None
        tally = json.loads(process.stdout.read())
    whole = time.time() - began
    shards = sorted(path.stat().st_mtime for path in (out / "pictures").glob("*.parquet"))
    size = json.loads((out / "job.json").read_text())["chunk"]
    count = tally["done"]
    return {
        "engine": engine,
        "workers": workers,
        "pictures": count,
        "objects": tally["objects"],
        "errors": tally["errors"],
        "rate": (count - size) / (shards[-1] - shards[0]) if len(shards) > 1 else None,
        "whole": whole,
        "starting": shards[0] - began,
        "bytes": tally["written"],
        "memory_mib": [round(m) for m in memory],
        "growth": growth(memory),
        "same": digest(out),
    }


def watch(process: subprocess.Popen[str]) -> list[float]:
    """Samples of the unique memory of a process and its children, in MiB."""
    top, samples = psutil.Process(process.pid), list[float]()
    while process.poll() is None:
        total = 0
        try:
            for each in (top, *top.children(recursive=True)):
                total += each.memory_full_info().uss
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            pass
        samples.append(total / 2**20)
        time.sleep(SAMPLING)
    return samples


def growth(memory: list[float]) -> float | None:
    """The peak of the last third of a run over the peak of the second third."""
    third = len(memory) // 3
    return max(memory[2 * third :]) / max(memory[third : 2 * third]) if third else None


def digest(out: Path) -> str:
    """A digest of all objects in order: the same for the same rows."""
    hashed = hashlib.sha256()
    for path in sorted((out / "objects").glob("*.parquet")):
        rows = pq.read_table(path, columns=["key", "object", "label", "x1", "y1", "x2", "y2"])
        for row in rows.to_pylist():
            sides = [round(row[side]) for side in ("x1", "y1", "x2", "y2")]
            hashed.update(f"{row['key']} {row['object']} {row['label']} {sides}\n".encode())
    return hashed.hexdigest()[:16]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--imgsz", type=int, default=160)
    parser.add_argument("--engines", default="local,ray")
    parser.add_argument("--coco", type=Path, help="folder of photographs to use in place of scenes")
    parser.add_argument("--model", default="scenes-yolo")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "batch.json")
    args = parser.parse_args()
    options = ["--imgsz", str(args.imgsz), "--model", args.model]
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder) / "photos"
        photos.mkdir()
        if args.coco:
            copy_pictures(args.coco, photos, args.images)
        else:
            write_scenes(photos, args.images)
        chosen = [c for c in RUNS if c[0] in args.engines.split(",")]
        rows = []
        for i, (engine, workers) in enumerate(chosen):
            rows.append(run(photos, Path(folder) / f"out{i}", engine, workers, options))
            print(json.dumps({k: v for k, v in rows[-1].items() if k != "memory_mib"}), file=sys.stderr)
    torch.set_num_threads(1)  # as each worker has
    document = {"images": args.images, "imgsz": args.imgsz, "model": args.model, **surroundings(torch.device("cpu"))}
    document["rows"] = rows
    document["verdict"] = verdict(rows)
    show(document)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(document, indent=1) + "\n")


def verdict(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The measures that have targets, with their targets."""
    rate = {(row["engine"], row["workers"]): row["rate"] for row in rows}
    measures: dict[str, Any] = {"same": len({row["same"] for row in rows}) == 1}
    if rate.get(("local", 1)) and rate.get(("local", 2)):
        measures["speed_up"] = {"value": rate["local", 2] / rate["local", 1], "at_least": SPEED_UP}
    if rate.get(("local", 2)) and rate.get(("ray", 2)):
        measures["ray_over_local"] = {"value": rate["ray", 2] / rate["local", 2], "at_least": RAY_SHARE}
    growths = [row["growth"] for row in rows if row["growth"]]
    if growths:
        measures["memory_growth"] = {"value": max(growths), "at_most": GROWTH}
    return measures


def show(document: dict[str, Any]) -> None:
    heads = (
        "engine",
        "workers",
        "pictures",
        "objects",
        "pictures/s",
        "whole s",
        "to 1st shard s",
        "peak MiB",
        "growth",
    )
    table = Table(*heads)
    for row in document["rows"]:
        rate, grown = row["rate"], row["growth"]
        table.add_row(
            row["engine"], str(row["workers"]), str(row["pictures"]), str(row["objects"]),
            f"{rate:.1f}" if rate else "-", f"{row['whole']:.1f}", f"{row['starting']:.1f}",
            str(max(row["memory_mib"], default=0)), f"{grown:.3f}" if grown else "-",
        )  # fmt: skip
    console = Console()
    console.print(table)
    console.print(document["verdict"])


if __name__ == "__main__":
    main()
