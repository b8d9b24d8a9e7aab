"""Maps for `photographs.py` and `context_shift.py`: base maps of a model or of its twin, and recipes made of them.

The twin of a model is the same model with shuffled weights, which explains the same objects: the maps of a twin show
what the shape of a map is worth without any learning.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from detcam import Explainer, Explanation
from detcam.engine.blur import blurred
from detcam.engine.randomised import randomised
from detcam.evaluate.metrics.stability import rank_correlation
from detcam.methods import METHODS, AnyMethod
from detcam.methods.path import LayerIG
from detcam.runners.twin import frozen_topk, held
from detcam.types import Objects

HEAD_INPUTS = ["model.15", "model.18", "model.21"]  # of YOLOv8
STEM, LEVEL, NECK = "layerig stem", "odam level", "layerig neck"
SMOOTH = (0.0, 0.00625, 0.0125, 0.025, 0.05, 0.1)  # deviations of a blur, as shares of a map's longest side
RAW = partial(LayerIG, smooth=0.0)
WITHOUT_WEIGHTS = ("gaussian", "box", "noise")
BASES: dict[str, tuple[AnyMethod, Any]] = {
    STEM: (RAW(), "stem"),
    "layerig stem, 4 steps": (RAW(steps=4), "stem"),
    "layerig stem, 8 steps": (RAW(steps=8), "stem"),
    "layerig stem, sigma .0125": (RAW(sigma=0.0125), "stem"),
    "layerig stem, sigma .05": (RAW(sigma=0.05), "stem"),
    "layerig stem, logit": (RAW(contrast="none"), "stem"),
    "layerig stride 4": (RAW(), ["model.2"]),
    "layerig stride 4, 4 steps": (RAW(steps=4), ["model.2"]),
    "layerig stride 8": (RAW(), ["model.4"]),
    "layerig stride 8, 4 steps": (RAW(steps=4), ["model.4"]),
    NECK: (RAW(), "evidence"),
    "layerig neck, 4 steps": (RAW(steps=4), "evidence"),
    LEVEL: (METHODS["odam"](), "level"),
    "odam evidence": (METHODS["odam"](), "evidence"),
    "layercam head inputs": (METHODS["layercam"](), HEAD_INPUTS),
    "occlusion": (METHODS["occlusion"](cells=12), "auto"),
    **{name: (METHODS[name](), "auto") for name in WITHOUT_WEIGHTS},
}
Join = Callable[..., Tensor]  # from base maps [h, w] of an object to a map [h, w], negative where shown as zero


@dataclass(frozen=True)
class Recipe:
    """A map made of base maps.

    Attributes:
        bases: names in `BASES`, or `drise`.
        join: how the map is made of theirs.
    """

    bases: tuple[str, ...]
    join: Join = lambda raw: raw


def signed(raw: Tensor, smooth: float) -> Tensor:
    """Blurred with its signs, which cancel; the ReLU comes after it: the order of `layerig`."""
    return blurred(raw, smooth * max(raw.shape))


def rectified(raw: Tensor, smooth: float) -> Tensor:
    """ReLU, then blurred: contours remain whatever the signs."""
    return blurred(raw.clamp(min=0), smooth * max(raw.shape))


def gated(raw: Tensor, fine: float, around: float) -> Tensor:
    """`rectified` evidence times the `signed` evidence of its neighbourhood: contours where the net evidence agrees."""
    return product(rectified(raw, fine), signed(raw, around))


def over_maximum(raw: Tensor) -> Tensor:
    """The positive part over its maximum; zeros stay."""
    positive = raw.clamp(min=0)
    return positive / positive.amax().clamp(min=torch.finfo(positive.dtype).tiny)


def product(*maps: Tensor) -> Tensor:
    """The product of positive parts over their maxima, at the finest resolution among them."""
    finest = max((m.shape for m in maps), key=lambda shape: shape[0] * shape[1])
    return torch.stack([resized(over_maximum(m), finest) for m in maps]).prod(dim=0)


def resized(raw: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear, [h, w] to `size`."""
    return interpolate(raw[None, None], tuple(size), mode="bilinear")[0, 0]


