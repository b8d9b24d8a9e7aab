"""Deletion and insertion on labelled photographs, each map beside its own twin from a model with shuffled weights.

--set main: the methods; frontier: variants of layerig; planted: the share of their heat on planted causes; swept:
methods that take hundreds of forwards; judge: how the figures depend on the settings of the judge. The objects of an
image are the best-scored ones that match a label. Every image has its own shuffled weights. The summary is written
after every image: a stopped run leaves the figures of the images it has judged, with their number.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recipes import FRONTIER, MAIN, SWEPT, WITHOUT_WEIGHTS, BaseMaps, Recipe, alike, made
from summaries import interval, write
from torch import Tensor

from detcam import Explainer, Explanation
from detcam.engine import masking
from detcam.engine.blur import blurred
from detcam.evaluate.judge import Protocol, network_heat, pictures
from detcam.evaluate.labels.base import Labels
from detcam.evaluate.labels.read import read_labels
from detcam.evaluate.matching import Matched, match
from detcam.evaluate.metrics import faithfulness
from detcam.evaluate.metrics.bootstrap import Interval, bootstrap
from detcam.evaluate.metrics.localisation import energy, energy_in_mask, pointing
from detcam.evaluate.planted.interventions import CONF, Witness
from detcam.evaluate.planted.judge import seeds_of
from detcam.evaluate.report import versions
from detcam.images import read_image
from detcam.models.load import load_model
from detcam.runners.likeness import Likeness
from detcam.scenes.planted import VARIANTS

OUT = Path(__file__).parents[1] / "benchmarks" / "results" / "photographs.json"
SETS: dict[str, dict[str, Recipe]] = {"main": MAIN, "frontier": FRONTIER, "swept": SWEPT}
JUDGED = (
    "layerig",
    "layerig, ReLU first",
    "layerig gated, 4 steps",
    "odam @ level",
    "gaussian",
)  # under several settings of the judge
FINE = 20  # steps of the judge's finest curve: that of 4, 5 and 10 steps is a part of it
BATCH = 4  # images in a masked forward
PASSED = 0.4  # score above which an object counts as certain
Values = dict[str, list[float]]


@dataclass(frozen=True)
class Case:
    """The judged objects of an image.

    Attributes:
        explanation: of the n objects, without maps of use.
        matched: their labels.
        seed: of the twin's weights.
    """

    explanation: Explanation
    matched: Matched
    seed: int


class Judge:
    """Curves of given maps, in detcam's own way; see `detcam.evaluate.metrics.faithfulness`.

    Args:
        reference: detects the objects.
        case: the image and its objects.
        half: whether masked forwards run in bfloat16.
    """

    def __init__(self, reference: Explainer, case: Case, half: bool) -> None:
        self._half, self._adapter = half, reference.adapter
        self._picture, geometry = self._adapter.prepare(case.explanation.image)
        self._black = self._adapter.prepare(np.zeros_like(case.explanation.image))[0]
        self._inside = masking.seen(geometry, self._picture.device)
        self._score = Likeness(self._adapter, case.explanation.objects, reference.max_det)
        self._objects = torch.arange(len(case.explanation))
        self._known: dict[str | float, tuple[masking.Fill, Tensor, Tensor]] = {}

    def __call__(self, explanation: Explanation, steps: int, fill: str | float = "blur") -> faithfulness.Curves:
        """Curves of the n maps; `fill` may be the deviation of the blur in pixels."""
        with torch.autocast(self._picture.device.type, torch.bfloat16, enabled=self._half):
            if fill not in self._known:
                filled = self._filled(fill)
                ends = faithfulness.ends(self._score, filled, self._inside, self._objects, BATCH)
                self._known[fill] = (filled, *ends)
            filled, whole, hidden = self._known[fill]
            places = masking.places(network_heat(explanation, self._objects.tolist()), self._inside)
            return faithfulness.curves(self._score, filled, places, self._objects, whole, hidden, BATCH, steps)

    def _filled(self, fill: str | float) -> masking.Fill:
        if isinstance(fill, str):
            return masking.fill(fill, self._picture, self._black)
        other = blurred(self._picture, fill, "replicate")
        return lambda hidden: torch.where(hidden[:, None], other, self._picture)


def cases(reference: Explainer, args: argparse.Namespace) -> Iterator[Case]:
    """The images with objects that match a label."""
    labels: Labels = read_labels(args.labels)
    for place, path in enumerate(pictures(args.images, Protocol(args.pictures))):
        image = read_image(path)
        plain = reference(image)
        of_image = labels.of(path, *image.shape[:2])
        few = match(plain, of_image).objects[: args.objects]
        if few:
            objects = plain.objects.select(torch.tensor(few))
            blank = [torch.zeros(1, 1)] * len(few)
            chosen = Explanation(image, objects, blank, [None] * len(few), plain.settings, plain.geometry)
            yield Case(chosen, match(chosen, of_image), place + 1)


def row(case: Case, bases: BaseMaps, judge: Judge, recipes: dict[str, Recipe], steps: int) -> dict[str, Values]:
    """name -> measure -> a value for each object; the name of a twin is that of its map after "twin "."""
    image, objects = case.explanation.image, case.explanation.objects
    real, twin = bases(image, objects), bases(image, objects, case.seed)
    values: dict[str, Values] = {}
    for name, recipe in recipes.items():
        map_, other = made(recipe, real), made(recipe, twin)
        values[name] = measured(case, judge, map_, steps)
        if name not in WITHOUT_WEIGHTS:
            values[name]["twin rank"] = alike(map_, other)
            values[f"twin {name}"] = measured(case, judge, other, steps)
    return values


def measured(case: Case, judge: Judge, explanation: Explanation, steps: int) -> Values:
    """measure -> a value for each object of an image."""
    deletion, insertion, *_ = judge(explanation, steps).values()
    order = case.matched.objects  # the labels are in the order of the match
    found = case.matched.case(explanation.render(order, dtype=torch.float32))
    in_mask = torch.full((len(order),), torch.nan)
    if found.masks is not None:
        in_mask[order] = energy_in_mask(found)
    return {"insertion": insertion.tolist(), "deletion": deletion.tolist(), "in mask": in_mask.tolist()}


def summarised(rows: list[dict[str, Values]]) -> dict[str, Any]:
    """name -> measure -> [mean, low, high, count], with the differences from the twin."""
    images = np.repeat(np.arange(len(rows)), [len(next(iter(r.values()))["insertion"]) for r in rows])
    table: dict[str, Any] = {}
    for name in rows[0]:
        if name.startswith("twin "):
            continue
        table[name] = {m: listed(bootstrap(column(rows, name, m), images)) for m in rows[0][name]}
        twin = f"twin {name}"
        for measure in ("insertion", "deletion", "in mask") if twin in rows[0] else ():
            ours, theirs = (column(rows, key, measure) for key in (name, twin))
            table[name][f"twin {measure}"] = listed(bootstrap(theirs, images))
            table[name][f"{measure} - twin"] = listed(bootstrap(ours - theirs, images))
    return table


def listed(found: Interval) -> list[float | int | None]:
    """[mean, low, high, count], None where undefined."""
    return [None if value != value else value for value in interval(asdict(found))]


def column(rows: list[dict[str, Values]], name: str, measure: str) -> np.ndarray:
    """[n] float64 over the objects of all images."""
    return np.array([value for r in rows for value in r[name][measure]], np.float64)


def planted(recipes: dict[str, Recipe], scenes: int) -> dict[str, Any]:
    """Objects of each variant, and recipe -> variant -> [share of the heat on the cause, share of objects hit]."""
    table: dict[str, dict[str, list[float]]] = {name: {} for name in recipes}
    objects = {}
    for variant in VARIANTS:
        witness = Witness(variant)
        bases = BaseMaps(witness.model, list(recipes.values()), conf=CONF)
        rows: dict[str, list[Tensor]] = {name: [] for name in recipes}
        for seed in seeds_of(scenes, 0):
            found = witness.find(seed)
            found = found.keep(witness.decided(found))
            if not found.owners:
                continue
            causes = torch.from_numpy(found.scene.causes[list(found.owners)])
            explained = bases(found.scene.image, found.objects)
            for name, recipe in recipes.items():
                heat = made(recipe, explained).heatmaps
                rows[name].append(torch.stack([energy(heat, causes), pointing(heat, causes)], dim=1))
        for name, parts in rows.items():
            values = torch.cat(parts)
            table[name][variant] = [round(v, 3) for v in values.mean(dim=0).tolist()]
            objects[variant] = len(values)
        print(f"planted {variant}: {objects[variant]} objects", file=sys.stderr, flush=True)
    return {"objects": objects, "maps": table}


def settings_of_judge(case: Case, bases: BaseMaps, judge: Judge, precise: Judge) -> dict[str, Values]:
    """ "map, setting" -> measure -> a value for each object, under several settings of the judge."""
    explained = bases(case.explanation.image, case.explanation.objects)
    values: dict[str, Values] = {}
    for name in JUDGED:
        map_ = made(MAIN[name], explained)
        fine = judge(map_, FINE)
        for steps in (4, 5, 10, 20):
            part = slice(None, None, FINE // steps)
            curves = faithfulness.Curves(fine.shares[part], fine.deletion[:, part], fine.insertion[:, part])
            values[f"{name}, {steps} steps"] = areas(curves)
        even = torch.linspace(0, 1, 11)  # read between the finest curve's points
        deletion, insertion = (
            torch.from_numpy(np.stack([np.interp(even, fine.shares, line) for line in c.float().numpy()]))
            for c in (fine.deletion, fine.insertion)
        )
        values[f"{name}, 10 even steps"] = areas(faithfulness.Curves(even, deletion, insertion))
        for fill in ("black", 8.0, 32.0):
            label = fill if isinstance(fill, str) else f"blur of {fill:g} px"
            values[f"{name}, 10 steps, {label}"] = areas(judge(map_, 10, fill))
        values[f"{name}, 10 steps, float32"] = areas(precise(map_, 10))
    return values


def areas(curves: faithfulness.Curves) -> Values:
    """The areas under a curve, over the initial score."""
    deletion, insertion, *_ = curves.values()
    return {"insertion": insertion.tolist(), "deletion": deletion.tolist()}


def by_score(rows: list[dict[str, Values]], scores: list[list[float]]) -> dict[str, Any]:
    """The means of the objects that are certain, and of the others: name -> [insertion, deletion, count] each."""
    certain = np.array([s > PASSED for of_image in scores for s in of_image])
    table: dict[str, Any] = {}
    for part, mask in ((f"score over {PASSED}", certain), (f"score up to {PASSED}", ~certain)):
        if mask.any():
            means = {n: [column(rows, n, m)[mask].mean() for m in ("insertion", "deletion")] for n in rows[0]}
            rounded = {name: [round(float(mean), 4) for mean in both] for name, both in means.items()}
            table[part] = {"objects": int(mask.sum()), **rounded}
    return table


def show(table: dict[str, Any]) -> None:
    """Print the table."""
    for name, entry in table.items():
        cells = [f"{key} {value[0]:.3f}" for key, value in entry.items() if value[0] is not None]
        print(f"{name:40s} {'  '.join(cells)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights")
    parser.add_argument("--images", type=Path)
    parser.add_argument("--labels", type=Path)
    parser.add_argument("--set", choices=[*SETS, "planted", "judge"], default="main")
    parser.add_argument("--only", nargs="+", help="maps of the set to judge")
    parser.add_argument("--pictures", type=int, help="the first of the images; default all")
    parser.add_argument("--objects", type=int, default=2, help="of each image, at most")
    parser.add_argument("--steps", type=int, default=faithfulness.STEPS)
    parser.add_argument("--masks", type=int, default=300, help="of D-RISE")
    parser.add_argument("--scenes", type=int, default=20, help="planted scenes of each kind")
    parser.add_argument("--half", action="store_true", help="masked forwards in bfloat16")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    facts = {"command": command(args), "date": date.today().isoformat(), "versions": versions()}
    if args.set == "planted":
        keep(args.out, "planted", {**facts, "scenes": args.scenes, **planted(FRONTIER | MAIN, args.scenes)})
        return
    recipes = {n: MAIN[n] for n in JUDGED} if args.set == "judge" else SETS[args.set]
    recipes = {n: r for n, r in recipes.items() if not args.only or n in args.only}
    model = load_model(args.weights)
    reference, bases = Explainer(model, "box"), BaseMaps(model, list(recipes.values()), args.masks)
    run: dict[str, Any] = {
        **facts,
        "settings": {"set": args.set, "steps": args.steps, "objects": args.objects, "fill": "blur",
                     "masked forwards": "bfloat16" if args.half else "float32"},
        "intervals": "mean over objects, 95 % bootstrap over images, number of objects",
    }  # fmt: skip
    rows: list[dict[str, Values]] = []
    scores: list[list[float]] = []
    start = time.perf_counter()
    for case in cases(reference, args):
        judge = Judge(reference, case, args.half)
        if args.set == "judge":
            rows.append(settings_of_judge(case, bases, judge, Judge(reference, case, half=False)))
        else:
            rows.append(row(case, bases, judge, recipes, args.steps))
        scores.append(case.explanation.scores.tolist())
        run |= {"images": len(rows), "objects": sum(map(len, scores)), "maps": summarised(rows)}
        run["by score"] = by_score(rows, scores)
        keep(args.out, f"{args.set} {Path(args.weights).stem}", run)
        seconds = time.perf_counter() - start
        print(f"{run['images']} images, {run['objects']} objects, {seconds:.0f} s", file=sys.stderr, flush=True)
    show(run["maps"])


def keep(path: Path, name: str, run: dict[str, Any]) -> None:
    """Write a run into the file, beside the others."""
    document = json.loads(path.read_text()) if path.exists() else {"benchmark": "photographs", "runs": {}}
    document["runs"][name] = run
    write(path, document)


def command(args: argparse.Namespace) -> str:
    """The command line of a run."""
    if args.set == "planted":
        return f"python benchmarks/photographs.py --set planted --scenes {args.scenes}"
    options = {"only": args.only and " ".join(f"'{name}'" for name in args.only), "pictures": args.pictures,
               "objects": args.objects, "steps": args.steps, "masks": args.set == "swept" and args.masks}  # fmt: skip
    chosen = " ".join(f"--{name} {value}" for name, value in options.items() if value)
    data = f"--weights {Path(args.weights).name} --images IMAGES --labels LABELS"
    return f"python benchmarks/photographs.py {data} --set {args.set} {chosen}{' --half' if args.half else ''}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
