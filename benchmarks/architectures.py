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
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.architecture_models import Case, Size, alive, cases
from benchmarks.architecture_reference import Recording, Reference, Shape, layout_of
from detcam import Explainer
from detcam.errors import InputError
from detcam.runners.base import ModelRun, Request, layer_plan
from detcam.runners.dispatch import runner_for

RESULT = Path(__file__).parent / "results" / "architectures.json"
PRESETS = ("level", "evidence", "stem")
MOST = 8  # stages by name of a model
TOLERANCE = 1e-4  # of the map's maximum
ROUNDING = 1e-6  # of the largest sum of products' absolute values: before a norm layer, float32 cancels to dust
Shapes = dict[str, list[Shape]]  # name of a module -> shapes of the tensors that it puts out


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
