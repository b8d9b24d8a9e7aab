"""What 20 objects cost in every family of detectors: detcam beside a plain loop over autograd.

Each model looks at one photograph, with random weights but for those that lie beside the repository (YOLOv8n-seg); its
20 best candidates are the objects. The plain loop runs
one forward, then `torch.autograd.grad` and `interpolate` for one object after the other, from the same scalars at the
same layers. Both end with one full-resolution float32 heatmap per object. Times are medians of interleaved rounds, as
multiples of a bare forward of the same model in the same rounds; detcam's include its own pre- and post-processing.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from objects import REPOSITORY, THREADS, difference, picture, seconds, surroundings
from peers import scaled
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import interpolate

from detcam import Explainer
from detcam.engine import Capture
from detcam.models.load import load_model

SHARE = 10  # (cell, class) pairs of each level above the same logit; some of them are of one object


@dataclass(frozen=True)
class Family:
    """A model to measure: how to make it, what is explained, and at which preset."""

    name: str
    make: Callable[[], nn.Module]
    layers: str
    target: str


def yolo(config: str) -> nn.Module:
    from ultralytics.nn.tasks import DetectionModel, SegmentationModel

    kind = SegmentationModel if "-seg" in config else DetectionModel
    return alive(kind(config, ch=3, nc=80, verbose=False))


def real(name: str, otherwise: Callable[[], nn.Module]) -> nn.Module:
    """Real weights that lie beside the repository, or else random ones."""
    path = REPOSITORY.parent / "shared" / "weights" / name
    return load_model(path) if path.exists() else otherwise()


def rtdetr() -> nn.Module:
    from ultralytics.nn.tasks import RTDETRDetectionModel

    return RTDETRDetectionModel("rtdetr-l.yaml", ch=3, nc=80, verbose=False)


def torchvision_model(name: str) -> nn.Module:
    from torchvision.models import detection

    return getattr(detection, name)(weights=None, weights_backbone=None)  # type: ignore[no-any-return]


def alive(model: nn.Module) -> nn.Module:
    """As made, a YOLO's signal fades, and its best candidates all lie on one level; here every level has its share."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and "dfl" not in name:
            nn.init.kaiming_normal_(module.weight)
    explainer = Explainer(model.eval())
    pixels, _ = explainer.adapter.prepare(picture(640))
    with torch.no_grad():
        maps = explainer.adapter.forward(pixels[None], 1).maps["cls_head"]
    head: Any = model.model[-1]  # type: ignore[index]
    for branch, logits in zip(head.one2one_cv3 if head.end2end else head.cv3, maps, strict=True):
        branch[-1].bias.data -= logits.flatten().topk(SHARE).values[-1]
    return model


MODELS: tuple[tuple[str, Callable[[], nn.Module], str], ...] = (
    ("YOLO11n", lambda: yolo("yolo11n.yaml"), "class"),
    ("YOLO26n", lambda: yolo("yolo26n.yaml"), "class"),
    ("YOLOv8n-seg", lambda: real("yolov8n-seg.pt", lambda: yolo("yolov8n-seg.yaml")), "mask"),
    ("RT-DETR-l", rtdetr, "class"),
    ("Faster R-CNN", lambda: torchvision_model("fasterrcnn_resnet50_fpn"), "class"),
    ("RetinaNet", lambda: torchvision_model("retinanet_resnet50_fpn"), "class"),
    ("FCOS", lambda: torchvision_model("fcos_resnet50_fpn"), "class"),
)
FAMILIES = [Family(name, make, layers, target) for name, make, target in MODELS for layers in ("level", "evidence")]


def explainer_of(family: Family, model: nn.Module, image: np.ndarray, count: int) -> Explainer:
    """An explainer whose threshold lets through the best `count` objects."""
    adapter = Explainer(model).adapter
    pixels, geometry = adapter.prepare(image)
    with torch.no_grad():
        found = adapter.detect(adapter.forward(pixels[None], count), [geometry], 0.0, 0.7, count)[0]
    if len(found) < count:
        raise SystemExit(f"{family.name}: the picture has no {count} objects: ask for fewer with --objects")
    conf = float(found.scores.min()) * (1 - 1e-5)
    return Explainer(model, layers=family.layers, target=family.target, conf=conf, max_det=count)


