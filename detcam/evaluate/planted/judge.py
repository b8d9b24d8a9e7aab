"""Judge on planted scenes: share of each heatmap that lies on the known cause of the class."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from detcam.errors import InputError
from detcam.evaluate.contenders import contenders
from detcam.evaluate.metrics.localisation import Case, Measure, energy, energy_in_box, pointing
from detcam.evaluate.metrics.stability import rank_correlation
from detcam.evaluate.planted.interventions import Found, Witness, part_masks
from detcam.scenes import HELD_OUT_SEED

MEASURES = (
    Measure("mass", "higher", "share of the heat on the cause; noise: the cause's share of the image"),
    Measure("rank", "higher", "share of the k hottest pixels that lie on the cause, k its size; noise: as mass"),
    Measure("hit", "higher", "hottest pixel on the cause"),
    Measure("distractor", "lower", "share of the heat on the distractor"),
    Measure("box", "higher", "share of the heat in the box, which is not the cause: compare with `mass`"),
    Measure("top part", "higher", "the part with the most heat is the one whose loss costs the score most"),
    Measure("part ranks", "higher", "rank correlation of the parts' heat with what their loss costs the score"),
)
STRIDES = (8, 16, 32)  # px, cell sizes of the cause as a heatmap: ceilings for methods
SEEDS = 1_000_000  # held-out seeds to sample scenes from


@dataclass(frozen=True)
class Table:
    """Measurements on the M objects of a variant."""

    scenes: NDArray[np.int64]  # int64 [M], the scene of each object
    values: dict[str, NDArray[np.float64]]  # for each contender float64 [M, len(MEASURES)]
    left_out: dict[str, str]  # contender -> why it cannot explain the model
    found: float  # share of all drawn objects that count


def seeds_of(scenes: int, seed: int) -> list[int]:
    """Seeds of `scenes` held-out scenes, sampled without replacement."""
    drawn = np.random.default_rng(seed).choice(SEEDS, scenes, replace=False)
    return [HELD_OUT_SEED + int(number) for number in drawn]


def judge(
    variant: str,
    seeds: Sequence[int],
    methods: Sequence[str],
    layers: Sequence[str],
    target: str = "class",
    quick: bool = False,
    family: str = "yolo",
) -> Table:
    """Judge methods on scenes of a variant, with the family's model that was trained on it.

    An object counts if its detection is correct and the presence of the cause decides its class: see `Witness.decided`.
    The table also holds the baselines of `contenders`, where methods, layers and `quick` are described, and, as a
    ceiling, the cause itself as a heatmap, sharp and averaged in cells. `target` is the scalar that is explained, and
    whose fall counts for the parts: see `Explainer`. Raises an InputError for a method that does not exist.
    """
    witness = Witness(variant, family=family)
    judged, left_out = contenders(witness.model, methods, layers, quick, target=target, **witness.options)
    collected: dict[str, list[Tensor]] = {}
    scene_of: list[int] = []
    drawn = 0
    for number, seed in enumerate(seeds):
        found = witness.find(seed)
        drawn += len(found.scene.boxes)
        found = found.keep(witness.decided(found))
        if found.owners:
            drops, parts = witness.drops(found, target), part_masks(found)
            scene_of += [number] * len(found.owners)
            heatmaps = ceilings(found)
            for contender in list(judged):
                try:
                    heatmaps[contender.name] = contender.explain(found.scene.image).heatmaps[found.positions]
                except InputError as error:  # some methods refuse a layer only when they read it
                    left_out[contender.name] = str(error)
                    judged.remove(contender)
                    collected.pop(contender.name, None)
            for name, heat in heatmaps.items():
                collected.setdefault(name, []).append(measured(heat, found, parts, drops))
    values = {name: torch.cat(rows).double().numpy() for name, rows in collected.items()}
    return Table(np.array(scene_of, np.int64), values, left_out, len(scene_of) / max(drawn, 1))


def ceilings(found: Found) -> dict[str, Tensor]:
    """The cause as a heatmap [n, H, W]: sharp, and averaged in cells and enlarged again, as a feature map is."""
    sharp = torch.from_numpy(found.scene.causes[list(found.owners)]).float()
    size = (sharp.shape[1], sharp.shape[2])
    maps = {}
    for stride in STRIDES:
        cells = avg_pool2d(sharp[:, None], stride)
        maps[f"cause in cells of {stride} px"] = interpolate(cells, size, mode="bilinear")[:, 0]
    return {**maps, "cause": sharp}


def measured(heatmaps: Tensor, found: Found, parts: Tensor, drops: Tensor) -> Tensor:
    """[n, len(MEASURES)] float32 on the CPU, of heatmaps [n, H, W], at least 0, of the n objects in `found`.

    `parts` [n, P, H, W] bool are those of `part_masks`, `drops` [n, P] those of `Witness.drops`.
    """
    heatmaps, drops = heatmaps.float().cpu(), drops.cpu()
    owners = list(found.owners)
    causes = torch.from_numpy(found.scene.causes[owners])
    distractors = torch.from_numpy(found.scene.parts["distractor"][owners])
    boxes = torch.from_numpy(found.scene.boxes[owners])
    heat = heat_of_parts(heatmaps, parts)
    columns = (
        energy(heatmaps, causes),
        relevance_rank(heatmaps, causes),
        pointing(heatmaps, causes),
        energy(heatmaps, distractors),
        energy_in_box(Case(heatmaps, boxes)),
        top_agreement(heat, drops),
        rank_correlation(heat, drops).nan_to_num(0.0),
    )
    return torch.stack(columns, dim=1)


def relevance_rank(heatmaps: Tensor, regions: Tensor) -> Tensor:
    """[N] share of the k hottest pixels that lie in the region [H, W] bool, k its number of pixels: in [0, 1].

    Arras et al. 2022, "CLEVR-XAI" (relevance rank accuracy; `mass` is its relevance mass accuracy). Pixels tied with
    the k-th share the remaining ranks equally; a blank map scores 0. Heat is at least 0.
    """
    heat, inside = heatmaps.flatten(1), regions.flatten(1)
    k = inside.sum(dim=1)
    ordered = heat.sort(dim=1, descending=True).values
    least = ordered.gather(1, (k - 1).clamp(min=0)[:, None])  # the k-th hottest
    over, tied = heat > least, (heat == least) & (heat > 0)
    room = (k - over.sum(dim=1)) / tied.sum(dim=1).clamp(min=1)
    right = (over & inside).sum(dim=1) + (tied & inside).sum(dim=1) * room
    return torch.where(k > 0, right / k.clamp(min=1), 0.0).float()


def heat_of_parts(heatmaps: Tensor, parts: Tensor) -> Tensor:
    """[n, P] share of each heatmap's sum that lies in each part [n, P, H, W] bool; zeros for a blank map."""
    total = heatmaps.sum(dim=(1, 2)).clamp(min=torch.finfo(heatmaps.dtype).tiny)
    return torch.einsum("nhw,nphw->np", heatmaps, parts.to(heatmaps.dtype)) / total[:, None]


def top_agreement(heat: Tensor, drops: Tensor) -> Tensor:
    """[n] whether the part with the most heat [n, P] has the largest of the drops [n, P]: 1, 0, 1/k for k ties."""
    hottest = heat == heat.amax(dim=1, keepdim=True)
    costliest = drops.argmax(dim=1, keepdim=True)
    return hottest.gather(1, costliest)[:, 0].float() / hottest.sum(dim=1)
