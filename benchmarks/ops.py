"""Time `detcam.ops` against their references and usual code, taking turns in the same run.

python benchmarks/ops.py [--device cuda] [--threads 2] [--rounds 15] [--only overlay] [--out FILE]

Every figure is the median of `--rounds` calls in milliseconds (the JSON has the best too); the variants take
turns, so that a busy moment of the machine falls on all of them. A column "a/b" is how many times longer `a` took.
"op" is the operator, "reference" what runs without kernels, "compile" the reference under torch.compile. "GB/s" counts
the bytes that must be read and written once.

cam_maps          "out" writes into memory that exists already, as "copy" does; "op" and "clone" allocate theirs;
                  "eager" is what one writes without an operator
regions           512 x 512 pixels around each of 100 objects in a picture of 3840 x 2160, beside all pixels
overlay           "opencv" is resize, applyColorMap and addWeighted for each object, over the whole frame as one
                  writes it; it runs on the CPU only, and "eager" in its place on a GPU
elementwise_maps  "read" only sums acts and grads, each on its own: what reading them costs
"""

import argparse
import datetime
import json
import platform
import re
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

    def traffic(self) -> dict[str, int]:
        """Bytes that must be read and written."""
        maps = self.objects * self.size**2 * self.dtype.itemsize
        inputs = 4 * self.channels * (self.side**2 + self.objects)
        return {"op": inputs + maps, "out": inputs + maps, "copy": 2 * maps}

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
            "out": lambda: ops.cam_maps(acts, weights, size, normalize=self.normalize, dtype=self.dtype, out=target),
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


class Regions(NamedTuple):
    objects: int
    channels: int
    cells: tuple[int, int]
    size: tuple[int, int]  # of the whole
    part: int  # side of a region

    def __str__(self) -> str:
        height, width = self.size
        return f"N={self.objects} C={self.channels} {self.part}x{self.part} of {width}x{height} float32"

    def calls(self, device: str) -> Calls:
        height, width = self.cells
        acts = torch.randn(self.channels, height, width, device=device)
        weights = torch.randn(self.objects, self.channels, device=device)
        corners = (torch.rand(self.objects, 2) * (torch.tensor(self.size[::-1]) - self.part)).round()
        boxes = torch.cat([corners, corners + self.part], 1).to(device)
        size, full = (self.part, self.part), (0.0, 0.0, float(width), float(height))
        return {
            "op": lambda: ops.cam_maps(acts, weights, size, window=ops.region_windows(boxes, self.size, full)),
            "whole": lambda: ops.cam_maps(acts, weights, self.size),
        }