def plain_loop(explainer: Explainer, x: Tensor, geometry: Any, size: tuple[int, int]) -> Tensor:
    """[N, H, W]: one forward, one backward for each object, one resize for each object."""
    adapter, plan = explainer.adapter, explainer.plan
    modules = {name: adapter.module.get_submodule(name) for name in plan.names}
    with Capture(modules, plan.cut_all, lambda tokens: adapter.grids(tokens, geometry.network)) as capture:
        outputs = adapter.forward(x, explainer.max_det)
    objects = adapter.detect(outputs, [geometry], explainer.conf, explainer.iou, explainer.max_det)
    scalars = adapter.score(outputs, objects, str(explainer.target))
    named = {layer.name: layer.tensor for layer in capture.captured}
    heatmaps = x.new_empty(len(scalars), *size)
    for i, (scalar, level) in enumerate(zip(scalars, objects[0].level.tolist(), strict=True)):
        acts = [named[plan.names[level]]] if plan.fuse == "level" else list(named.values())
        grads = torch.autograd.grad(scalar, acts, retain_graph=True, allow_unused=True)
        maps = [(a.detach() * g).sum(dim=1, keepdim=True) for a, g in zip(acts, grads, strict=True) if g is not None]
        finest = max((m.shape[2:] for m in maps), key=lambda shape: shape[0] * shape[1])
        coarse = torch.stack([interpolate(m, finest, mode="bilinear") for m in maps]).sum(dim=0)
        left, top, right, bottom = (round(v) for v in geometry.window((coarse.shape[2], coarse.shape[3])))
        inside = scaled(coarse.relu())[:, :, top:bottom, left:right]
        heatmaps[i] = interpolate(inside, size, mode="bilinear")[0, 0]
    return heatmaps


def measure(family: Family, image: np.ndarray, count: int, repeats: int) -> dict[str, Any]:
    torch.manual_seed(0)
    model = family.make().eval().requires_grad_(False)
    explainer = explainer_of(family, model, image, count)
    pixels, geometry = explainer.adapter.prepare(image)
    x, device = pixels[None], pixels.device

    def bare() -> None:
        with torch.no_grad():
            explainer.adapter.module(x if "torchvision" not in type(model).__module__ else [pixels])

    def ours() -> Tensor:
        return explainer(image).heatmaps

    def plain() -> Tensor:
        return plain_loop(explainer, x, geometry, geometry.source)

    found = explainer(image).objects.level.tolist()
    levels = [found.count(level) for level in range(explainer.adapter.levels)]
    # In the memory order that detcam runs in: rounding alone may swap objects of nearly equal scores.
    ordered = x.contiguous(memory_format=torch.channels_last)
    equal = difference(ours(), plain_loop(explainer, ordered, geometry, geometry.source))
    times: dict[str, list[float]] = {"forward": [], "detcam": [], "plain loop": []}
    for _ in range(repeats):
        for name, run in (("forward", bare), ("detcam", ours), ("plain loop", plain)):
            times[name].append(seconds(run, device))
    median = {name: statistics.median(values) for name, values in times.items()}
    return {
        "family": family.name,
        "layers": family.layers,
        "target": family.target,
        "objects": count,
        "objects_of_each_level": levels,
        "input": list(geometry.network),
        "forward_seconds": median["forward"],
        "detcam_ratio": median["detcam"] / median["forward"],
        "plain_ratio": median["plain loop"] / median["forward"],
        "speed_up": median["plain loop"] / median["detcam"],
        "difference": equal,
    }


def show(rows: list[dict[str, Any]], console: Console) -> None:
    table = Table(title=f"{rows[0]['objects']} objects, x bare forward", title_justify="left")
    for heading in ("family", "layers", "input"):
        table.add_column(heading)
    for heading in ("forward, s", "detcam", "plain loop", "faster", "maps equal to"):
        table.add_column(heading, justify="right")
    for row in rows:
        size = " x ".join(map(str, row["input"]))
        ratios = (f"{row[key]:.2f}" for key in ("forward_seconds", "detcam_ratio", "plain_ratio", "speed_up"))
        table.add_row(row["family"], row["layers"], size, *ratios, f"{row['difference']:.0e} of max")
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", help="names of families, default all")
    parser.add_argument("--objects", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=REPOSITORY / "benchmarks" / "results" / "families.json")
    args = parser.parse_args()
    torch.set_num_threads(THREADS)
    image, console = picture(640), Console(width=120)
    chosen = [f for f in FAMILIES if args.only is None or f.name in args.only]
    rows = [measure(family, image, args.objects, args.repeats) for family in chosen]
    show(rows, console)
    report = {"benchmark": "families", **surroundings(torch.device("cpu")), "results": rows}
    args.out.write_text(json.dumps(report, indent=2) + "\n")
    console.print(f"written to {args.out}")


if __name__ == "__main__":
    main()
