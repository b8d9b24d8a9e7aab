"""Time `detcam.ops` against its reference, usual eager code, torch.compile, and a copy of the output.

python benchmarks/ops.py [--device cuda] [--threads 2] [--rounds 15] [--out FILE]

Every figure is the median of `--rounds` calls in milliseconds (the JSON has the best too); the variants take
turns, so that a busy moment of the machine falls on all of them. "copy" writes into memory that exists
already, "clone" allocates its output as the operator does; a ratio is that of the compiled operator to
`clone` and to `copy`.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from detcam import ops
from detcam.ops import reference


class Setting(NamedTuple):
    objects: int
    channels: int
    side: int  # of the feature map, in cells
    size: int  # of the output, in pixels
    normalize: str = "object"
    dtype: torch.dtype = torch.float32

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"N={self.objects} C={self.channels} {self.side}->{self.size} {self.normalize} {dtype}"


SETTINGS = (
    Setting(100, 256, 20, 640),
    Setting(100, 256, 20, 640, dtype=torch.float16),
    Setting(100, 256, 20, 640, dtype=torch.uint8),
    Setting(100, 256, 20, 640, "max"),
    Setting(20, 256, 80, 640),
    Setting(20, 256, 80, 640, dtype=torch.uint8),
    Setting(1, 256, 20, 640),
    Setting(1, 256, 20, 640, dtype=torch.uint8),
)


def eager(acts: Tensor, weights: Tensor, setting: Setting) -> Tensor:
    """What one writes without an operator: einsum, min-max or max, F.interpolate."""
    maps = torch.einsum("nc,chw->nhw", weights, acts).relu()
    if setting.normalize == "object":
        low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
        maps = (maps - low) / (high - low)
    maps = F.interpolate(maps[None], (setting.size, setting.size), mode="bilinear")[0]
    if setting.normalize == "max":
        maps = maps / maps.amax((1, 2), keepdim=True)
    return (maps * 255).round().to(torch.uint8) if setting.dtype == torch.uint8 else maps.to(setting.dtype)


def variants(setting: Setting, device: str) -> dict[str, Callable[[], Any]]:
    acts = torch.randn(setting.channels, setting.side, setting.side, device=device)
    weights = torch.randn(setting.objects, setting.channels, device=device)
    size = (setting.size, setting.size)
    source = ops.cam_maps(acts, weights, size, normalize=setting.normalize, dtype=setting.dtype)
    target = torch.empty_like(source)
    compiled = torch.compile(reference.cam_maps, dynamic=False)
    arguments = (acts[None], weights, None, None, *size, setting.normalize, True, setting.dtype)
    return {
        "op": lambda: ops.cam_maps(acts, weights, size, normalize=setting.normalize, dtype=setting.dtype),
        "reference": lambda: reference.cam_maps(*arguments),
        "compile": lambda: compiled(*arguments),
        "eager": lambda: eager(acts, weights, setting),
        "clone": lambda: source.clone(),
        "copy": lambda: target.copy_(source),
    }


def measure(setting: Setting, device: str, rounds: int) -> dict[str, dict[str, float]]:
    calls = variants(setting, device)
    times: dict[str, list[float]] = {name: [] for name in calls}
    with torch.inference_mode():
        for round_ in range(rounds + 2):  # the first two warm up
            for name, call in calls.items():
                start = time.perf_counter()
                call()
                if device != "cpu":
                    torch.cuda.synchronize()
                if round_ >= 2:
                    times[name].append(1e3 * (time.perf_counter() - start))
    statistic = {"median": statistics.median, "best": min}
    return {name: with_ratios({k: of(v) for k, v in times.items()}) for name, of in statistic.items()}


def with_ratios(row: dict[str, float]) -> dict[str, float]:
    return row | {"op/clone": row["op"] / row["clone"], "op/copy": row["op"] / row["copy"]}


def main() -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    rows = {}
    for setting in SETTINGS:
        rows[str(setting)] = measure(setting, options.device, options.rounds)
        row = rows[str(setting)]["median"]
        if len(rows) == 1:
            print(f"{'milliseconds':40}" + "".join(f"{name:>11}" for name in row))
        print(f"{setting!s:40}" + "".join(f"{value:11.3f}" for value in row.values()), flush=True)
    if options.out:
        processor = torch.cuda.get_device_name() if options.device != "cpu" else platform.machine()
        facts = {"device": options.device, "processor": processor, "threads": options.threads}
        facts |= {"rounds": options.rounds, "torch": torch.__version__, "build": ops.build_info()}
        options.out.write_text(json.dumps(facts | {"milliseconds": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
