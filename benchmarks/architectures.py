"""Maps of every family of architectures against plain autograd, each stage by name and by preset.

    python -m benchmarks.architectures [--only PATTERN] [--again]

The reference knows nothing of detcam's layouts. The axes of an output are those that follow the input when the same
network, or one that is built for another size, runs on an input of another size and aspect; where tokens lie, from the
library's own facts (number of prefix tokens, reductions of the stages). `misplaced` lists outputs that change elsewhere
than a square of the input does: of deep random networks, or of tokens in an order of their own. Rows go to
architectures.jsonl beside the result as they come, and a row that is there is not made again.
"""

from __future__ import annotations

import argparse
import copy
import fnmatch
import gc
import json
import re
import resource
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.utils._pytree import tree_leaves, tree_map

from benchmarks.architecture_models import Case, Size, alive, cases
from detcam import Explainer
from detcam.errors import InputError
from detcam.runners.base import ModelRun, Request, layer_plan
from detcam.runners.dispatch import runner_for

RESULT = Path(__file__).parent / "results" / "architectures.json"
PRESETS = ("level", "evidence", "stem")
MOST = 8  # stages by name of a model
TOLERANCE = 1e-4  # of the map's maximum
ROUNDING = 1e-6  # of the largest sum of products' absolute values: before a norm layer, float32 cancels to dust
REDUCTIONS = (1, 2, 4, 8, 14, 16, 32, 64)  # pixels of the input for each cell
Shape = tuple[int, ...]
Shapes = dict[str, list[Shape]]  # name of a module -> shapes of the tensors that it puts out


@dataclass(frozen=True)
class Layout:
    """Where the map lies in an output: its (h, w) axes, or its grids (first token, h, w) among tokens."""

    name: str
    rows: int = 0  # the axis of h; that of w is the next
    grids: tuple[tuple[int, int, int], ...] = ()

    def map_of(self, values: Tensor) -> list[Tensor]:
        """Maps [h, w], the sum over channels, of values [1, ...]."""
        if self.grids:
            return [values[0, a : a + h * w].sum(dim=1).unflatten(0, (h, w)) for a, h, w in self.grids]
        channels = 1 if self.rows == 2 else 3
        return [values.sum(dim=channels)[0]]


class Recording:
    """While active, records the outputs of modules; with `cut` each continues as a leaf of the graph."""

    def __init__(self, module: nn.Module, names: Sequence[str] | None, cut: bool = False) -> None:
        self.outputs: dict[str, list[list[Tensor]]] = {}
        named = dict(module.named_modules())
        chosen = [name for name in named if name] if names is None else names
        self._handles = [named[name].register_forward_hook(self._hook(name, cut)) for name in chosen]

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, *reason: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _hook(self, name: str, cut: bool) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            if cut:
                output = tree_map(lambda t: t.detach().requires_grad_() if _graded(t) else t, output)
            output = tree_map(lambda t: t.clone() if _graded(t) else t, output)  # as this output only
            self.outputs.setdefault(name, []).append([t for t in tree_leaves(output) if _graded(t)])
            return tree_map(lambda t: t.clone() if _graded(t) else t, output)  # what follows may work in place

        return hook


