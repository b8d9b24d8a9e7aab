"""The judge's table on labelled photographs, with contenders that are no method of detcam's own beside them.

Ultralytics' LayerCAM, as its `predict(visualize=True)` makes it, but one map per object. The level map, blurred: does
a fused map owe its figures to the blur alone? D-RISE on the first pictures only (--drise), because it is dear.

Rows go to --rows, one file a picture; run the same command again to go on after a stop. The summary goes to --out.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.nn.functional import conv2d, interpolate, pad

from detcam import Explainer, Explanation
from detcam.engine import Capture
from detcam.evaluate.contenders import Contender, contenders
from detcam.evaluate.faithfulness import STEPS
from detcam.evaluate.labels import read_labels
from detcam.evaluate.plots import draw
from detcam.evaluate.report import Results, collect, markdown, summarise
from detcam.evaluate.runner import Judge, Protocol, pictures
from detcam.evaluate.store import Store
from detcam.methods.perturbation import DRISE
from detcam.models import load_model

REPOSITORY = Path(__file__).parents[1]
OUT = REPOSITORY / "benchmarks" / "results" / "evaluate_coco64.json"
BLUR = 1.5  # deviation in cells of the object's level, as METHODS["fused"] has it
CANDIDATES = ("fused", "odam @ evidence", "odam @ level")
RIVALS = ("odam @ level", "odam @ evidence", "ultralytics layercam", "drise", "level blurred", "gaussian")
HEADLINES = (
    "pointing_mask", "energy_in_mask", "odi", "insertion_blur", "deletion_blur", "minimal_subset_blur", "randomised",
    "forwards",
)  # fmt: skip
DECIDING = ("insertion_blur", "deletion_blur", "minimal_subset_blur", "energy_in_mask", "odi")
JUDGED = ("odam", "layercam", "gradcam", "fused")


class LibraryLayerCAM:
    """Ultralytics' own: ReLU(sum_k ReLU(g_k) A_k) at every head input, each over its maximum, the largest of them."""

    def __init__(self, model: Any, **options: Any) -> None:
        self._base = Explainer(model, "box", **options)
        self._names = self._base.adapter.layers("level").names

    def __call__(self, image: Any) -> Explanation:
        found = self._base(image)
        adapter = self._base.adapter
        capture = Capture({name: adapter.module.get_submodule(name) for name in self._names}, cut_all=False)
        with torch.enable_grad(), capture:
            outputs = adapter.forward(adapter.prepare(found.image)[0][None], self._base.max_det)
            scores = adapter.score(outputs, [found.objects], "class")
        tensors = [layer.tensor for layer in capture.captured]
        return replace(found, maps=[self._map(score, tensors, found.geometry.network) for score in scores])

    def _map(self, score: Tensor, tensors: list[Tensor], size: tuple[int, int]) -> Tensor:
        levels = []
        for acts, grads in zip(tensors, torch.autograd.grad(score, tensors, retain_graph=True), strict=True):
            level = (grads.clamp(min=0) * acts.detach()).sum(dim=1, keepdim=True).clamp(min=0)
            level = interpolate(level, size, mode="bilinear")[0, 0]
            levels.append(level / level.amax().clamp(min=1e-7))
        return torch.stack(levels).amax(dim=0)


def smooth(level: Tensor, cells: float) -> Tensor:
    """A map [h, w] under ReLU, blurred by a Gaussian of so many cells, over its maximum."""
    radius = int(3 * cells + 0.5)
    kernel = torch.exp(-((torch.arange(-radius, radius + 1) / cells) ** 2) / 2)
    padded = pad(level.clamp(min=0)[None, None], (radius,) * 4)
    blurred = conv2d(conv2d(padded, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))[0, 0]
    return blurred / blurred.amax().clamp(min=1e-12)


class BlurredLevel:
    """ODAM's map at the level, blurred."""

    def __init__(self, model: Any, **options: Any) -> None:
        self._level = Explainer(model, "odam", "level", **options)

    def __call__(self, image: Any) -> Explanation:
        level = self._level(image)
        return replace(level, maps=[smooth(one, BLUR) for one in level.maps])


