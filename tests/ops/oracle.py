"""What the tests of the operators share: an oracle independent of the package, inputs, tolerances."""

import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support import few
from torch import Tensor

from detcam import ops

# Largest difference from the float64 oracle, absolute and relative alike, for each output type. float32 is
# set by the position of a pixel, which float32 knows to about 1e-5 of a cell; the smaller types by their own
# rounding.
TOLERANCE = {
    torch.float64: 1e-10,
    torch.float32: 5e-5,
    torch.float16: 1e-3,
    torch.bfloat16: 8e-3,
    torch.uint8: 1.0,  # one level: a value beside a half may round to either side
}
INPUT_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
LAYOUTS = ("contiguous", "channels-last", "strided", "expanded")
NORMALIZATIONS = tuple(ops.NORMALIZATIONS)
ACCEPTED = [  # uint8 holds normalised maps only
    pytest.param(normalize, dtype, id=f"{normalize}-{dtype}")
    for normalize in NORMALIZATIONS
    for dtype in TOLERANCE
    if (normalize, dtype) != ("none", torch.uint8)
]


TRACED = few(NORMALIZATIONS, "object")  # opcheck and torch.compile take seconds


def require_device(device: str) -> str:
    """Skip where there is no GPU, unless the run was promised one."""
    if device == "cuda" and not torch.cuda.is_available():
        if os.environ.get("FAIL_WITHOUT_CUDA") == "1":
            pytest.fail("FAIL_WITHOUT_CUDA=1, but torch finds no CUDA device")
        pytest.skip("no CUDA device")
    return device


def assert_same_bits(run: Callable[[], Tensor]) -> None:
    """Whatever the number of threads."""
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(run())
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def run_without_kernels(op: str, arguments: dict[str, Any], folder: Path) -> Tensor:
    """What an operator gives in a process that loads no binary, which must notice nothing but its absence."""
    torch.save(arguments, folder / "arguments.pt")
    script = (
        "import sys, torch; from detcam import ops\n"
        "arguments = torch.load(sys.argv[1] + '/arguments.pt')\n"
        "torch.save(getattr(ops, sys.argv[2])(**arguments), sys.argv[1] + '/result.pt')\n"
        "assert not ops.is_compiled('cpu') and not ops.is_compiled('cuda')\n"
        "print(ops.build_info()['missing']['cpu'])"
    )
    environment = os.environ | {"DETCAM_DISABLE_COMPILED": "1"}
    command = [sys.executable, "-c", script, str(folder), op]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "disabled by the environment variable DETCAM_DISABLE_COMPILED"
    assert done.stderr == ""
    return torch.load(folder / "result.pt")


@dataclass
class Case:
    """Arguments of one call, and what they were drawn with."""

    acts: Tensor  # [B, C, h, w]
    weights: Tensor  # [N, C]
    size: tuple[int, int]
    index: Tensor  # [N]

    def to(self, device: str) -> "Case":
        return Case(self.acts.to(device), self.weights.to(device), self.size, self.index.to(device))


def random_case(seed: int, dtype: torch.dtype = torch.float32, layout: str = "contiguous", **fixed: int) -> Case:
    """Random shapes and values; channel 0 is a slope of weight 1, so that no range is narrow."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    bounds = {"images": (1, 3), "channels": (2, 40), "rows": (2, 23), "columns": (2, 23), "objects": (1, 11)}
    images, channels, rows, columns, objects = (fixed.get(k, draw.randint(*v)) for k, v in bounds.items())
    acts = torch.randn(images, channels, rows, columns)
    weights = torch.randn(objects, channels) / channels**0.5
    acts[:, 0] = torch.linspace(-2, 6, rows * columns).view(rows, columns)
    weights[:, 0] = 1
    size = (draw.randint(1, 90), draw.randint(1, 90))
    index = torch.randint(images, (objects,))
    return Case(*_lay_out(acts.to(dtype), weights.to(dtype), layout), size, index)


def _lay_out(acts: Tensor, weights: Tensor, layout: str) -> tuple[Tensor, Tensor]:
    if layout == "channels-last":
        return acts.contiguous(memory_format=torch.channels_last), weights.T.contiguous().T
    if layout == "strided":
        wide = acts.new_zeros(*acts.shape[:2], 2 * acts.shape[2] + 1, 3 * acts.shape[3] + 2)
        wide[..., 1::2, 2::3] = acts
        return wide[..., 1::2, 2::3], torch.stack([weights, weights], -1)[..., 1]
    if layout == "expanded":
        return acts[:1].expand(acts.shape[0], -1, -1, -1), weights[:1].expand(weights.shape[0], -1)
    return acts, weights


def run(case: Case, **options: Any) -> Tensor:
    """What the operator makes of a case."""
    return ops.cam_maps(case.acts, case.weights, case.size, case.index, **options)


def expected_maps(
    case: Case, normalize: str, relu: bool = True, window: list[tuple[float, ...]] | None = None
) -> Tensor:  # [N, H, W] float64
    """The definition, in float64, one object at a time."""
    acts, weights = case.acts.cpu().double(), case.weights.cpu().double()
    owners = case.index.tolist()
    maps = [torch.einsum("c,chw->hw", weight, acts[i]) for weight, i in zip(weights, owners, strict=True)]
    maps = [torch.where(m.isfinite(), m, torch.zeros_like(m)) for m in maps]
    maps = [m.clamp(min=0) for m in maps] if relu else maps
    if normalize == "object":
        maps = [_stretch(m, m.min(), m.max()) for m in maps]
    if normalize == "image":
        ranges = {i: torch.stack([m for m, j in zip(maps, owners, strict=True) if i == j]) for i in owners}
        maps = [_stretch(m, ranges[i].min(), ranges[i].max()) for m, i in zip(maps, owners, strict=True)]
    if window is None:
        maps = [F.interpolate(m[None, None], case.size, mode="bilinear")[0, 0] for m in maps]
    else:
        maps = [_sample(m, case.size, box) for m, box in zip(maps, window, strict=True)]
    if normalize == "object-after":
        maps = [_stretch(m, m.min(), m.max()) for m in maps]
    if normalize == "max":
        maps = [m / m.max() if m.max() > 0 else torch.zeros_like(m) for m in maps]
    return torch.stack(maps)


def _stretch(map_: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return (map_ - low) / (high - low) if high > low else torch.zeros_like(map_)


def _sample(map_: Tensor, size: tuple[int, int], box: tuple[float, ...]) -> Tensor:
    """Read `map_` at the pixels' places in the window; grid_sample counts from -1 to 1 over the whole map."""
    (h, w), (left, top, right, bottom) = map_.shape, box
    y = (torch.arange(size[0]).double() + 0.5) / size[0] * (bottom - top) + top
    x = (torch.arange(size[1]).double() + 0.5) / size[1] * (right - left) + left
    grid = torch.stack(torch.broadcast_tensors(2 * x / w - 1, (2 * y / h - 1)[:, None]), -1)
    return F.grid_sample(map_[None, None], grid[None], padding_mode="border", align_corners=False)[0, 0]


def assert_close(maps: Tensor, expected: Tensor) -> None:
    """Compare with the float64 oracle at the tolerance of the output's type."""
    if maps.dtype == torch.uint8:
        expected = (expected * 255).round()
    tolerance = TOLERANCE[maps.dtype]
    relative = 0.0 if maps.dtype == torch.uint8 else tolerance
    torch.testing.assert_close(maps.cpu().double(), expected, atol=tolerance, rtol=relative)
