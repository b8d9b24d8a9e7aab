"""Time `detcam.ops` against their references and usual code, taking turns in the same run.

python benchmarks/ops.py [--device cuda] [--threads 2] [--rounds 15] [--only overlay] [--out FILE]

Every figure is the median of `--rounds` calls in milliseconds (the JSON has the best too); the variants take
turns, so that a busy moment of the machine falls on all of them. A column "a/b" is how many times longer `a` took.

cam_maps          "copy" writes into memory that exists already, "clone" allocates its output as the operator does
overlay           "opencv" is resize, applyColorMap and addWeighted for each object, over the whole frame as one
                  writes it; it runs on the CPU only, and "eager" in its place on a GPU
elementwise_maps  "read" only sums acts and grads, each on its own: what reading them costs
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from detcam import ops
from detcam.ops import reference

Calls = dict[str, Callable[[], Any]]


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


class CamMaps(NamedTuple):
    objects: int
    channels: int
    side: int  # of the feature map, in cells
    size: int  # of the output, in pixels
    normalize: str = "object"
    dtype: torch.dtype = torch.float32

    def __str__(self) -> str:
        return f"N={self.objects} C={self.channels} {self.side}->{self.size} {self.normalize} {short(self.dtype)}"

    def calls(self, device: str) -> Calls:
        acts = torch.randn(self.channels, self.side, self.side, device=device)
        weights = torch.randn(self.objects, self.channels, device=device)
        size = (self.size, self.size)
        source = ops.cam_maps(acts, weights, size, normalize=self.normalize, dtype=self.dtype)
        target = torch.empty_like(source)
        compiled = torch.compile(reference.cam_maps, dynamic=False)
        arguments = (acts[None], weights, None, None, *size, self.normalize, True, self.dtype)
        return {
            "op": lambda: ops.cam_maps(acts, weights, size, normalize=self.normalize, dtype=self.dtype),
            "reference": lambda: reference.cam_maps(*arguments),
            "compile": lambda: compiled(*arguments),
            "eager": lambda: eager_maps(acts, weights, self),
            "clone": lambda: source.clone(),
            "copy": lambda: target.copy_(source),
        }


def eager_maps(acts: Tensor, weights: Tensor, setting: CamMaps) -> Tensor:
    """What one writes without an operator: einsum, min-max or max, F.interpolate."""
    maps = torch.einsum("nc,chw->nhw", weights, acts).relu()
    if setting.normalize == "object":
        low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
        maps = (maps - low) / (high - low)
    maps = F.interpolate(maps[None], (setting.size, setting.size), mode="bilinear")[0]
    if setting.normalize == "max":
        maps = maps / maps.amax((1, 2), keepdim=True)
    return (maps * 255).round().to(torch.uint8) if setting.dtype == torch.uint8 else maps.to(setting.dtype)


class Overlay(NamedTuple):
    objects: int
    side: int  # of the maps, in cells
    size: int  # of the frame, in pixels
    boxed: bool
    blend: str = "max"

    def __str__(self) -> str:
        place = "in boxes" if self.boxed else "whole frame"
        return f"N={self.objects} {self.side}->{self.size} {place} {self.blend}"

    def calls(self, device: str) -> Calls:
        """Boxes have sides of a tenth to a third of the frame, as objects in pictures of many do."""
        generator = torch.Generator().manual_seed(0)
        frame = torch.randint(256, (self.size, self.size, 3), dtype=torch.uint8, generator=generator)
        maps = torch.rand(self.objects, self.side, self.side, generator=generator)
        sides = self.size * (0.1 + 0.23 * torch.rand(self.objects, 2, generator=generator))
        corners = torch.rand(self.objects, 2, generator=generator) * (self.size - sides)
        boxes = torch.cat([corners, corners + sides], 1).to(device) if self.boxed else None
        table = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], cv2.COLORMAP_INFERNO)
        lut = torch.from_numpy(table[:, 0, ::-1].copy()).to(device)
        picture, heats = frame.numpy(), maps.numpy()
        frame, maps = frame.to(device), maps.to(device)
        usual = {"opencv": lambda: opencv_overlay(picture, heats)}
        if device != "cpu":
            usual = {"eager": lambda: eager_overlay(frame, maps, lut)}
        options = (0.75, self.blend)
        return {
            "op": lambda: ops.overlay(frame, maps, lut, boxes=boxes, blend=self.blend),
            "reference": lambda: reference.overlay(frame[None], maps, lut, None, None, boxes, *options),
            **usual,
            "clone": lambda: frame.clone(),
        }


def opencv_overlay(picture: np.ndarray, heats: np.ndarray) -> np.ndarray:
    for heat in heats:
        heat = cv2.resize(heat, picture.shape[1::-1], interpolation=cv2.INTER_LINEAR)
        colours = cv2.applyColorMap((heat * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)
        picture = cv2.addWeighted(picture, 0.25, colours, 0.75, 0)
    return picture


def eager_overlay(frame: Tensor, maps: Tensor, lut: Tensor) -> Tensor:
    canvas = frame.float()
    for heat in F.interpolate(maps[None], frame.shape[:2], mode="bilinear")[0]:
        canvas = torch.lerp(canvas, lut[(heat * 255).long()].float(), 0.75 * heat.sqrt()[..., None])
    return canvas.round().to(torch.uint8)


class ElementwiseMaps(NamedTuple):
    objects: int
    channels: int
    side: int
    mode: str
    dtype: torch.dtype = torch.float32
    layout: torch.memory_format = torch.contiguous_format

    def __str__(self) -> str:
        layout = "" if self.layout == torch.contiguous_format else " channels last"
        return f"N={self.objects} C={self.channels} {self.side} {self.mode} {short(self.dtype)}{layout}"

    def calls(self, device: str) -> Calls:
        shape = (self.objects, self.channels, self.side, self.side)
        make = {"device": device, "dtype": self.dtype}
        acts, grads = (torch.randn(shape, **make).contiguous(memory_format=self.layout) for _ in range(2))
        return {
            "op": lambda: ops.elementwise_maps(acts, grads, self.mode),
            "reference": lambda: reference.elementwise_maps(acts, grads, None, self.mode),
            "read": lambda: (acts.sum(), grads.sum()),
        }


SETTINGS: dict[str, tuple[CamMaps | Overlay | ElementwiseMaps, ...]] = {
    "cam_maps": (
        CamMaps(100, 256, 20, 640),
        CamMaps(100, 256, 20, 640, dtype=torch.float16),
        CamMaps(100, 256, 20, 640, dtype=torch.uint8),
        CamMaps(100, 256, 20, 640, "max"),
        CamMaps(20, 256, 80, 640),
        CamMaps(20, 256, 80, 640, dtype=torch.uint8),
        CamMaps(1, 256, 20, 640),
        CamMaps(1, 256, 20, 640, dtype=torch.uint8),
    ),
    "overlay": (
        Overlay(20, 20, 640, True),
        Overlay(20, 20, 640, False),
        Overlay(20, 20, 640, True, "alpha"),
        Overlay(20, 20, 640, False, "alpha"),
        Overlay(100, 80, 1280, True),
        Overlay(1, 20, 640, False),
    ),
    "elementwise_maps": (
        *(ElementwiseMaps(20, 256, 40, mode) for mode in ops.ELEMENTWISE_MODES),
        ElementwiseMaps(20, 256, 40, "layercam", torch.float16),
        ElementwiseMaps(20, 256, 40, "layercam", layout=torch.channels_last),
        ElementwiseMaps(20, 256, 40, "xgradcam", layout=torch.channels_last),
    ),
}
RATIOS = {
    "cam_maps": (("op", "clone"), ("op", "copy")),
    "overlay": (("opencv", "op"), ("eager", "op"), ("reference", "op")),
    "elementwise_maps": (("reference", "op"), ("op", "read")),
}


def measure(calls: Calls, device: str, rounds: int, ratios: tuple[tuple[str, str], ...]) -> dict[str, Any]:
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
    rows = {}
    for name, of in (("median", statistics.median), ("best", min)):
        row = {variant: of(values) for variant, values in times.items()}
        rows[name] = row | {f"{a}/{b}": row[a] / row[b] for a, b in ratios if a in row and b in row}
    return rows


def main() -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", choices=SETTINGS, help="one operator")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(options.threads)

    results: dict[str, dict[str, Any]] = {}
    for op in [options.only] if options.only else SETTINGS:
        rows = results[op] = {}
        for setting in SETTINGS[op]:
            rows[str(setting)] = measure(setting.calls(options.device), options.device, options.rounds, RATIOS[op])
            row = rows[str(setting)]["median"]
            if len(rows) == 1:
                print(f"\n{op + ', milliseconds':44}" + "".join(f"{name:>13}" for name in row))
            print(f"{setting!s:44}" + "".join(f"{value:13.3f}" for value in row.values()), flush=True)
    if options.out:
        processor = torch.cuda.get_device_name() if options.device != "cpu" else platform.machine()
        facts = {"device": options.device, "processor": processor, "threads": options.threads}
        facts |= {"rounds": options.rounds, "torch": torch.__version__, "build": ops.build_info()}
        options.out.write_text(json.dumps(facts | {"milliseconds": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
