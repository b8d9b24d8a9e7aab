"""Random calls of every operator, right and wrong, until the count is reached: `python random_calls.py SEED [FIRST] COUNT`.

Run in a process of its own: each case is named before it runs, so that a crash tells which it was. Values of right
calls are small whole numbers, whose sums every float type of the accumulators holds exactly: then the kernel and the
reference differ by the rounding of the resize alone, whatever the order of their sums.
"""

import faulthandler
import math
import random
import re
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from random_arguments import (
    OUTPUTS,
    Arguments,
    cam_maps_arguments,
    elementwise_arguments,
    laid_out,
    overlay_arguments,
    region_arguments,
)
from torch import Tensor

from detcam import ops
from detcam.ops import reference

# ---- what right calls must give ----------


def windows_of(given: Any, count: int) -> Tensor | None:
    return None if given is None else torch.as_tensor(given, dtype=torch.float32).expand(count, 4)


def check_cam_maps(call: Arguments, result: Tensor) -> None:
    common = torch.promote_types(call["acts"].dtype, call["weights"].dtype)
    weights, count = call["weights"].to(common), len(call["weights"])
    acts = call["acts"].to(common)
    acts = acts[None] if acts.ndim == 3 else acts  # a single image needs no axis for images
    options = (call["normalize"], call["relu"])
    window = windows_of(call["window"], count)
    expected = reference.cam_maps(acts, weights, call["index"], window, *call["size"], *options, call["dtype"])
    assert result.shape == (count, *call["size"])
    assert result.dtype == call["dtype"]
    assert bool(result.isfinite().all())
    if call["normalize"] != "none" and (call["relu"] or call["normalize"] != "max"):
        assert not count or 0 <= float(result.min()) <= float(result.max()) <= (
            255 if result.dtype == torch.uint8 else 1
        )
    if window is not None and call["normalize"] in ("object-after", "max"):
        return  # the range of what is seen may be as narrow as rounding
    coarse = 1.0 if result.dtype == torch.uint8 else {torch.bfloat16: 8e-3, torch.float16: 1e-3}.get(result.dtype, 1e-4)
    span = max(float(expected.double().abs().max()) if count else 0, 1.0)
    wide = torch.ones(count, dtype=torch.bool)
    if call["normalize"] == "object-after" and count and expected.numel():
        # Rows of a coarse map may average to a constant, whose rounding is all that is left to be normalised.
        plain = reference.cam_maps(
            acts, weights, call["index"], window, *call["size"], "none", call["relu"], torch.float32
        )
        plain = plain.flatten(1).double()
        wide = plain.amax(dim=1) - plain.amin(dim=1) > 1e-3 * plain.abs().amax(dim=1)
    assert_near(result[wide], expected[wide], coarse if result.dtype == torch.uint8 else coarse * span)
    if call["dtype"] != torch.uint8 or call["normalize"] != "none":
        out = torch.empty_like(result)
        assert ops.cam_maps(**call, out=out) is out
        assert torch.equal(out, result)


def check_elementwise_maps(call: Arguments, result: Tensor) -> None:
    mode = "gradient-times-activation" if call["mode"] == "hirescam" else call["mode"]
    common = torch.promote_types(call["acts"].dtype, call["grads"].dtype)
    expected = reference.elementwise_maps(call["acts"].to(common), call["grads"].to(common), call["index"], mode)
    assert result.shape == expected.shape
    assert result.dtype == expected.dtype
    finite = expected[expected.isfinite()].double()
    span = max(float(finite.abs().max()) if finite.numel() else 0, 1.0)
    assert_near(result, expected, 1e-4 * span)


def check_overlay(call: Arguments, result: Tensor) -> None:
    frame = call["frame"]
    assert result.shape == frame.shape
    assert result.dtype == torch.uint8
    window = windows_of(call["window"], len(call["maps"]))
    boxes = None if call["boxes"] is None else call["boxes"].float()
    maps, index = call["maps"].float(), call["index"]
    frames = frame.reshape(-1, *frame.shape[-3:])  # a single one has no axis for images
    expected = reference.overlay(frames, maps, call["lut"], index, window, boxes, call["opacity"], call["blend"])
    assert_near(result.view_as(expected), expected, 2.0 + len(maps) * (call["blend"] == "alpha"))