def _graded(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.ndim in (3, 4)


class Network:
    """A model of a case for one input size, opened by an Explainer."""

    def __init__(self, case: Case, size: Size) -> None:
        self.case, self.size = case, size
        self.model = case.make(size)
        self.picture = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
        alive(self.model, torch.randn(2, 3, *size))
        self.options = case.options(self.model, size)
        try:
            self._open(torch.float64)
        except (InputError, RuntimeError):
            self._open(torch.float32)

    def _open(self, dtype: torch.dtype) -> None:
        self.model.to(dtype)
        self.explainer = Explainer(self.model, "odam", layers="level", conf=0.0, max_det=2, **self.options)
        self.adapter = self.explainer.adapter
        self.pixels = self.explainer.prepare(self.picture).tensor[None]
        with torch.no_grad():
            self.adapter.forward(self.pixels, 2)

    def explained(self, layers: Any) -> Explainer:
        """The explainer with other layers: the model is opened once."""
        explainer = copy.copy(self.explainer)
        plan_of = partial(layer_plan, self.adapter, self.adapter.module)
        request = Request(ModelRun(self.adapter, 2), "class", 256 * 2**20, None, plan_of)
        explainer.runner = runner_for(explainer.method, layers, request)
        explainer.plan = explainer.runner.plan
        return explainer

    def shapes(self, pixels: Tensor | None = None) -> Shapes:
        """The shapes of what each module puts out, of modules that run once."""
        with torch.no_grad(), Recording(self.adapter.module, None) as recording:
            self.adapter.forward(self.pixels if pixels is None else pixels, 2)
        runs = recording.outputs.items()
        return {name: [tuple(t.shape) for t in calls[0]] for name, calls in runs if len(calls) == 1}

    def elsewhere(self) -> tuple[Shapes, Size]:
        """The shapes for an input of another size and aspect: of this network, or of one that is built for it."""
        height, width = self.size
        for other in ((height + 32, width + 64), (2 * width, 2 * height), (width, height)):
            if max(other) > 320 or other == self.size:
                continue
            pixels = torch.zeros(1, 3, *other, dtype=self.pixels.dtype)
            with suppress(Exception):
                return self.shapes(pixels), other
            with suppress(Exception):
                return Network(self.case, other).shapes(), other
        return {}, self.size  # then the axes of the input's size over a reduction tell

    def prefixes(self) -> list[int]:
        """Tokens that may lie before the patches, by the library."""
        counts = {getattr(m, "num_prefix_tokens", 0) for m in self.model.modules()}
        tokens = any("cls_token" in n or "class_token" in n for n, _ in self.model.named_parameters())
        return sorted({0, *(c for c in counts if isinstance(c, int)), int(tokens)})


def layout_of(shape: Shape, other: Shape | None, sizes: tuple[Size, Size], prefixes: list[int]) -> Layout | None:
    """The layout of an output, from its shapes at two input sizes; None if it is no map."""
    if other is None:
        pairs = [
            axis for axis in range(1, len(shape) - 1) if len(shape) == 4 and _reduced(shape[axis : axis + 2], sizes[0])
        ]
        return Layout("[B, C, h, w]" if pairs[0] == 2 else "[B, h, w, C]", pairs[0]) if len(pairs) == 1 else None
    if len(shape) != len(other) or shape[0] != 1 or other[0] != 1:
        return None
    if len(shape) == 4:
        moved = [axis for axis in (1, 2, 3) if shape[axis] != other[axis]]
        adaptive = not moved and shape[2] == shape[3] and shape[1] > shape[2]
        if adaptive:
            return Layout("[B, C, h, w]", 2)  # pooled to a fixed number of cells
        steady = all(abs(a[0] * b[1] - b[0] * a[1]) <= 2 * max(b) for a, b in _pairs(shape, other, sizes, moved))
        if len(moved) != 2 or moved[1] != moved[0] + 1 or not steady:
            return None
        return Layout("[B, C, h, w]" if moved[0] == 2 else "[B, h, w, C]", moved[0])
    grids = [_grids(length, size, prefixes) for length, size in ((shape[1], sizes[0]), (other[1], sizes[1]))]
    if shape[1] == other[1] or shape[2] != other[2] or not all(grids):
        return None
    return Layout("tokens", grids=grids[0]) if len(grids[0]) == len(grids[1]) else None


def _reduced(cells: Shape, size: Size) -> bool:
    return any(cells == (-(-size[0] // r), -(-size[1] // r)) for r in REDUCTIONS)


def _pairs(shape: Any, other: Any, sizes: tuple[Size, Size], moved: list[int]) -> Iterator[tuple[Any, Any]]:
    """((cells here, cells there), (pixels here, pixels there)) of the two axes."""
    for axis, side in zip(moved, (0, 1), strict=False):
        yield (shape[axis], other[axis]), (sizes[0][side], sizes[1][side])


def _grids(tokens: int, size: Size, prefixes: list[int]) -> tuple[tuple[int, int, int], ...]:
    for first in range(len(REDUCTIONS)):
        for last in range(first + 1, len(REDUCTIONS) + 1):
            run = [r for r in REDUCTIONS if r != 14][first:last] if last > first + 1 else [REDUCTIONS[first]]
            cells = [(-(-size[0] // r), -(-size[1] // r)) for r in run]
            for prefix in prefixes if len(run) == 1 else [0]:
                if prefix + sum(h * w for h, w in cells) == tokens and cells[0][0] * cells[0][1] > 1:
                    starts = np.cumsum([prefix, *(h * w for h, w in cells)]).tolist()
                    return tuple((a, h, w) for a, (h, w) in zip(starts, cells, strict=False))
    return ()


@dataclass(frozen=True)
class Plain:
    """A map by plain autograd, gradient times activation, and the largest sum of its products' absolute values."""

    map: Tensor  # [h, w]
    products: float


class Reference:
    """The maps of objects by plain autograd at the outputs of modules, from one forward."""

    def __init__(
        self, network: Network, names: Sequence[str], cut: bool, objects: Any, layouts: dict[str, Any]
    ) -> None:
        adapter, pixels = network.adapter, network.pixels.clone().requires_grad_()
        with torch.enable_grad(), Recording(adapter.module, names, cut) as recording:
            outputs = adapter.forward(pixels * 1, 2)
            self._scalars = adapter.score(outputs, [objects], "class").flatten()
        self._outputs, self._layouts = recording.outputs, layouts

    def of(self, row: int, names: Sequence[str]) -> Plain | None:
        """The map of an object, added over modules; None if its score depends on none of them."""
        placed = [
            pair
            for name in names
            for pair in zip(self._outputs[name][0], self._layouts[name], strict=True)
            if pair[1] is not None and pair[0].requires_grad
        ]
        tensors = [t for t, _ in placed]
        gradients = torch.autograd.grad(self._scalars[row], tensors, retain_graph=True, allow_unused=True)
        parts, products = [], 0.0
        for (t, layout), g in zip(placed, gradients, strict=True):
            if g is not None:
                parts += layout.map_of(t.detach() * g)
                products += max(float(part.amax()) for part in layout.map_of((t.detach() * g).abs()))
        return Plain(fused(parts), products) if parts else None


def fused(parts: list[Tensor]) -> Tensor:
    """Maps added at the finest resolution among them."""
    finest = max((part.shape for part in parts), key=lambda shape: shape[0] * shape[1])
    return torch.stack([interpolate(p[None, None], finest, mode="bilinear")[0, 0] for p in parts]).sum(dim=0)


def misplaced(network: Network, names: list[str], layouts: dict[str, Any]) -> list[str]:
    """The modules whose output changes elsewhere than the input, for most of three squares of it."""
    height, width = network.size
    squares = [(0, width - width // 4), (height - height // 4, 0), (height // 2, width // 2)]
    batch = network.pixels.repeat(4, 1, 1, 1)
    for row, (y, x) in enumerate(squares, start=1):
        batch[row, :, y : y + height // 4, x : x + width // 4] += 3
    with torch.no_grad(), Recording(network.adapter.module, names) as recording:
        network.adapter.forward(batch, 2)
    wrong = []
    for name in names:
        layout = layouts[name][0] if len(layouts[name]) == 1 else None
        if layout is None:
            continue
        values = recording.outputs[name][0][0].split(1)
        if len(values) != len(batch):
            continue
        hits = 0
        for row, (y, x) in enumerate(squares, start=1):
            changed = layout.map_of((values[row] - values[0]).square())[0]
            h, w = changed.shape
            at = divmod(int(changed.argmax()), w)
            centre = ((y + height / 8) * h / height - 0.5, (x + width / 8) * w / width - 0.5)
            hits += all(abs(a - c) <= 1 + n / 8 for a, c, n in zip(at, centre, (h, w), strict=True))
        if hits < 2:
            wrong.append(name)
    return wrong


def stages_of(network: Network, shapes: Shapes) -> list[str]:
    """Names to try: the stages that the library lists, those of the presets, and of each shape the outermost module."""
    listed = [info["module"] for info in getattr(network.model, "feature_info", []) if isinstance(info, dict)]
    kinds: dict[Any, str] = {}
    for name in sorted(shapes, key=lambda name: name.count(".")):
        if shapes[name]:
            kinds.setdefault(tuple(shapes[name]), name)
    chosen = dict.fromkeys(name for name in (*listed, *kinds.values()) if shapes.get(name))
    return list(chosen)[:MOST]


def judge(network: Network, layers: Any, layouts: dict[str, Any], shared: Reference, objects: Any) -> tuple[str, str]:
    """("exact" | "refused" | "refused, but a map" | "wrong" | "no reference", what is said) of a stage."""
    names = [] if layers in PRESETS else [layers]
    try:
        explainer = network.explained(layers if layers in PRESETS else [layers])
        names = list(explainer.plan.names)
        explanation = explainer(network.picture)
    except InputError as error:
        known = names and all(any(layout is not None for layout in layouts.get(name, [None])) for name in names)
        unknown = "not known to be a map" in str(error)  # others: the score depends on a part of it at most
        return ("refused, but a map" if known and unknown else "refused"), str(error)
    except Exception as error:
        return "wrong", f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    if any(name not in layouts for name in names):
        return "no reference", "runs several times"
    if any(all(layout is None for layout in layouts[name]) for name in names):
        return "wrong", "a map where none is"
    alone = explainer.plan.cut_all and len(names) > 1
    plain_maps = Reference(network, names, True, objects, layouts) if alone else shared
    for i, (ours, level) in enumerate(zip(explanation.maps, objects.level.tolist(), strict=True)):
        plain = plain_maps.of(i, [names[level]] if explainer.plan.fuse == "level" else names)
        if plain is None or not plain.map.any():
            if ours.any():
                return "wrong", "the gradient is zero"
            continue
        if ours.shape != plain.map.shape:
            return "wrong", f"{list(ours.shape)} instead of {list(plain.map.shape)}"
        error = float((ours.double() - plain.map.double()).abs().amax())
        if not error <= TOLERANCE * float(plain.map.abs().amax()) + ROUNDING * plain.products:
            return "wrong", f"{error / float(plain.map.abs().amax()):.0e} of the maximum"
    return "exact", ""


def opened(case: Case) -> Network:
    """The network at the first size that it takes; raises the last complaint."""
    complaint: Exception = RuntimeError("no size")
    for size in case.sizes:
        try:
            return Network(case, size)
        except Exception as error:
            complaint = error
    raise complaint


def row_of(case: Case) -> dict[str, Any]:
    """What a case gives: for each outcome the stages, and the sentences of refusals."""
    start = time.perf_counter()
    row: dict[str, Any] = {"key": case.key, "library": case.library, "family": case.family, "name": case.name}
    try:
        network = opened(case)
    except Exception as error:
        return {**row, "left_out": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
    shapes = network.shapes()
    there, other = network.elsewhere()
    sizes = (network.size, other)
    prefixes = network.prefixes()
    scrambled = any(hasattr(m, "reroll") for m in network.model.modules())  # Hiera: tokens of a window lie together
    layouts: dict[str, Any] = {}
    for name, parts in shapes.items():
        others: list[Any] = there.get(name, []) if there else [None] * len(parts)
        known = len(others) == len(parts)
        made = [layout_of(a, b, sizes, prefixes) for a, b in zip(parts, others, strict=False)] if known else [None]
        layouts[name] = [None if scrambled and m is not None and m.grids else m for m in made]
    stages = stages_of(network, shapes)
    row |= {
        "model": getattr(network.model, "default_cfg", {}).get("architecture") or case.name,
        "size": list(network.size),
        "dtype": str(network.pixels.dtype).removeprefix("torch."),
        "layouts": sorted({m.name for name in stages for m in layouts[name] if m is not None}),
        "misplaced": misplaced(network, stages, layouts),
        "outcomes": {},
    }
    objects = network.explained("stem")(network.picture).objects  # of Hiera, "level" is refused
    if not len(objects):
        return {**row, "left_out": "no object"}
    plans = []
    for preset in PRESETS:
        with suppress(InputError):
            plans += network.explained(preset).plan.names
    names = [name for name in dict.fromkeys([*stages, *plans]) if name in shapes]
    shared = Reference(network, names, False, objects, layouts)
    for layers in (*PRESETS, *stages):
        outcome, said = judge(network, layers, layouts, shared, objects)
        sentence = re.sub("layer '[^']*'", "layer '...'", said)
        row["outcomes"].setdefault(outcome, {}).setdefault(sentence, []).append(layers)
    row["seconds"] = round(time.perf_counter() - start, 1)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="*", help="pattern of library/family/model")
    parser.add_argument("--again", action="store_true", help="make rows of the pattern anew")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    log = args.out.with_suffix(".jsonl")
    rows = {row["key"]: row for row in map(json.loads, log.read_text().splitlines() if log.exists() else [])}
    for case in cases():
        if not fnmatch.fnmatch(case.key, args.only) or (case.key in rows and not args.again):
            continue
        rows[case.key] = row = row_of(case)
        with log.open("a") as file:
            file.write(json.dumps(row) + "\n")
        outcomes = {name: sum(map(len, said.values())) for name, said in row.get("outcomes", {}).items()}
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(case.key, row.get("left_out", outcomes), f"{peak:.1f} GiB", flush=True)
        write(args.out, list(rows.values()))
        gc.collect()


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """The summary, sorted by the order of the cases."""
    sys.path.insert(0, str(Path(__file__).parent))
    from objects import surroundings

    report = {
        "benchmark": "architectures",
        "command": f"python -m benchmarks.architectures {' '.join(sys.argv[1:])}".strip(),
        **surroundings(torch.device("cpu")),
        "results": rows,
    }
    path.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