def taking_part(args: argparse.Namespace, paths: list[Path]) -> list[Contender]:
    options = {"imgsz": args.imgsz}
    model = load_model(args.weights)
    found, left_out = contenders(model, JUDGED, ["level", "evidence"], **options)
    assert not left_out, left_out
    found.append(Contender("ultralytics layercam", LibraryLayerCAM(model, **options)))
    found.append(Contender("level blurred", BlurredLevel(model, **options)))
    dear = frozenset(path.name for path in paths[: args.drise])
    found.append(Contender("drise", Explainer(model, DRISE(masks=args.masks), **options), dear))
    return found


def duels(results: Results, protocol: Protocol) -> dict[str, Any]:
    """What a new default must win: the mean difference and its interval on identical objects, 1 for a win."""
    known = {m.name: m for m in protocol.measures()}
    wanted = [known[name] for name in DECIDING if name in known]
    return {
        f"{name} - {rival}": {
            m.name: {**asdict(results.difference(name, rival, m.name)), "wins": results.wins(name, rival, m)}
            for m in wanted
        }
        for name in CANDIDATES
        for rival in RIVALS
        if name != rival and {name, rival} <= set(results.names)
    }


def headlines(document: dict[str, Any]) -> str:
    """The short table of docs/evaluation.md, and who wins over whom."""
    lines = [
        f"{document['objects']} objects in {document['pictures']} pictures",
        "",
        "| | " + " | ".join(HEADLINES) + " |",
        "|---" * (len(HEADLINES) + 1) + "|",
    ]
    for name, row in document["contenders"].items():
        cells = []
        for key in HEADLINES:
            cell = row.get(key, {"mean": None})
            interval = f" [{cell['low']:.2f}, {cell['high']:.2f}]" if cell.get("low") is not None else ""
            cells.append("-" if cell["mean"] is None else f"{cell['mean']:.2f}{interval}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "| on identical objects | " + " | ".join(DECIDING) + " |", "|---" * (len(DECIDING) + 1) + "|"]
    for pair, row in document["duels"].items():
        cells = [
            f"{c['mean']:+.3f} [{c['low']:+.3f}, {c['high']:+.3f}] {'-=+'[c['wins'] + 1]}"
            for c in (row[key] for key in DECIDING if key in row)
        ]
        lines.append(f"| {pair} | {' | '.join(cells)} |")
    return "\n".join(lines)


def summary(args: argparse.Namespace, protocol: Protocol, rows: list[dict[str, Any]]) -> None:
    """Put the run under its model's name into the file of figures."""
    chosen = ("imgsz", "pictures", "objects", "fills", "steps", "stability", "drise", "masks")
    settings = {key: getattr(args, key) for key in chosen}
    document = summarise(rows, protocol.measures(), {**settings, "weights": Path(args.weights).name})
    document["failed"] = {name: len(why) for name, why in document["failed"].items()}
    document["duels"] = duels(collect(rows, protocol.measures()), protocol)
    document["command"] = f"python benchmarks/evaluate.py --weights {Path(args.weights).name} " + " ".join(
        f"--{key} {' '.join(map(str, value)) if isinstance(value, list) else value}"
        for key, value in settings.items()
        if value is not None
    )
    report = json.loads(args.out.read_text()) if args.out.exists() else {"benchmark": "evaluate", "runs": {}}
    report["runs"][Path(args.weights).stem] = document
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    args.rows.joinpath("report.md").write_text(markdown(document))
    draw(args.rows, document)
    print(headlines(document))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--labels", type=Path, required=True)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--imgsz", type=int)
    parser.add_argument("--pictures", type=int)
    parser.add_argument("--objects", type=int, default=2)
    parser.add_argument("--fills", nargs="+", default=["blur"])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--stability", type=int, default=8)
    parser.add_argument("--drise", type=int, default=12, help="pictures that D-RISE explains")
    parser.add_argument("--masks", type=int, default=1000, help="of D-RISE")
    args = parser.parse_args()
    protocol = Protocol(args.pictures, args.objects, tuple(args.fills), args.steps, stability=args.stability)
    paths = pictures(args.images, protocol)
    settings = {key: str(value) for key, value in vars(args).items() if key not in ("rows", "out")}
    store = Store(args.rows, settings, resume=True)
    found = taking_part(args, paths)
    judge = Judge(load_model(args.weights), found, read_labels(args.labels), protocol, imgsz=args.imgsz)
    done = store.done()
    for row in track(judge.rows(paths, done), "judging", len(paths) - len(done), console=Console(width=120)):
        store.add(row)
    summary(args, protocol, list(store.rows()))


if __name__ == "__main__":
    main()
