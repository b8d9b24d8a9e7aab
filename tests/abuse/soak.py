"""Thousands of explanations in one process, which must not grow: `python soak.py COUNT`."""

import contextlib
import gc
import itertools
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import torch

import detcam
from detcam.errors import DetcamError
from detcam.models.load import load_model
from detcam.scenes import draw_scene

OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"layers": "evidence"},
    {"target": "box"},
    {"method": "eigencam"},
    {"method": "gradcam++", "layers": ["model.4"]},
)
SIDES = (48, 64, 96)


def hooks(module: torch.nn.Module) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(m, kind)) for m in module.modules() for kind in kinds)


def state(model: torch.nn.Module, explainers: list[detcam.Explainer]) -> dict[str, int]:
    """Counts of everything that could grow."""
    gc.collect()
    objects = gc.get_objects()
    return {
        "hooks": hooks(model) + sum(hooks(e.adapter.module) for e in explainers),
        "threads": threading.active_count(),
        "files": psutil.Process().num_fds(),
        "tensors": sum(issubclass(type(o), torch.Tensor) for o in objects),
        "objects": len(objects),
        "resident": psutil.Process().memory_info().rss,
    }


def explanations(model: torch.nn.Module, explainers: list[detcam.Explainer], folder: Path) -> Iterator[int]:
    """Explanations by each explainer in turn; sometimes by a fresh one, of a list, after an error, or saved."""
    draw, pixels = random.Random(1), np.random.default_rng(1)
    scene = cv2.resize(draw_scene(7).image, (160, 120), interpolation=cv2.INTER_AREA)
    for i in itertools.count():
        explainer = explainers[i % len(explainers)]
        if i % 40 == 39:
            explainer = detcam.Explainer(model, imgsz=64, **OPTIONS[i // 40 % len(OPTIONS)])
        if i % 5:
            image = scene
        else:
            image = pixels.integers(0, 256, (draw.choice(SIDES), draw.choice(SIDES), 3), dtype=np.uint8)
        result = explainer([image, image] if i % 20 == 19 else image)
        for explanation in result if isinstance(result, list) else [result]:
            explanation.render(size=(32, 48))
        if i % 50 == 49:
            explanation.save(folder / "saved")
            with contextlib.suppress(DetcamError):
                explainer(np.zeros((3, 3)))
        result = explanation = None  # free the results of this turn before the count
        yield i


def main(count: int) -> None:
    torch.set_num_threads(1)
    model = load_model("scenes-yolo")
    module = getattr(model, "model", model)
    explainers = [detcam.Explainer(model, imgsz=64, **options) for options in OPTIONS]
    samples: list[dict[str, int]] = []
    # The first save, explanation 49, fills the caches of its sizes.
    warm, every = max(count // 10, 50), max(count // 20, 10)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for i in explanations(module, explainers, Path(folder)):
            if i >= warm and (i - warm) % every == 0:
                samples.append(state(module, explainers))
                print(i, {**samples[-1], "resident": f"{samples[-1]['resident'] / 2**20:.1f} MiB"}, flush=True)
            if i + 1 >= warm + count:
                break
    first, last = samples[0], samples[-1]
    quarter = max(len(samples) // 4, 1)
    mean = [sum(s["resident"] for s in part) / len(part) for part in (samples[:quarter], samples[-quarter:])]
    grown = (mean[1] - mean[0]) / 2**20
    print(f"{warm + count} explanations in {time.perf_counter() - began:.0f} s; resident memory grew {grown:.1f} MiB")
    for name in ("hooks", "threads", "files", "tensors"):
        assert last[name] == first[name], f"{name}: {first[name]} became {last[name]}"
    assert abs(last["objects"] - first["objects"]) < 500, f"objects: {first['objects']} became {last['objects']}"
    assert grown < 24, f"resident memory grew {grown:.1f} MiB in {count} explanations"


if __name__ == "__main__":
    os.environ.setdefault("MALLOC_ARENA_MAX", "2")
    main(int(sys.argv[1]))
