"""What N objects of one picture cost: detcam beside a plain loop, pytorch-grad-cam and captum.

Every contender explains the same anchors of YOLOv8n and ends with one full-resolution float32 heatmap per object. Times
are medians of interleaved rounds, given as multiples of a bare forward of the same model in the same rounds. detcam
gets a picture, and its time includes the letterbox and non-maximum suppression; the others get the network's input and
the anchors for nothing.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from peers import Anchor, ClassLogits, Run, captum_run, grad_cam_run, scaled
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import interpolate

from detcam import Explainer, ops
from detcam.adapters import LayerPlan
from detcam.images import read_image
from detcam.models.load import load_model

REPOSITORY = Path(__file__).parents[1]
WEIGHTS = REPOSITORY.parent / "shared" / "weights" / "yolov8n.pt"
LAYER = "model.9"
STAGE = "model.4"  # inside the backbone: everything after it, both ways, lies behind an object's score
THREADS = 2
WARM_SECONDS = 2  # contenders that take less run once before each timing
TIMED_CALLS = 5  # contenders that take one object a call are timed on this many and extrapolated


@dataclass(frozen=True)
class Task:
    """N objects on one picture."""

    image: np.ndarray  # [H, W, 3] uint8
    x: Tensor  # [1, 3, H, W]
    conf: float
    iou: float
    objects: list[Anchor]


@dataclass(frozen=True)
class Contender:
    name: str
    run: Run
    truth: Run  # the plain loop with the same formula at the same layers
    one_by_one: bool = False


def detcam_run(model: nn.Module, task: Task, method: str, layers: Any, plain: bool = False) -> Callable[[int], Tensor]:
    """detcam from the picture to the heatmaps; `plain`: with one call of autograd for each object."""
    explainer = Explainer(
        model, method, layers, conf=task.conf, iou=task.iou, max_det=len(task.objects), imgsz=task.image.shape[0]
    )

    if plain:
        explainer.adapter.readouts = lambda *_: None  # type: ignore[method-assign]

    def run(count: int) -> Tensor:
        explanation = explainer(task.image)
        assert explanation.objects.index.tolist() == [anchor for _, anchor, _ in task.objects]
        return explanation.heatmaps

    return run


def plain_loop(model: nn.Module, task: Task, plan: LayerPlan, formula: str = "hirescam") -> Callable[[int], Tensor]:
    """One forward, then `torch.autograd.grad` and `interpolate` for one object after the other."""

    def run(count: int) -> Tensor:
        leaves: dict[str, Tensor] = {}

        def cut(name: str) -> Callable[..., Tensor]:
            return lambda module, args, out: leaves.setdefault(name, out.detach().requires_grad_())

        handles = [model.get_submodule(name).register_forward_hook(cut(name)) for name in plan.names]
        logits = model(task.x)[1]["scores"][0]
        for handle in handles:
            handle.remove()
        heatmaps = task.x.new_empty(count, *task.x.shape[2:])
        for i, (class_id, anchor, level) in enumerate(task.objects[:count]):
            names = [plan.names[level]] if plan.fuse == "level" else plan.names
            acts = [leaves[name] for name in names]
            grads = torch.autograd.grad(logits[class_id, anchor], acts, retain_graph=True)
            if formula == "gradcam":
                grads = tuple(g.mean(dim=(2, 3), keepdim=True) for g in grads)
            maps = [(a.detach() * g).sum(dim=1, keepdim=True) for a, g in zip(acts, grads, strict=True)]
            finest = max((m.shape[2:] for m in maps), key=lambda shape: shape[0])
            coarse = torch.stack([interpolate(m, finest, mode="bilinear") for m in maps]).sum(dim=0)
            heatmaps[i] = interpolate(scaled(coarse.relu()), task.x.shape[2:], mode="bilinear")[0, 0]
        return heatmaps

    return run


def difference(ours: Tensor, truth: Tensor) -> float:
    """Largest difference between heatmaps with maximum 1.

    Peers differ in whether they normalise before the resize, after it or both; all of that is affine, so a last min-max
    at full resolution makes them comparable.
    """
    return float((scaled(ours.cpu()) - scaled(truth.cpu())).abs().max())


def contenders(model: nn.Module, task: Task) -> list[Contender]:
    import pytorch_grad_cam

    adapter = Explainer(model).adapter
    level, evidence = adapter.layers("level"), adapter.layers("evidence")
    single, stage = (LayerPlan((name,), cut_all=False, fuse="sum") for name in (LAYER, STAGE))
    at_level, at_evidence = plain_loop(model, task, level), plain_loop(model, task, evidence)
    at_layer, pooled = plain_loop(model, task, single), plain_loop(model, task, single, "gradcam")
    at_stage, why = plain_loop(model, task, stage), detcam_run(model, task, "layerig", "stem", plain=True)
    trainable = ClassLogits(copy.deepcopy(model).requires_grad_(True)).eval()  # as both libraries need it
    peers = pytorch_grad_cam.GradCAM, pytorch_grad_cam.HiResCAM
    return [
        Contender("detcam odam, level", detcam_run(model, task, "odam", "level"), at_level),
        Contender("detcam odam, evidence", detcam_run(model, task, "odam", "evidence"), at_evidence),
        Contender(f"detcam hirescam, {LAYER}", detcam_run(model, task, "hirescam", [LAYER]), at_layer),
        Contender(f"detcam hirescam, {STAGE}", detcam_run(model, task, "hirescam", [STAGE]), at_stage),
        Contender("detcam layerig, stem", detcam_run(model, task, "layerig", "stem"), why),
        Contender("plain loop layerig, stem", why, why),
        Contender("plain loop hirescam, level", at_level, at_level),
        Contender("plain loop hirescam, evidence", at_evidence, at_evidence),
        Contender(f"plain loop hirescam, {LAYER}", at_layer, at_layer),
        Contender(f"plain loop hirescam, {STAGE}", at_stage, at_stage),
        Contender(
            f"pytorch-grad-cam GradCAM, {LAYER}",
            grad_cam_run(peers[0], trainable, task.x, task.objects, LAYER),
            pooled,
            True,
        ),
        Contender(
            f"pytorch-grad-cam HiResCAM, {LAYER}",
            grad_cam_run(peers[1], trainable, task.x, task.objects, LAYER),
            at_layer,
            True,
        ),
        Contender(f"captum LayerGradCam, {LAYER}", captum_run(trainable, task.x, task.objects, LAYER), pooled, True),
    ]


def make_task(model: nn.Module, image: np.ndarray, count: int) -> Task:
    """The strictest thresholds at which the picture has `count` objects."""
    adapter = Explainer(model, imgsz=image.shape[0]).adapter
    pixels, geometry = adapter.prepare(image)
    with torch.no_grad():
        outputs = adapter.forward(pixels[None], count)
    best = outputs.logits[0].amax(dim=0).sigmoid().sort(descending=True).values
    for iou in (0.7, 1.0):
        for candidates in (count, 2 * count, 4 * count, 8 * count, 16 * count):
            conf = float(best[min(candidates, len(best) - 1)])
            found = adapter.detect(outputs, [geometry], conf, iou, count)[0]
            if len(found) == count:
                rows = zip(found.class_ids.tolist(), found.index.tolist(), found.level.tolist(), strict=True)
                return Task(image, pixels[None], conf, iou, list(rows))
    raise SystemExit(f"the picture has no {count} objects at {image.shape[0]} pixels: ask for fewer with --objects")


def seconds(run: Callable[[], Any], device: torch.device) -> float:
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    synchronize()
    start = time.perf_counter()
    run()
    synchronize()
    return time.perf_counter() - start


def measure(model: nn.Module, task: Task, repeats: int) -> list[dict[str, Any]]:
    device, n = task.x.device, len(task.objects)

    def bare() -> None:
        with torch.no_grad():
            model(task.x)

    field = contenders(model, task)
    timed = {c.name: min(n, TIMED_CALLS) if c.one_by_one else n for c in field}
    # The first run of each warms it up and gives the maps to compare.
    differences = {
        c.name: None if c.run is c.truth else difference(c.run(timed[c.name]), c.truth(timed[c.name])) for c in field
    }
    forwards: list[float] = []
    times: dict[str, list[float]] = {c.name: [] for c in field}
    for _ in range(repeats):
        for contender in field:
            count = timed[contender.name]
            if max(times[contender.name], default=0.0) < WARM_SECONDS:
                contender.run(count)  # not timed: what ran before leaves caches and memory in another state
            forwards.append(seconds(bare, device))
            times[contender.name].append(seconds(lambda c=contender, k=count: c.run(k), device) * n / count)  # type: ignore[misc]
    forward = statistics.median(forwards)
    rows: list[dict[str, Any]] = [{"objects": n, "contender": "bare forward", "seconds": forward, "ratio": 1.0}]
    for c in field:
        median = statistics.median(times[c.name])
        rows.append({"objects": n, "contender": c.name, "seconds": median, "ratio": median / forward})
        rows[-1]["difference"] = differences[c.name]
        rows[-1]["extrapolated_from"] = timed[c.name] if timed[c.name] < n else None
        rows[-1]["peak_mib"] = peak_mib(lambda c=c: c.run(timed[c.name]), device)  # type: ignore[misc]
    return rows


def peak_mib(run: Callable[[], Any], device: torch.device) -> float | None:
    """How many MiB more than before are in use at most while `run` runs, its result included; None if unknown."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    if not reset.exists():
        return None
    ctypes.CDLL(None).malloc_trim(
        0
    )  # what earlier runs freed goes back to the system, or it would hide what this takes
    reset.write_text("5")  # the peak starts over at what is resident now
    before = resident(status, "VmHWM")
    run()
    return (resident(status, "VmHWM") - before) / 2**10