def narrowed(raw: Tensor, level: Tensor, smooth: float, around: float) -> Tensor:
    """`signed` evidence times the level map under a wide blur: why, within where."""
    return product(signed(raw, smooth), rectified(level, around))


def summed(*maps: Tensor, smooth: float) -> Tensor:
    """The sum of `signed` maps of several layers, each over its largest magnitude."""
    finest = max((m.shape for m in maps), key=lambda shape: shape[0] * shape[1])
    parts = [resized(signed(m, smooth), finest) for m in maps]
    return torch.stack([m / m.abs().amax().clamp(min=torch.finfo(m.dtype).tiny) for m in parts]).sum(dim=0)


BROAD = (0.00625, 0.0125, 0.025, 0.05, 0.1)
SIGMAS = (STEM, "layerig stem, sigma .0125", "layerig stem, sigma .05")
STAGES = (STEM, "layerig stride 4", "layerig stride 8", NECK)
MAIN = {
    "layerig": Recipe((STEM,), partial(signed, smooth=0.0125)),
    "layerig, ReLU first": Recipe((STEM,), partial(rectified, smooth=0.0125)),
    "layerig gated, 4 steps": Recipe(("layerig stem, 4 steps",), partial(gated, fine=0.00625, around=0.05)),
    "layerig gated @ stride 4, 4 steps": Recipe(
        ("layerig stride 4, 4 steps",), partial(gated, fine=0.00625, around=0.1)),
    "layerig @ evidence, 4 steps": Recipe((f"{NECK}, 4 steps",), partial(signed, smooth=0.025)),
    "odam @ level": Recipe((LEVEL,)),
    "odam @ evidence": Recipe(("odam evidence",)),
    "layercam @ head inputs": Recipe(("layercam head inputs",)),
    **{name: Recipe((name,)) for name in WITHOUT_WEIGHTS},
}  # fmt: skip


def variants(base: str, signs: Sequence[float], rectifieds: Sequence[float] = ()) -> dict[str, Recipe]:
    """Blurs of a base map, before and after its ReLU."""
    name = base.removeprefix("layerig ")
    return {
        f"{name}, {order.__name__} {smooth:g}": Recipe((base,), partial(order, smooth=smooth))
        for order, smooths in ((signed, signs), (rectified, rectifieds))
        for smooth in smooths
    }


def gates(base: str, *scales: tuple[float, float]) -> dict[str, Recipe]:
    """Gates of a base map, by their two blurs."""
    name = base.removeprefix("layerig ")
    return {f"{name}, gated {fine:g} {around:g}": Recipe((base,), partial(gated, fine=fine, around=around))
            for fine, around in scales}  # fmt: skip


FRONTIER = {
    **variants(STEM, SMOOTH, (0.00625, 0.0125, 0.05)),
    **variants("layerig stem, 4 steps", (0.0125, 0.05), (0.0125,)),
    "stem, 3 sigmas, signed 0.0125": Recipe(SIGMAS, lambda *raws: signed(torch.stack(raws).mean(dim=0), 0.0125)),
    **variants("layerig stem, logit", (0.0125,)),
    **variants("layerig stride 4", (0.0125,)),
    **variants("layerig stride 4, 4 steps", (0.0125,)),
    **variants("layerig stride 8, 4 steps", (0.0125,)),
    **variants(NECK, (0.0125, 0.05)),
    **variants("layerig neck, 4 steps", (0.0125, 0.05)),
    "all stages, signed 0.0125": Recipe(STAGES, partial(summed, smooth=0.0125)),
    "stem signed x level": Recipe((STEM, LEVEL), partial(narrowed, smooth=0.0125, around=0.05)),
    "stem rectified x level": Recipe(
        (STEM, LEVEL), lambda raw, level: product(rectified(raw, 0.0125), rectified(level, 0.05))),
    "stem, 4 steps, rectified x neck, 4 steps": Recipe(
        ("layerig stem, 4 steps", f"{NECK}, 4 steps"),
        lambda raw, neck: product(rectified(raw, 0.00625), signed(neck, 0.05))),
    **gates(STEM, (0.00625, 0.05)),
    **gates("layerig stem, 4 steps", (0.00625, 0.025), (0.00625, 0.05), (0.0125, 0.05), (0.00625, 0.1)),
    **gates("layerig stem, 8 steps", (0.00625, 0.05)),
    **gates("layerig stride 4", (0.00625, 0.05)),
    **gates("layerig stride 4, 4 steps", (0.00625, 0.05), (0.00625, 0.1), (0.0125, 0.1)),
    **gates("layerig stride 8, 4 steps", (0.00625, 0.05)),
    "level, rectified 0.05": Recipe((LEVEL,), partial(rectified, smooth=0.05)),
    "level": Recipe((LEVEL,)),
    "gaussian": Recipe(("gaussian",)),
}  # fmt: skip
SWEPT = {
    "layerig gated, 4 steps": MAIN["layerig gated, 4 steps"],
    "drise": Recipe(("drise",)),
    "occlusion": Recipe(("occlusion",)),
    "gaussian": Recipe(("gaussian",)),
}


