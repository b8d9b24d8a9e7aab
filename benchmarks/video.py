"""What heatmaps add to a video: every object of every frame, beside the same pipeline drawing boxes only.

python benchmarks/video.py [--frames N] [--rounds 2] [--weights FILE] [--video FILE] [--device cuda] [--out FILE]

pipeline   the whole way from file to H.264 file: decode, detect, explain, track, paint, encode. Runs take turns; a
           contender's time is its fastest round, because whatever else the machine does only adds. Each run reports
           the seconds of each part of each thread, which add up to the thread's life.
peer       pytorch-grad-cam's HiResCAM at each object's own level for 20 frames, beside detcam on the same frames,
           frame by frame in turns
memory     a run in a process of its own: the largest resident size up to frame 100 and up to the end
flicker    mean change from frame to frame of the heatmaps of objects that stand still, inside their boxes, with and
           without the scaling and smoothing along tracks

Targets: all objects at most 1.25 times the boxes, with every=3 at most 1.10; memory within 5 %; flicker at most half.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from objects import WEIGHTS, resident, surroundings
from peers import ClassLogits, grad_cam_run
from rich.console import Console
from rich.table import Table

import detcam.video
from detcam import Explainer
from detcam.models.load import load_model

VIDEO = WEIGHTS.parents[1] / "data" / "video" / "vtest.avi"
THREADS = 2
WARM_FRAMES = 12
STILL = 1.5  # pixels that the sides of a box that stands still may move from frame to frame
EARLY = 100  # frames; the peak up to here is what the peak up to the end is compared with
CONTENDERS: dict[str, tuple[str, int]] = {
    "boxes only": ("none", 1),
    "all objects": ("boxes", 1),
    "all objects, every=3": ("boxes", 3),
    "all objects, fused": ("fused", 1),
}
TARGETS = {"all objects": 1.25, "all objects, every=3": 1.10}


def run(explainer: Explainer, video: Path, folder: Path, name: str, frames: int | None) -> dict[str, Any]:
    """One run from file to file."""
    view, every = CONTENDERS[name]
    gc.collect()
    used = resource.getrusage(resource.RUSAGE_SELF)
    style = detcam.video.Style(view)
    done = detcam.video.write(video, folder / "out.mp4", explainer, style, limit=frames, every=every)
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime - used.ru_utime + after.ru_stime - used.ru_stime
    return {
        "contender": name,
        **{k: done[k] for k in ("frames", "objects", "explained", "wall", "fps", "seconds")},
        "cpu": cpu,
    }


def pipelines(explainer: Explainer, video: Path, frames: int | None, rounds: int) -> list[dict[str, Any]]:
    """The fastest run of each contender, with its ratio to the boxes."""
    best: dict[str, dict[str, Any]] = {}
    every: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    with tempfile.TemporaryDirectory() as folder:
        for name in CONTENDERS:
            run(explainer, video, Path(folder), name, WARM_FRAMES)
        for turn in range(rounds):
            order = list(CONTENDERS) if turn % 2 == 0 else list(CONTENDERS)[::-1]
            for name in order:
                done = run(explainer, video, Path(folder), name, frames)
                every[name].append(done["wall"])
                if name not in best or done["wall"] < best[name]["wall"]:
                    best[name] = done
    boxes = best["boxes only"]
    for name, row in best.items():
        row["ratio"] = row["wall"] / boxes["wall"]
        row["cpu_ratio"] = row["cpu"] / boxes["cpu"]
        row["walls"] = every[name]
        row["target"] = TARGETS.get(name)
    return list(best.values())


def peer(weights: Path, explainer: Explainer, video: Path, count: int) -> dict[str, Any]:
    """pytorch-grad-cam and detcam on the same frames, in turns."""
    from pytorch_grad_cam import HiResCAM

    trainable = ClassLogits(copy.deepcopy(load_model(weights)).to(explainer.adapter.device).requires_grad_(True)).eval()
    layers = explainer.adapter.layers("level").names
    theirs, ours, objects = [], [], 0
    with detcam.video.open_source(video) as source:
        for picture in islice(source, count):
            begin = time.perf_counter()
            found = explainer(picture.image).objects
            ours.append(time.perf_counter() - begin)
            pixels = explainer.adapter.prepare(picture.image)[0][None]
            begin = time.perf_counter()
            for c, a, level in zip(found.class_ids.tolist(), found.index.tolist(), found.level.tolist(), strict=True):
                grad_cam_run(HiResCAM, trainable, pixels, [(c, a, level)], layers[level])(1)
            theirs.append(time.perf_counter() - begin)
            objects += len(found)
    return {
        "frames": len(ours), "objects": objects, "pytorch_grad_cam_seconds": sum(theirs), "detcam_seconds": sum(ours),
        "ratio": sum(theirs) / sum(ours),
    }  # fmt: skip


def flicker(explainer: Explainer, video: Path, count: int) -> dict[str, Any]:
    """Mean change of heat in the boxes of objects that stand still, both ways, over the same pairs of frames."""
    changes: dict[bool, list[float]] = {True: [], False: []}
    for steady, found in changes.items():
        before: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        for frame in islice(detcam.video.explain(video, explainer, steady=steady), count):
            heat, boxes = frame.heatmaps.cpu().numpy(), frame.objects.boxes.cpu().numpy()
            now = {track: (boxes[i], heat[i]) for i, track in enumerate(frame.tracks)}
            for track in now.keys() & before.keys():
                (box, hot), (old_box, old_hot) = now[track], before[track]
                if np.abs(box - old_box).max() < STILL:
                    x1, y1, x2, y2 = np.rint(box).astype(int)
                    found.append(float(np.abs(hot - old_hot)[y1:y2, x1:x2].mean()))
            before = now
    steady, plain = statistics.mean(changes[True]), statistics.mean(changes[False])
    return {"pairs": len(changes[True]), "steady": steady, "plain": plain, "ratio": steady / plain, "target": 0.5}


def memory(weights: Path, video: Path, frames: int | None, device: str) -> dict[str, Any]:
    """The peaks of a run in a fresh process."""
    arguments = ["--memory-only", "--weights", str(weights), "--video", str(video), "--device", device]
    arguments += ["--frames", str(frames)] if frames else []
    ran = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True)
    if ran.returncode:
        raise SystemExit(f"the memory run failed:\n{ran.stderr}")
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return found


def measure_memory(weights: Path, video: Path, frames: int | None, device: str) -> None:
    """Print the peaks as JSON; loading the model does not count."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    explainer = Explainer(weights, layers="level", device=device)
    peaks: dict[int, float] = {}
    count = 0

    def watch(stats: Any) -> None:
        nonlocal count
        count += 1
        if count == WARM_FRAMES:
            reset.write_text("5")  # the peak starts over at what is resident now
        peaks[count] = resident(status, "VmHWM") / 2**10

    with tempfile.TemporaryDirectory() as folder:
        detcam.video.write(video, Path(folder) / "out.mp4", explainer, limit=frames, progress=watch)
    early = peaks[min(EARLY, count)]
    print(json.dumps({
        "early_frame": min(EARLY, count), "early_mib": early, "frames": count, "late_mib": peaks[count],
        "ratio": peaks[count] / early, "target": 1.05,
    }))  # fmt: skip