class Overlay(NamedTuple):
    objects: int
    side: int  # of the maps, in cells
    size: int  # of the frame, in pixels
    boxed: bool
    blend: str = "max"
    sparse: bool = False  # heat in a tenth of the cells, as ReLU and the receptive field leave it

    def __str__(self) -> str:
        place = "in boxes" if self.boxed else "whole frame"
        place += ", sparse" if self.sparse else ""
        return f"N={self.objects} {self.side}->{self.size} {place} {self.blend}"

    def calls(self, device: str) -> Calls:
        """Boxes have sides of a tenth to a third of the frame, as objects in pictures of many do."""
        generator = torch.Generator().manual_seed(0)
        frame = torch.randint(256, (self.size, self.size, 3), dtype=torch.uint8, generator=generator)
        maps = torch.rand(self.objects, self.side, self.side, generator=generator)
        if self.sparse:
            part = round(self.side * 0.1**0.5)
            warm = torch.zeros_like(maps)
            for i, (y, x) in enumerate(torch.randint(self.side - part + 1, (self.objects, 2), generator=generator)):
                warm[i, y : y + part, x : x + part] = 1
            maps *= warm
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
        arguments = (frame[None], maps, lut, None, None, boxes, 0.75, self.blend)
        compiled = torch.compile(reference.overlay, dynamic=False)
        return {
            "op": lambda: ops.overlay(frame, maps, lut, boxes=boxes, blend=self.blend),
            "reference": lambda: reference.overlay(*arguments),
            "compile": lambda: compiled(*arguments),
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
        compiled = torch.compile(reference.elementwise_maps, dynamic=False)
        return {
            "op": lambda: ops.elementwise_maps(acts, grads, self.mode),
            "reference": lambda: reference.elementwise_maps(acts, grads, None, self.mode),
            "compile": lambda: compiled(acts, grads, None, self.mode),
            "read": lambda: (acts.sum(), grads.sum()),
        }


SETTINGS: dict[str, tuple[CamMaps | Regions | Overlay | ElementwiseMaps, ...]] = {
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
    "regions": (Regions(100, 256, (68, 120), (2160, 3840), 512),),
    "overlay": (
        Overlay(20, 20, 640, True),
        Overlay(20, 20, 640, False),
        Overlay(20, 20, 640, True, "alpha"),
        Overlay(20, 20, 640, False, "alpha"),
        Overlay(20, 20, 640, False, "max", sparse=True),
        Overlay(20, 20, 640, False, "alpha", sparse=True),
        Overlay(100, 80, 1280, True),
        Overlay(1, 20, 640, False),
    ),
    "elementwise_maps": (
        *(ElementwiseMaps(20, 256, 40, mode) for mode in ops.ELEMENTWISE_MODES),
        ElementwiseMaps(20, 256, 40, "layercam", torch.float16),
        ElementwiseMaps(20, 256, 40, "layercam", layout=torch.channels_last),
        *(ElementwiseMaps(20, 256, 40, mode, layout=torch.channels_last) for mode in list(ops.ELEMENTWISE_MODES)[2:]),
    ),
}
RATIOS = {
    "cam_maps": (("op", "copy"), ("out", "copy"), ("reference", "op"), ("compile", "op")),
    "regions": (("whole", "op"),),
    "overlay": (("opencv", "op"), ("eager", "op"), ("reference", "op"), ("compile", "op")),
    "elementwise_maps": (("reference", "op"), ("compile", "op"), ("op", "read")),
}


def measure(setting: Any, device: str, rounds: int, ratios: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    calls = setting.calls(device)
    traffic = setting.traffic() if hasattr(setting, "traffic") else {}
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
        rows[name] |= {f"{variant} GB/s": count / row[variant] / 1e6 for variant, count in traffic.items()}
    return rows


def kernel_resources() -> dict[str, str]:
    """Registers, shared memory and spills of every CUDA kernel as ptxas reports them for this GPU."""
    major, minor = torch.cuda.get_device_capability()
    log = (Path(ops.__file__).parent / "_cuda_ptxas.log").read_text()
    entries = re.findall(
        rf"function '(\w+)' for 'sm_{major}{minor}'.*\n(?:.*\n)*? +(.* spill loads)\n.* : (Used .*)", log
    )
    return {kernel: f"{used}, {spilled}" for kernel, spilled, used in entries}


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
            rows[str(setting)] = measure(setting, options.device, options.rounds, RATIOS[op])
            row = rows[str(setting)]["median"]
            if len(rows) == 1:
                print(f"\n{op + ', milliseconds':52}" + "".join(f"{name:>13}" for name in row))
            print(f"{setting!s:52}" + "".join(f"{value:13.3f}" for value in row.values()), flush=True)
    if options.out:
        processor = torch.cuda.get_device_name() if options.device != "cpu" else platform.machine()
        facts = {"device": options.device, "processor": processor, "threads": options.threads}
        facts |= {"date": datetime.date.today().isoformat(), "rounds": options.rounds}
        facts |= {"torch": torch.__version__, "build": ops.build_info()}
        if options.device != "cpu":
            facts["kernels"] = kernel_resources()
        options.out.write_text(json.dumps(facts | {"milliseconds": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
