"""What the training scripts of the smaller demo models share: their scenes, a schedule of steps, and files."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.training.scene_arrays import SceneArrays, scene_arrays
from detcam import zoo

SEED = 0
ULTRALYTICS = zoo.FOLDER / "ultralytics"  # models trained with Ultralytics' code: AGPL-3.0, in no wheel
WARM_UP = 100  # steps


def arguments(description: str, steps: int) -> argparse.Namespace:
    """`work`, `scenes` and `steps` of the command line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--work", type=Path, required=True, help="folder for the drawn scenes")
    parser.add_argument("--scenes", type=int, default=2200, help="training scenes, seeds 0, 1, ...")
    parser.add_argument("--steps", type=int, default=steps, help="of 16 scenes each")
    return parser.parse_args()


def drawn(work: Path, scenes: int, size: tuple[int, int]) -> SceneArrays:
    """The first training scenes at a size (height, width), kept in a file under `work`."""
    return scene_arrays(work / f"scenes_{scenes}_{size[0]}x{size[1]}.npz", range(scenes), size)


def batches(optimizer: torch.optim.Optimizer, scenes: int, steps: int, size: int = 16) -> Iterator[NDArray[np.int64]]:
    """The scenes of each step, all of them once an epoch; the learning rate warms up and falls along a cosine."""
    random = np.random.default_rng(SEED)
    rates = [group["lr"] for group in optimizer.param_groups]
    left = np.zeros(0, np.int64)
    for step in range(steps):
        if len(left) < size:
            left = random.permutation(scenes)
        share = min(1.0, (step + 1) / WARM_UP) * (0.5 + 0.5 * np.cos(np.pi * step / steps))
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * share
        if step % 100 == 0:
            print(f"step {step} of {steps}", flush=True)
        yield left[:size]
        left = left[size:]


def halved(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The kernels in half precision; the few bytes of biases and norms as they are."""
    return {
        name: (value.half() if value.is_floating_point() and value.ndim > 1 else value).contiguous()
        for name, value in weights.items()
    }


def describe(name: str, script: str, description: dict[str, Any], **training: Any) -> None:
    """Write NAME.yaml of the zoo; descriptions that Ultralytics reads name no library."""
    facts = {"seed": SEED, **training, "date": date.today().isoformat(), "torch": str(torch.__version__)}
    text = yaml.safe_dump({**description, "training": facts}, sort_keys=False, default_flow_style=None, width=110)
    header = f"# Written by benchmarks/training/{Path(script).name}.\n"
    folder = zoo.FOLDER if "library" in description else ULTRALYTICS
    (folder / f"{name}.yaml").write_text(header + text, encoding="utf-8")
