"""Search beside D-RISE, maps of gradients and a Gaussian, by the protocol of Visual Precision Search.

Every contender explains the objects of a picture together, at most `--share` of them; the best-scored ones that match
a label are judged. "shuffled" are the maps of a model with shuffled weights for the same objects: what the shape of
such a map is worth. Forwards are images that pass through the model's first convolution, by a hook.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from objects import surroundings
from rich.console import Console
from rich.table import Table
from summaries import INTERVAL, interval, write
from torch import nn

from detcam import Explainer, Explanation
from detcam.engine.masking import network_heat
from detcam.engine.randomised import randomised
from detcam.evaluate.judge import Protocol, pictures
from detcam.evaluate.labels.read import read_labels
from detcam.evaluate.matching import match
from detcam.evaluate.metrics.bootstrap import bootstrap
from detcam.evaluate.published import PROTOCOLS, PublishedCurves, measures
from detcam.images import read_image
from detcam.methods.perturbation import DRISE
from detcam.models.load import load_model
from detcam.runners.twin import held

REPOSITORY = Path(__file__).parents[1]
VPS = PROTOCOLS["vps"]
COLUMNS = [m.name for m in measures()]
FEW = 0.01  # a score that leaves as many objects as are wanted, to count forwards


class Counted:
    """An explainer that counts the images that its model sees."""

    def __init__(self, explainer: Explainer, explain: Callable[[Any], Explanation] | None = None) -> None:
        self._explain, self.forwards = explain or explainer, 0
        first = next(m for m in explainer.adapter.module.modules() if isinstance(m, nn.Conv2d))
        first.register_forward_pre_hook(self._count)

    def _count(self, module: nn.Module, args: Any) -> None:
        self.forwards += len(args[0])

    def __call__(self, image: Any) -> Explanation:
        self.forwards = 0
        return self._explain(image)


def contenders(model: Any, masks: int, options: dict[str, Any]) -> dict[str, Counted]:
    methods: dict[str, Any] = {name: name for name in ("search", "layerig", "odam", "gaussian")}
    methods[f"drise, {masks} masks"] = DRISE(masks=masks)
    counted = {name: Counted(Explainer(model, method, **options)) for name, method in methods.items()}
    twin = Explainer(model, "search", **options)
    return {**counted, "shuffled search": Counted(twin, shuffled(model, twin, options))}


def shuffled(model: Any, explainer: Explainer, options: dict[str, Any]) -> Callable[[Any], Explanation]:
    """Explains the objects of the real model with shuffled weights, for families whose anchors stay where they are."""
    reference = Explainer(model, "box", **options)

    def explain(image: Any) -> Explanation:
        objects = reference(image).objects
        with held(explainer.adapter, objects), randomised(explainer.adapter.module, 1.0, 1):
            return explainer(image)

    return explain


def report(values: dict[str, list[list[float]]], of: Sequence[int]) -> dict[str, Any]:
    """Means and differences of columns, from each contender's rows over objects; `of`: the picture of each object."""
    rows = {name: np.array(lines) for name, lines in values.items()}
    places, search = np.array(of), rows["search"]

    def table(make: Callable[[str, int], Any]) -> dict[str, Any]:
        return {n: {c: interval(asdict(make(n, k))) for k, c in enumerate(COLUMNS)} for n in rows}

    return {
        "objects": len(of),
        "pictures": len(set(of)),
        "interval": INTERVAL,
        "contenders": table(lambda n, k: bootstrap(rows[n][:, k], places)),
        "search_minus": table(lambda n, k: bootstrap(search[:, k] - rows[n][:, k], places)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--labels", type=Path, required=True)
    parser.add_argument("--pictures", type=int, help="look at the first so many pictures only")
    parser.add_argument("--objects", type=int, default=2, help="of a picture to judge")
    parser.add_argument("--share", type=int, default=10, help="objects of a picture that are explained together")
    parser.add_argument("--masks", type=int, default=1000, help="of D-RISE")
    parser.add_argument("--imgsz", type=int, default=640)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=REPOSITORY / "benchmarks" / "results" / "search.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, labels, console = load_model(args.weights), read_labels(args.labels), Console(width=120)
    options = {"conf": VPS.conf, "max_det": args.share, "imgsz": args.imgsz}
    counted = contenders(model, args.masks, options)
    reference = Explainer(model, "box", **options)
    said = {name: getattr(args, name) for name in ("pictures", "objects", "share", "masks", "imgsz", "threads")}
    command = f"python benchmarks/search.py --weights {Path(args.weights).name} --images DIR --labels DIR " + " ".join(
        f"--{name} {value}" for name, value in said.items() if value is not None
    )
    facts = {"benchmark": "search", **surroundings(torch.device("cpu")), "command": command, "protocol": asdict(VPS)}
    values: dict[str, list[list[float]]] = {name: [] for name in counted}
    curves: dict[str, list[torch.Tensor]] = {name: [] for name in counted}
    shared = {}
    for count in (1, args.share):
        search = Counted(Explainer(model, "search", conf=FEW, max_det=count, imgsz=args.imgsz))
        found = len(search(pictures(args.images, Protocol())[0]))
        shared[found] = search.forwards / found
    console.print(f"forwards per object, by the number of objects: {shared}", markup=False)
    of: list[int] = []
    costs: list[dict[str, Any]] = []
    for place, path in enumerate(pictures(args.images, Protocol(pictures=args.pictures))):
        image = read_image(path)
        plain = reference(image)
        matched = match(plain, labels.of(path, *image.shape[:2]))
        few = matched.objects[: args.objects]
        if not few:
            continue
        objects = plain.objects.select(torch.tensor(few))
        judge = PublishedCurves(VPS, reference, image, objects, matched.boxes[: len(few)], 2**28)
        for name, contender in counted.items():
            explained = contender(image)
            maps = [explained.maps[i] for i in few]
            insertion, deletion = judge.curves(network_heat(maps, explained.geometry.network))
            columns = judge.columns(insertion, deletion)
            values[name] += torch.stack([columns[c] for c in COLUMNS], dim=1).tolist()
            curves[name] += list(torch.stack([insertion[:, :, 0], deletion[:, :, 0]], dim=1))  # [2, K + 1] each
        costs.append({"picture": path.name, "objects": len(plain), **{n: c.forwards for n, c in counted.items()}})
        of += [place] * len(few)
        console.print(f"{len(of)} objects: {costs[-1]}", markup=False)
        mean = {n: torch.stack(c).mean(dim=0) for n, c in curves.items()}
        drawn = {
            n: {k: [round(v, 4) for v in m.tolist()] for k, m in zip(("insertion", "deletion"), both, strict=True)}
            for n, both in mean.items()
        }
        shares = [round(v, 4) for v in judge.shares.tolist()]
        counts = {"forwards_per_object_of_search": shared, "images_through_the_model": costs}
        document = {**facts, **report(values, of), **counts, "shares": shares, "curves": drawn}
        write(args.out, document)
    show(document, console)


def show(document: dict[str, Any], console: Console) -> None:
    table = Table(title=f"{document['objects']} objects, {document['pictures']} pictures", title_justify="left")
    for heading in ("", *(name.removesuffix("_protocol").replace("_", " ") for name in COLUMNS)):
        table.add_column(heading)
    for name, row in document["contenders"].items():
        table.add_row(name, *(f"{row[c][0]:.3f}" for c in COLUMNS))
    console.print(table)


if __name__ == "__main__":
    main()