class BaseMaps:
    """Explanations of given objects by each base method, from a model or its twin.

    Args:
        model: see `Explainer`.
        recipes: whose bases are needed.
        masks: of D-RISE.
        options: of `Explainer`.
    """

    def __init__(self, model: Any, recipes: Sequence[Recipe], masks: int = 300, **options: Any) -> None:
        bases = BASES | {"drise": (METHODS["drise"](masks=masks), "auto")}
        names = dict.fromkeys(name for recipe in recipes for name in recipe.bases)
        self._explainers = {name: Explainer(model, *bases[name], **options) for name in names}

    def __call__(self, image: Any, objects: Objects, shuffle: int | None = None) -> dict[str, Explanation]:
        """The explanations of `objects`; with `shuffle`, the seed of the twin, from that twin."""
        explained = {}
        for name, explainer in self._explainers.items():
            adapter = explainer.adapter

            def again(explainer: Explainer = explainer) -> Explanation:
                with held(explainer.adapter, objects):
                    return explainer(image)

            if shuffle is None:
                explained[name] = again()
                continue
            same_queries = frozen_topk(adapter, again)
            with randomised(adapter.module, 1.0, shuffle), same_queries():
                explained[name] = again()
        return explained


def made(recipe: Recipe, explained: dict[str, Explanation]) -> Explanation:
    """The explanation of a recipe from those of its bases."""
    parts = [explained[name] for name in recipe.bases]
    maps = [recipe.join(*(raw.nan_to_num(0.0, 0.0, 0.0).float() for raw in of_object))
            for of_object in zip(*(part.maps for part in parts), strict=True)]  # fmt: skip
    return Explanation(parts[0].image, parts[0].objects, maps, parts[0].notes, parts[0].settings, parts[0].geometry)


def alike(real: Explanation, twin: Explanation) -> list[float]:
    """Rank correlation of each object's raw maps, with their signs, over cells where either is not zero."""
    values = []
    for a, b in zip(real.maps, twin.maps, strict=True):
        nonzero = ((a != 0) | (b != 0)).flatten()
        few = int(nonzero.sum()) < 2
        pair = (m.flatten()[nonzero][None] for m in (a, b))
        values.append(float("nan") if few else float(rank_correlation(*pair)[0]))
    return values


def net_evidence(explanation: Explanation, region: Tensor) -> Tensor:
    """[n] the sum of signed maps over the cells of a region [H, W], in units of the score."""
    sums = []
    for sign in (1, -1):
        maps = [sign * raw for raw in explanation.maps]
        part = Explanation(explanation.image, explanation.objects, maps, explanation.notes, explanation.settings,
                           explanation.geometry)  # fmt: skip
        heat = part.render(dtype=torch.float32, normalize="none")
        cells = torch.tensor([raw.clamp(min=0).sum() for raw in maps])
        sums.append(sign * cells * (heat * region).sum(dim=(1, 2)) / heat.sum(dim=(1, 2)).clamp(min=1e-12))
    return torch.stack(sums).sum(dim=0)