def check_region_windows(call: Arguments, result: Tensor) -> None:
    (height, width), (left, top, right, bottom) = call["size"], call["window"]
    places = call["boxes"].double() / torch.tensor([width, height, width, height], dtype=torch.float64)
    span = torch.tensor([right - left, bottom - top] * 2, dtype=torch.float64)
    assert_near(result, places * span + torch.tensor([left, top] * 2), 1e-3)


def assert_near(result: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(result.double(), expected.double(), atol=tolerance, rtol=1e-4, equal_nan=True)


# ---- wrong arguments ----------

HUGE = 2**31


def wrong(name: str, value: Any, draw: random.Random) -> Any:
    """Something else in place of an argument: of another type, shape, dtype, device or size."""
    if isinstance(value, Tensor) and draw.random() < 0.6:
        return wrong_tensor(value, draw)
    if name == "size" and draw.random() < 0.7:
        bad = draw.choice((0, -1, -HUGE, HUGE, HUGE - 1, 2**24, 2**63, 2**70, 4.0, math.nan, math.inf, "8", None, True))
        return draw.choice([(bad, 4), (4, bad), (bad, bad), (4,), (4, 4, 4), 4, [4, bad]])
    if name == "window" and draw.random() < 0.7:
        bad = draw.choice((math.nan, math.inf, -1e39, 10**400, "1", None, -HUGE))
        return draw.choice([(bad, 0, 4, 4), (0, 0, 4, bad), (0, 0, 4), (4, 4, 0, 0), [0, 0, bad, 4], (0,) * 5])
    choices = [
        None, [], [1, 2], (), {}, "text", "", b"x", 0, -1, 1.5, -HUGE, HUGE, 2**63, 10**400, math.nan, math.inf, -0.5,
        object(), np.zeros((2, 3)), np.float32(2), np.int64(3), True, torch.float32, torch.int32, torch.zeros(()), type,
        torch.device("meta"), slice(None), Ellipsis, range(4), "x" * 100_000,
    ]  # fmt: skip
    return draw.choice(choices)


def wrong_tensor(value: Tensor, draw: random.Random) -> Tensor:
    if value.is_meta or value.layout != torch.strided or value.numel() > 2**22:
        return value  # it is wrong already
    kind = draw.randrange(10)
    if kind == 0:
        return value.to("meta")
    if kind == 1:
        return value.to(draw.choice((torch.int32, torch.int64, torch.bool, torch.complex64, torch.float64, torch.int8)))
    if kind == 2:
        return value[None]
    if kind == 3 and value.ndim:
        return value[..., :0]
    if kind == 4 and value.ndim:
        return torch.cat([value, value[:1]]) if len(value) else value.new_zeros((3, *value.shape[1:]))
    if kind == 5 and value.ndim:
        return value.narrow(draw.randrange(value.ndim), 0, 1) if value.numel() else value
    if kind == 6:
        return value.to_sparse()
    if kind == 7 and value.dtype == torch.int64:
        return value + draw.choice((-1, 1, 3, HUGE, -HUGE, 2**62))
    if kind == 8:
        large = draw.randrange(value.ndim) if value.ndim and value.dtype != torch.int64 else -1
        sizes = (2**36,) if large == 0 else (2**24, HUGE - 1, HUGE)  # as rows that no machine holds, or as sides
        shape = [draw.choice(sizes) if dim == large else max(side, 1) for dim, side in enumerate(value.shape)]
        return value.new_zeros(()).expand(shape)  # one number in memory, however many it says there are
    return value.new_zeros([draw.randint(0, 4) for _ in range(draw.randint(0, 5))])


SAYS = re.compile(r"^\w+: .*(expected .*got|holds .*got|carries no)", re.S)
# Torch 2.10 hides the reason behind its stable API.
FULL = re.compile(
    r"memory|allocate|bad_alloc|overflow|must be in \[1, 2\^24\)|too large|negative dimension|API call failed", re.I
)


def named(error: Exception, says: re.Pattern[str]) -> str:
    """The type of an error whose message is as it should be."""
    line = str(error)
    assert says.search(line), f"{type(error).__name__}: {line[:300]}"
    assert len(line) < 600 or isinstance(error, RuntimeError), "an error as long as the argument"
    return type(error).__name__


def run_wrong(op: Callable[..., Any], call: Arguments, check: Callable[[Arguments, Tensor], None]) -> str:
    """An error that says what was expected and given, or a right answer after all."""
    try:
        result = op(**call)
    except (TypeError, ValueError, IndexError) as error:
        return named(error, SAYS)
    except (RuntimeError, MemoryError) as error:
        named(error, FULL)
        return "memory"
    given = [value for value in call.values() if isinstance(value, Tensor)]
    if result.is_meta or max(one.numel() for one in (result, *given)) > 2**22:
        return "right after all"  # too much for the reference, even where a stride of 0 holds it in a few bytes
    assert not result.is_floating_point() or op is ops.elementwise_maps or bool(result.isfinite().all())
    check(call, result)
    return "right after all"


RAW: dict[str, tuple[Callable[[], Any], Callable[[Arguments], list[Any]]]] = {
    "cam_maps": (
        lambda: torch.ops.detcam.cam_maps.default,
        lambda c: [c["acts"], c["weights"], c["index"], c["window"], *c["size"], c["normalize"], c["relu"], c["dtype"]],
    ),
    "elementwise_maps": (
        lambda: torch.ops.detcam.elementwise_maps.default,
        lambda c: [c["acts"], c["grads"], c["index"], c["mode"]],
    ),
    "overlay": (
        lambda: torch.ops.detcam.overlay.default,
        lambda c: [
            c["frame"], c["maps"].float(), c["lut"], c["index"], c["window"], c["boxes"], c["opacity"], c["blend"]
        ],
    ),
}  # fmt: skip


def run_raw(name: str, call: Arguments, draw: random.Random) -> str:
    """The operator without the Python checks: whatever it answers, no read outside memory; a sanitizer looks on."""
    op, listed = RAW[name]
    call = dict(call, window=windows_of(call["window"], len(call["weights" if name == "cam_maps" else "maps"]))) if (
        "window" in call
    ) else call  # fmt: skip
    values = listed(call)
    for _ in range(draw.randint(0, 2)):
        place = draw.randrange(len(values))
        values[place] = wrong("", values[place], draw)
    if any(isinstance(v, Tensor) and v.numel() > 2**20 for v in values):
        return "raw too large"
    if any(isinstance(v, int) and abs(v) > 2**16 for v in values) and draw.random() < 0.8:
        return "raw too large"  # allocations that may succeed: few suffice
    try:
        if name == "cam_maps" and draw.random() < 0.4:
            out = torch.zeros(
                [draw.randint(0, 6) for _ in range(draw.choice((3, 3, 3, 2)))], dtype=draw.choice(OUTPUTS)
            )
            torch.ops.detcam.cam_maps.out(*values[:4], *values[6:8], out=laid_out(out, draw))
        else:
            op()(*values)
    except Exception as error:  # of any kind, as torch's own dispatcher raises them
        named(error, re.compile("."))
        return "raw refused"
    return "raw answered"


OPS: dict[str, tuple[Callable[..., Any], Callable[[random.Random], Arguments], Callable[[Arguments, Tensor], None]]] = {
    "cam_maps": (ops.cam_maps, cam_maps_arguments, check_cam_maps),
    "elementwise_maps": (ops.elementwise_maps, elementwise_arguments, check_elementwise_maps),
    "overlay": (ops.overlay, overlay_arguments, check_overlay),
    "region_windows": (ops.region_windows, region_arguments, check_region_windows),
}


def run_case(seed: int, case: int) -> str:
    """One call, right or wrong, or past the checks; what came of it."""
    draw = random.Random(f"{seed}-{case}")
    torch.manual_seed(draw.randrange(2**31))
    name = draw.choice(list(OPS))
    op, make, check = OPS[name]
    call = make(draw)
    kind = draw.choice(("right", "wrong", "raw"))
    if kind == "raw" and name in RAW:
        return f"{name}: {run_raw(name, call, draw)}"
    if kind == "wrong":
        for _ in range(draw.randint(1, 2)):
            argument = draw.choice(list(call))
            call[argument] = wrong(argument, call[argument], draw)
        return f"{name}: {run_wrong(op, call, check)}"
    check(call, op(**call))
    return f"{name}: right"


def main(seed: int, first: int, count: int) -> None:
    faulthandler.enable()
    torch.set_num_threads(1)
    outcomes: Counter[str] = Counter()
    for case in range(first, first + count):
        print(f"seed {seed} case {case}", end="\r", flush=True)
        try:
            outcomes[run_case(seed, case)] += 1
        except Exception as error:
            raise SystemExit(f"\nseed {seed} case {case}: {type(error).__name__}: {error}") from error
    print(f"\n{sum(outcomes.values())} calls of seed {seed}: {dict(sorted(outcomes.items()))}")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 3 else 0, int(sys.argv[-1]))
