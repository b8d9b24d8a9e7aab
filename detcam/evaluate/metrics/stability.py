"""Stability metrics: change of a map under image noise and under randomised weights, by rank correlation."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from detcam.boxes import box_iou
from detcam.engine.randomised import randomised, run_order
from detcam.evaluate.metrics.localisation import Measure
from detcam.explainer import Explainer
from detcam.explanation import Explanation
from detcam.geometry import white
from detcam.runners.twin import frozen_topk, held

GRID = (40, 40)  # cells at which maps of different sizes are compared
NOISE = 8.0  # standard deviation of the noise, in 8-bit levels
SAME = 0.5  # least IoU with the same object in the noisy image
STAGES = 5  # of the cascade: parts of the model randomised in turn, from the output on
PASSED = 0.3  # rank correlation below which a map counts as changed

STABILITY = tuple(
    Measure(name, "lower", text, "stability")
    for name, text in (
        ("sensitivity", f"|change| / |map| under noise of {NOISE:g}/255 on the image; a fixed map has 0"),
        ("randomised", "rank correlation with the map of a fully randomised model; must be under .3"),
    )
)


def ranks(values: Tensor) -> Tensor:
    """[n, P] ranks along each row of [n, P], from 0 to P - 1; equal values share the mean of their ranks."""
    ranked = []
    for row in values:
        _, place, count = row.unique(return_inverse=True, return_counts=True)
        ranked.append((count.cumsum(0).double() - (count.double() + 1) / 2)[place])
    return torch.stack(ranked) if ranked else values.double()


def rank_correlations(values: Tensor) -> Tensor:
    """[n, n] Spearman rank correlations of the rows of [n, P], in [-1, 1]; NaN for constant rows."""
    ranked = ranks(values)
    centred = ranked - ranked.mean(dim=1, keepdim=True)
    size = centred.norm(dim=1)
    return ((centred @ centred.T) / (size[:, None] * size).where(size[:, None] * size > 0, torch.nan)).float()


def rank_correlation(a: Tensor, b: Tensor) -> Tensor:
    """[n] Spearman rank correlation of each pair of rows of a and b, [n, P]: in [-1, 1], noise 0, NaN if constant."""
    pairs = [rank_correlations(torch.stack(pair))[0, 1] for pair in zip(a, b, strict=True)]
    return torch.stack(pairs) if pairs else a.new_zeros(0)


def agreement(explanations: list[Explanation], objects: list[int]) -> Tensor:
    """[k, k] mean over `objects` of the rank correlation between the heatmaps of k explanations of an image."""
    heat = torch.stack([e.render(objects, GRID, torch.float32).flatten(1) for e in explanations], dim=1)
    return torch.stack([rank_correlations(maps) for maps in heat]).nanmean(dim=0)


def noisy(image: np.ndarray, seed: int) -> np.ndarray:
    """[H, W, C]: the image with Gaussian noise."""
    full = white(image)
    noise = np.random.default_rng(seed).normal(0, NOISE * full / 255, image.shape)
    changed = np.clip(image + noise, 0, full)
    return (changed if full == 1 else changed.round()).astype(image.dtype)


def sensitivity(plain: Explanation, changed: Explanation) -> Tensor:
    """[N] |heatmap of the noisy image - heatmap| / |heatmap|, Euclidean: 0 or more, lower is better.

    Yeh et al. 2019, "On the (In)fidelity and Sensitivity of Explanations", with Gaussian noise and the mean in place of
    the maximum. NaN for an object that is not detected again (same class, IoU of the boxes at least .5).
    """
    values = torch.full((len(plain),), torch.nan)
    for i in range(len(plain)):
        iou = box_iou(plain.boxes[i : i + 1], changed.boxes)[0] * (changed.class_ids == plain.class_ids[i])
        if not len(iou) or iou.amax() < SAME:
            continue
        before, after = (e.render([j], GRID, torch.float32) for e, j in ((plain, i), (changed, int(iou.argmax()))))
        values[i] = float((after - before).norm() / before.norm()) if before.any() else torch.nan
    return values


def cascade(explainer: Explainer, image: Any, plain: Explanation, objects: list[int], stages: int = STAGES) -> Tensor:
    """Rank correlation of the raw maps with the maps after more and more of the model is randomised, in `stages` steps.

    Adebayo et al. 2018, "Sanity Checks for Saliency Maps", section 3: cascading randomisation, from the output on. The
    same anchor, query or region is explained for the same class at every stage, with the same selected queries (see
    `frozen_topk`). Raw maps are compared before ReLU, with their signs. Cells where both maps are zero are left out:
    they show the limits of the receptive field, not what the model learned, and would correlate any two maps of a small
    field.

    The weights of the explainer's private view are shuffled and restored; the user's model is not touched. `plain` is
    its explanation of the image, `objects` are the positions of the objects to judge.

    Returns [stages, len(objects)] in [-1, 1]; the last row is the fully randomised model. NaN where either map is
    constant.
    """
    adapter = explainer.adapter
    selected = plain.objects.select(torch.tensor(objects, device=plain.boxes.device))

    def again() -> Explanation:
        with held(adapter, selected):
            return explainer(image)

    order, same_queries = run_order(adapter.module, again), frozen_topk(adapter, again)
    rows = []
    for stage in range(1, stages + 1):
        with randomised(adapter.module, stage / stages, stage, order), same_queries():
            changed = again()
        pairs = [(plain.maps[i], changed.maps[k]) for k, i in enumerate(objects)]
        rows.append(torch.stack([_where_any(a.flatten(), b.flatten().to(a)) for a, b in pairs]))
    return torch.stack(rows)


def _where_any(a: Tensor, b: Tensor) -> Tensor:
    """[] rank correlation over the cells where a or b is not zero."""
    nonzero = ((a != 0) | (b != 0)) & a.isfinite() & b.isfinite()
    if int(nonzero.sum()) < 2:
        return a.new_tensor(torch.nan)
    return rank_correlation(a[None, nonzero], b[None, nonzero])[0]
