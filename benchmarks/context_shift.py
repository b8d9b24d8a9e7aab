"""Does heat outside the object predict which detections vanish when the background is replaced?

After ContextShift (arXiv:2606.09495): everything outside the labelled masks of a photograph is replaced by the
backgrounds of other photographs (their objects filled with the colours around them), by grey, and by blurred noise;
"own" puts the objects back before their own background, which shows what cutting out costs. An object is one that is
detected in the photograph and matches a label. It vanishes if no detection of its class has an IoU of .5 with it. The
fall of its score is 1 - s / s0, with s as in deletion and insertion.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from backgrounds import Picture, auroc, emptied, multiplicities, noise, rank_correlation, shifted
from recipes import MAIN, NECK, STEM, BaseMaps, Recipe, made, net_evidence, signed
from summaries import write
from torch import Tensor

from detcam import Explainer, Explanation
from detcam.boxes import box_iou
from detcam.evaluate.judge import Protocol, pictures
from detcam.evaluate.labels.read import read_labels
from detcam.evaluate.matching import Matched, match
from detcam.evaluate.metrics.localisation import Case, energy
from detcam.evaluate.report import versions
from detcam.images import read_image
from detcam.models.load import load_model
from detcam.types import Objects

OUT = Path(__file__).parents[1] / "benchmarks" / "results" / "context_shift.json"
SAME = 0.5  # least IoU with a detection in the changed photograph
GREY = 127
SHARES: dict[str, Recipe] = {
    "layerig": MAIN["layerig"],
    "layerig, ReLU first": MAIN["layerig, ReLU first"],
    "layerig gated, 4 steps": MAIN["layerig gated, 4 steps"],
    "layerig @ neck": Recipe((NECK,), partial(signed, smooth=0.0125)),
    "odam @ level": MAIN["odam @ level"],
    "odam @ evidence": MAIN["odam @ evidence"],
    "layercam @ head inputs": MAIN["layercam @ head inputs"],
    "box": MAIN["box"],
    "gaussian": MAIN["gaussian"],
    "noise": MAIN["noise"],
}
TWINS = ("layerig", "odam @ evidence")
NET = {"layerig": Recipe((STEM,)), "layerig @ neck": Recipe((NECK,))}  # signed evidence on the replaced pixels
GIVEN = ("low score", "small box")
KINDS = {"all": ("photograph", "grey", "noise"), "photograph": ("photograph",), "grey": ("grey",), "noise": ("noise",),
         "own": ("own",)}  # fmt: skip
REGIONS = ("mask", "box", "background")  # heat outside the object's mask, its box, or all labelled masks
PAIRS = (
    ("layerig", "gaussian"),
    ("layerig", "odam @ level"),
    ("layerig", "twin layerig"),
    ("layerig", "box"),
    ("layerig gated, 4 steps", "gaussian"),
)


@dataclass(frozen=True)
class Photograph:
    """A labelled photograph.

    Attributes:
        image: [H, W, 3] uint8 RGB.
        foreground: [H, W] bool, the union of all labelled masks.
        background: the image without its foreground, see `emptied`.
        plain: all detections.
        matched: those that match a label.
    """

    image: Picture
    foreground: np.ndarray
    background: Picture
    plain: Explanation
    matched: Matched


def photographs(reference: Explainer, args: argparse.Namespace) -> list[Photograph]:
    """The photographs whose labels all have masks."""
    labels, found = read_labels(args.labels), []
    for path in pictures(args.images, Protocol(args.pictures)):
        image = read_image(path)
        of_image = labels.of(path, *image.shape[:2])
        masks = [label.mask for label in of_image if label.mask is not None]
        if masks and len(masks) == len(of_image):
            plain = reference(image)
            foreground = np.any(masks, axis=0)
            found.append(Photograph(image, foreground, emptied(image, foreground), plain, match(plain, of_image)))
    return found


def shifts(photos: list[Photograph], number: int, count: int) -> Iterator[tuple[str, Picture]]:
    """(kind, changed photograph): `count` other backgrounds, grey, noise, and its own background."""
    photo, rng = photos[number], np.random.default_rng([0, number])
    others = [i for i in range(len(photos)) if i != number]
    backgrounds = [
        ("photograph", photos[i].background) for i in rng.choice(others, min(count, len(others)), replace=False)
    ]
    backgrounds.append(("grey", np.full_like(photo.image, GREY)))
    backgrounds.append(("noise", noise(photo.image.shape, rng)))
    backgrounds.append(("own", photo.background))
    for kind, background in backgrounds:
        yield kind, shifted(photo.image, photo.foreground, background)


def predictors(photo: Photograph, bases: BaseMaps, of_twin: BaseMaps, seed: int) -> dict[str, Tensor]:
    """ "map, region" -> [n] share of the heat outside; "net map" -> [n] signed evidence on the replaced pixels."""
    order = photo.matched.objects
    objects = photo.plain.objects.select(torch.tensor(order))
    real, twin = bases(photo.image, objects), of_twin(photo.image, objects, seed)
    assert photo.matched.masks is not None
    replaced = torch.from_numpy(~photo.foreground)
    values: dict[str, Tensor] = {
        "low score": -objects.scores,
        "small box": -((objects.boxes[:, 2:] - objects.boxes[:, :2]).prod(dim=1)),
    }
    chosen = [(name, recipe, real) for name, recipe in SHARES.items()]
    chosen += [(f"twin {name}", SHARES[name], twin) for name in TWINS]
    for name, recipe, explained in chosen:
        heat = made(recipe, explained).render(dtype=torch.float32)
        case = Case(heat, objects.boxes.float())
        inside = {"mask": photo.matched.masks, "box": case.in_boxes, "background": (~replaced).expand_as(heat)}
        values |= {f"{name}, {region}": 1 - energy(heat, inside[region]) for region in REGIONS}
    for name, recipe in NET.items():
        values[f"net {name}"] = net_evidence(made(recipe, real), replaced)
    return values


def outcomes(reference: Explainer, photo: Photograph, changed: Picture) -> tuple[list[bool], list[float]]:
    """For each matched object whether it vanishes in the changed photograph, and its s there."""
    found = reference(changed)
    objects = photo.plain.objects.select(torch.tensor(photo.matched.objects))
    same = (box_iou(objects.boxes, found.boxes) >= SAME) & (objects.class_ids[:, None] == found.class_ids)
    return (~same.any(dim=1)).tolist(), scores_in(reference, objects, changed)


@torch.no_grad()
def scores_in(reference: Explainer, objects: Objects, image: Picture) -> list[float]:
    """s of every object in an image: max over predictions of IoU * p(class), see `Likeness`."""
    adapter = reference.adapter
    boxes, probabilities, _ = adapter.candidates(adapter.forward(adapter.prepare(image)[0][None], reference.max_det))
    likeness = box_iou(objects.network_boxes, boxes[0]) * probabilities[0][:, objects.class_ids].T
    return likeness.amax(dim=1).tolist()


def rows_of(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each object and changed photograph."""
    model = load_model(args.weights)
    reference = Explainer(model, "box")
    bases = BaseMaps(model, [*SHARES.values(), *NET.values()])
    of_twin = BaseMaps(model, [SHARES[name] for name in TWINS])
    photos, rows = photographs(reference, args), []
    for number, photo in enumerate(photos):
        if not photo.matched.objects:
            continue
        told = {name: v.tolist() for name, v in predictors(photo, bases, of_twin, number + 1).items()}
        objects = photo.plain.objects.select(torch.tensor(photo.matched.objects))
        first = scores_in(reference, objects, photo.image)
        for kind, changed in shifts(photos, number, args.backgrounds):
            vanished, scores = outcomes(reference, photo, changed)
            rows += [
                {"image": number, "object": i, "kind": kind, "vanished": vanished[i],
                 "fall": 1 - scores[i] / max(first[i], 1e-6), **{name: v[i] for name, v in told.items()}}
                for i in range(len(first))
            ]  # fmt: skip
        print(f"{number + 1}/{len(photos)} images, {len(rows)} rows", file=sys.stderr, flush=True)
    return rows