def resident(status: Path, field: str) -> int:
    """A field of /proc/self/status in KiB."""
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(field))


def show(rows: list[dict[str, Any]], console: Console) -> None:
    table = Table(title=f"{rows[0]['objects']} objects", title_justify="left")
    table.add_column("contender")
    for heading in ("seconds", "x bare forward", "peak MiB", "maps equal to the plain loop to", "extrapolated"):
        table.add_column(heading, justify="right")
    for row in rows:
        equal = f"{row['difference']:.0e} of max" if row.get("difference") is not None else ""
        note = f"from {row['extrapolated_from']} calls" if row.get("extrapolated_from") else ""
        peak = f"{row['peak_mib']:.0f}" if row.get("peak_mib") is not None else ""
        table.add_row(row["contender"], f"{row['seconds']:.3f}", f"{row['ratio']:.2f}", peak, equal, note)
    console.print(table)


def speed_up(rows: list[dict[str, Any]], objects: int) -> dict[str, float]:
    """How many times faster detcam is than pytorch-grad-cam's HiResCAM."""
    found = {row["contender"]: row["seconds"] for row in rows if row["objects"] == objects}
    peer = found.get(f"pytorch-grad-cam HiResCAM, {LAYER}", 0.0)
    return {name: peer / value for name, value in found.items() if name.startswith("detcam")}