def show(report: dict[str, Any], console: Console) -> None:
    table = Table(title="from file to file", title_justify="left")
    table.add_column("contender")
    for heading in ("frames", "objects", "seconds", "fps", "x boxes", "target", "x CPU time"):
        table.add_column(heading, justify="right")
    for row in report["pipeline"]:
        cells = row["frames"], row["objects"], f"{row['wall']:.2f}", f"{row['fps']:.1f}", f"{row['ratio']:.3f}"
        target = "" if row["target"] is None else f"{row['target']:.2f}"
        table.add_row(row["contender"], *map(str, cells), target, f"{row['cpu_ratio']:.3f}")
    console.print(table)
    parts = Table(title="seconds of each thread; they add up to its life", title_justify="left")
    for heading in ("contender", "thread", "parts", "sum", "life"):
        parts.add_column(heading)
    for row in report["pipeline"]:
        for thread, seconds in row["seconds"].items():
            spent = {part: value for part, value in seconds.items() if part != "alive"}
            listed = ", ".join(f"{part} {value:.2f}" for part, value in spent.items())
            parts.add_row(row["contender"], thread, listed, f"{sum(spent.values()):.2f}", f"{seconds['alive']:.2f}")
    console.print(parts)
    found = report["peer"]
    console.print(
        f"pytorch-grad-cam HiResCAM: {found['ratio']:.1f} times detcam's time on {found['frames']} frames with "
        f"{found['objects']} objects"
    )
    found = report["memory"]
    console.print(
        f"peak memory: {found['early_mib']:.0f} MiB after {found['early_frame']} frames, {found['late_mib']:.0f} MiB "
        f"after {found['frames']}: {found['ratio']:.3f} (target {found['target']})"
    )
    found = report["flicker"]
    console.print(
        f"flicker of still objects: {found['steady']:.4f} along tracks, {found['plain']:.4f} frame by frame: "
        f"{found['ratio']:.2f} (target {found['target']}), {found['pairs']} pairs"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--video", type=Path, default=VIDEO)
    parser.add_argument("--frames", type=int, help="frames of each run; default: all")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--peer-frames", type=int, default=20)
    parser.add_argument("--flicker-frames", type=int, default=150)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--memory-only", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "video.json")
    args = parser.parse_args()
    torch.set_num_threads(THREADS)
    if args.memory_only:
        measure_memory(args.weights, args.video, args.frames, args.device)
        return
    console = Console(width=120, highlight=False)
    explainer = Explainer(args.weights, layers="level", device=args.device)
    report = {"benchmark": "video", **surroundings(torch.device(args.device)), "video": args.video.name}
    report |= {"weights": args.weights.name, "layers": "level", "rounds": args.rounds}
    report["pipeline"] = pipelines(explainer, args.video, args.frames, args.rounds)
    report["peer"] = peer(args.weights, explainer, args.video, args.peer_frames)
    report["flicker"] = flicker(explainer, args.video, args.flicker_frames)
    report["memory"] = memory(args.weights, args.video, args.frames, args.device)
    show(report, console)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=2) + "\n")
    console.print(f"written to {args.out}")


if __name__ == "__main__":
    main()