def table(rows: list[dict[str, Any]], names: list[str]) -> dict[str, Any]:
    """How well each number predicts: AUROC of vanishing, and rank correlation with the fall of the score."""
    images = np.array([r["image"] for r in rows])
    vanished, fall = np.array([r["vanished"] for r in rows]), np.array([r["fall"] for r in rows])
    times, count = multiplicities(images), len(np.unique(images))
    columns = {name: np.array([r[name] for r in rows], np.float64) for name in names}
    given = [columns[name] for name in GIVEN]
    areas = {name: auroc(values, vanished, times) for name, values in columns.items()}
    pairs = [(f"{a}, {region}", f"{b}, {region}") for a, b in PAIRS for region in REGIONS]
    return {
        "objects": len({(r["image"], r["object"]) for r in rows}),
        "images": count,
        "rows": len(rows),
        "vanished": int(vanished.sum()),
        "objects that vanish somewhere": len({(r["image"], r["object"]) for r in rows if r["vanished"]}),
        "mean fall": round(float(fall.mean()), 4),
        "predictors": {
            name: {
                "auroc": areas[name].listed(count),
                "fall": rank_correlation(values, fall, times).listed(count),
                "fall given score and size": rank_correlation(values, fall, times, given).listed(count)
                if name not in GIVEN else None,
            }
            for name, values in columns.items()
        },
        "auroc differences": {f"{a} - {b}": (areas[a] - areas[b]).listed(count) for a, b in pairs},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--labels", type=Path, required=True)
    parser.add_argument("--pictures", type=int, help="the first of the images; default all")
    parser.add_argument("--backgrounds", type=int, default=6, help="of other photographs, for each image")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    rows = rows_of(args)
    names = [name for name in rows[0] if name not in ("image", "object", "kind", "vanished", "fall")]
    parts = {kind: [r for r in rows if r["kind"] in kinds] for kind, kinds in KINDS.items()}
    document = {
        "benchmark": "context_shift",
        "command": f"python benchmarks/context_shift.py --weights {Path(args.weights).name} --images IMAGES "
        f"--labels LABELS --backgrounds {args.backgrounds}",
        "date": date.today().isoformat(),
        "versions": versions(),
        "intervals": "value, 95 % bootstrap over images",
        "backgrounds": {kind: table(part, names) for kind, part in parts.items()},
    }
    write(args.out, document)
    for kind, part in document["backgrounds"].items():
        print(
            f"{kind}: {part['vanished']} of {part['rows']} vanish; {part['objects']} objects, {part['images']} images"
        )
        for name, entry in part["predictors"].items() if kind == "all" else ():
            print(f"  {name:36s} {entry}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