def load(weights: Path | None, device: str) -> tuple[nn.Module, str]:
    """The model, frozen, and what to call its weights."""
    path = weights or WEIGHTS
    if weights or path.exists():
        return load_model(path).to(device).requires_grad_(False), path.name
    from ultralytics.nn.tasks import DetectionModel

    torch.manual_seed(0)
    model = DetectionModel("yolov8n.yaml", ch=3, nc=80, verbose=False)
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and "dfl" not in name:
            nn.init.kaiming_normal_(module.weight)  # with torch's own the signal fades and all scores are equal
    head: Any = model.model[-1]  # type: ignore[index]
    for branch in head.cv3:
        nn.init.zeros_(branch[-1].bias)  # as made, the coarsest level's scores lead
    return model.eval().to(device).requires_grad_(False), "random"


def picture(size: int) -> np.ndarray:
    """The bus that ships with ultralytics, stretched to a square: no letterbox for anyone."""
    from ultralytics.utils import ASSETS

    return cv2.resize(read_image(ASSETS / "bus.jpg"), (size, size))


def surroundings(device: torch.device) -> dict[str, Any]:
    packages = ("torch", "ultralytics", "grad-cam", "captum", "detcam")
    cpu = f"{platform.machine()} CPU, {os.cpu_count()} cores"
    return {
        "date": datetime.date.today().isoformat(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
        "threads": torch.get_num_threads(),
        "compiled_kernels": ops.is_compiled(device),
        "versions": {"python": platform.python_version(), **{p: importlib.metadata.version(p) for p in packages}},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help="YOLOv8 weights; default: those beside the repository, or random")
    parser.add_argument("--objects", type=int, nargs="+", default=[5, 20, 100])
    parser.add_argument("--imgsz", type=int, default=640)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="5 objects at 320 pixels, twice")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "benchmarks" / "results" / "objects.json")
    args = parser.parse_args()
    if args.quick:
        args.objects, args.imgsz, args.repeats = [5], 320, 2
    torch.set_num_threads(THREADS)
    model, name = load(args.weights, args.device)
    image, console = picture(args.imgsz), Console(width=120)
    rows: list[dict[str, Any]] = []
    for count in args.objects:
        found = measure(model, make_task(model, image, count), args.repeats)
        show(found, console)
        rows += found
    at = 20 if 20 in args.objects else args.objects[0]
    faster = speed_up(rows, at)
    for contender, factor in faster.items():
        console.print(f"{contender}: {factor:.1f} times as fast as pytorch-grad-cam HiResCAM at {at} objects")
    report = {"benchmark": "objects", **surroundings(torch.device(args.device))}
    report |= {"weights": name, "imgsz": args.imgsz, "repeats": args.repeats, "results": rows}
    report["speed_up_over_pytorch_grad_cam"] = {"objects": at, **faster}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=2) + "\n")
    console.print(f"written to {args.out}")


if __name__ == "__main__":
    main()
