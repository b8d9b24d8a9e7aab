"""The formulas of sweeping methods: maps [N, h, w] of a setting's objects from plain forwards of the library's model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import captum.attr
import numpy as np
import torch
from skimage.segmentation import slic
from sweep_settings import LAYER, SIZE, Anchor, Setting, captured
from torch import Tensor
from torch.nn.functional import interpolate

from detcam import Explanation
from detcam.methods.perturbation import RandomMasks
from detcam.methods.similarity import LEAST

# ---- forwards of changed images ----


def blocks(masks: np.ndarray) -> np.ndarray:
    """[M, H, W] as means over 8 x 8 pixels."""
    m, height, width = masks.shape
    return masks.reshape(m, height // 8, 8, width // 8, 8).mean(axis=(2, 4))


def mean_scores(masks: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """[N, h, w]: for every cell the mean of scores [M, N] weighted by what the masks [M, H, W] show there."""
    coarse = blocks(masks)
    return np.einsum("mn,mhw->nhw", scores, coarse) / np.maximum(coarse.sum(axis=0), 1e-30)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    width = max(min(a[2], b[2]) - max(a[0], b[0]), 0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    both = width * height
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def similarities(setting: Setting, explanation: Explanation, masks: np.ndarray) -> np.ndarray:
    """[M, N]: D-RISE's equations 4 to 7 over all anchors, on boxes as Ultralytics decodes them."""
    objects = explanation.objects
    boxes = objects.network_boxes.double().numpy()
    own = setting.raw(setting.pixels)[0][4:, objects.index].T.numpy()  # [N, nc]
    scores = np.zeros((len(masks), len(objects)))
    for m, mask in enumerate(masks):
        rows = setting.raw(setting.pixels * torch.from_numpy(mask))[0].T.double().numpy()  # [A, 4 + nc]
        corners = np.concatenate([rows[:, :2] - rows[:, 2:4] / 2, rows[:, :2] + rows[:, 2:4] / 2], axis=1)
        for corner, p in zip(corners, rows[:, 4:], strict=True):
            if p.max() > LEAST:
                for n in range(len(objects)):
                    cosine = (p @ own[n]) / np.linalg.norm(p) / np.linalg.norm(own[n])
                    scores[m, n] = max(scores[m, n], overlap(boxes[n], corner) * cosine * p.max())
    return scores


def random_masks(method: Any) -> np.ndarray:
    draw = RandomMasks(method.masks, method.cells, method.kept, (64, SIZE), method.seed)
    return draw(slice(0, method.masks), torch.device("cpu")).double().numpy()


def rise(setting: Setting, explanation: Explanation, method: Any) -> Any:
    masks = random_masks(method)
    scores = [setting.logits(setting.pixels * torch.from_numpy(m), explanation).sigmoid().numpy() for m in masks]
    return mean_scores(masks, np.stack(scores))


def drise(setting: Setting, explanation: Explanation, method: Any) -> Any:
    masks = random_masks(method)
    return mean_scores(masks, similarities(setting, explanation, masks))


def dclose(setting: Setting, explanation: Explanation, method: Any) -> Any:
    """Masks of scikit-image's superpixels; levels stretched to [0, 1] and fused from coarse to fine."""
    generator = torch.Generator().manual_seed(method.seed)
    pixels = setting.pixels.permute(1, 2, 0).float().numpy()
    stretched = (pixels - pixels.min()) / (pixels.max() - pixels.min())
    labels = [
        slic(stretched, method.coarsest * 2**level, compactness=30, sigma=1, start_label=0)
        for level in range(method.levels)
    ]
    assert labels[0].max() < labels[-1].max()
    kept = [torch.rand(method.masks, int(places.max()) + 1, generator=generator).numpy() < 0.5 for places in labels]
    fused: Any = 0.0
    for places, chosen in zip(labels, kept, strict=True):
        masks = np.stack([segments[places] for segments in chosen]).astype(np.float64)
        level = mean_scores(masks, similarities(setting, explanation, masks))
        low, high = level.min(axis=(1, 2), keepdims=True), level.max(axis=(1, 2), keepdims=True)
        level = (level - low) / np.maximum(high - low, 1e-30)
        fused = (fused + level) * level
    return fused


def search(setting: Setting, explanation: Explanation, method: Any) -> Any:
    """One object and one superpixel at a time: hidden alone, then shown and hidden with those taken before."""
    pixels = setting.pixels.permute(1, 2, 0).float().numpy()
    stretched = (pixels - pixels.min()) / (pixels.max() - pixels.min())
    labels = slic(stretched, method.regions, compactness=30, sigma=1, start_label=0, slic_zero=True)
    count = int(labels.max()) + 1

    def scores(chosen: set[int]) -> np.ndarray:
        return similarities(setting, explanation, np.isin(labels, list(chosen))[None].astype(np.float64))[0]

    everything = set(range(count))
    whole = scores(everything)
    falls = np.stack([np.maximum(whole - scores(everything - {r}), 0) for r in range(count)], axis=1)
    starts = setting.explain("layerig", layers=[LAYER]).maps
    maps = []
    for n, box in enumerate(gaussian(setting, explanation, method)):
        start = interpolate(starts[n].clamp(min=0)[None, None], box.shape, mode="bilinear")[0, 0]
        fine = interpolate((box / box.max() + start / start.max())[None, None], labels.shape, mode="bilinear")[0, 0]
        means = np.array([fine.numpy()[labels == r].mean() for r in range(count)])
        ranking = means / means.max() + falls[n] / max(falls[n].max(), 1e-30)
        taken: list[int] = []
        alone = [0.0]
        for _ in range(method.steps):
            left = sorted(everything - set(taken), key=lambda r: -ranking[r])[: method.window]
            shown = [scores({*taken, r})[n] for r in left]
            gains = [s - scores(everything - {*taken, r})[n] for s, r in zip(shown, left, strict=True)]
            best = max(range(len(left)), key=lambda k: gains[k] - (k > 0) * 1e-3)
            taken.append(left[best])
            alone.append(max(alone[-1], shown[best]))
        missing = 1 - np.array(alone) / max(alone[-1], whole[n], 1e-6)
        order = taken + sorted(everything - set(taken), key=lambda r: -ranking[r])
        heat, rest = np.zeros(count), max(ranking[r] for r in order[len(taken) :])
        for place, r in enumerate(order):
            own = missing[place] if place < len(taken) else missing[-1] * ranking[r] / rest
            heat[r] = own + 0.01 * (1 - place / count)
        maps.append(blocks((heat[labels] + 0.01 / count * (fine / fine.max()).numpy())[None])[0])
    return maps


def occlusion(setting: Setting, explanation: Explanation, method: Any) -> Any:
    cells, patch, before = method.cells, method.patch, setting.logits(setting.pixels, explanation)
    rows, columns = ([round(i * side / cells) for i in range(cells + 1)] for side in (64, SIZE))
    drops, counts = np.zeros((len(explanation), cells, cells)), np.zeros((cells, cells))
    for i in range(cells - patch + 1):
        for j in range(cells - patch + 1):
            pixels = setting.pixels.clone()
            window = np.s_[:, rows[i] : rows[i + patch], columns[j] : columns[j + patch]]
            pixels[window] = setting.pixels.mean(dim=(1, 2))[:, None, None]
            fallen = (before - setting.logits(pixels, explanation)).numpy()
            drops[:, i : i + patch, j : j + patch] += fallen[:, None, None]
            counts[i : i + patch, j : j + patch] += 1
    return drops / counts


def through_channels(versions: Callable[[Tensor, Any], list[Tensor]]) -> Callable[[Setting, Explanation, Any], Any]:
    """Channels weighted by the softmax of the mean score of the image seen through versions of each channel's mask."""

    def formula(setting: Setting, explanation: Explanation, method: Any) -> Any:
        (acts,) = captured(setting, LAYER)
        masks = []
        for channel in acts:
            large = interpolate(channel[None, None], (64, SIZE), mode="bilinear")[0, 0]
            span = large.max() - large.min()
            masks.append((large - large.min()) / span if span > 0 else torch.zeros_like(large))
        scores = []
        for changed in versions(torch.stack(masks), method):
            with torch.no_grad():
                logits = setting.model(setting.pixels * changed[:, None])[1]["scores"]  # [C, nc, A]
            scores.append(logits[:, explanation.class_ids, explanation.objects.index].double().numpy())
        mean = np.mean(scores, axis=0)  # [C, N]
        powers = np.exp(mean - mean.max(axis=0))
        return np.einsum("cn,chw->nhw", powers / powers.sum(axis=0), acts.double().numpy())

    return formula


def noisy_masks(masks: Tensor, method: Any) -> list[Tensor]:
    generator = torch.Generator().manual_seed(method.seed)
    return [
        torch.stack([mask + method.deviation * torch.randn(64, SIZE, generator=generator) for mask in masks])
        for _ in range(method.samples)
    ]


def growing_masks(masks: Tensor, method: Any) -> list[Tensor]:
    return [masks * sum(range(1, i + 1)) / method.samples for i in range(1, method.samples + 1)]


# ---- forwards of the model's tail ----


@torch.no_grad()
def logits_with(setting: Setting, explanation: Explanation, values: dict[str, Tensor]) -> Tensor:
    """[b, N]: logits of whole forwards in which plain hooks put other activations [b or 1, C, h, w] at some layers."""
    count = max(len(v) for v in values.values())
    handles = [
        setting.model.get_submodule(name).register_forward_hook(lambda m, a, o, v=v: v.expand(count, -1, -1, -1))
        for name, v in values.items()
    ]
    try:
        logits = setting.model(setting.pixels.expand(count, -1, -1, -1))[1]["scores"]
    finally:
        for handle in handles:
            handle.remove()
    return logits[:, explanation.class_ids, explanation.objects.index]


def ablationcam(setting: Setting, explanation: Explanation, method: Any) -> Any:
    (acts,) = captured(setting, LAYER)
    ablated = acts.repeat(len(acts), 1, 1, 1)
    for k in range(len(acts)):
        ablated[k, k] = 0
    before, after = setting.logits(setting.pixels, explanation), logits_with(setting, explanation, {LAYER: ablated})
    return torch.einsum("cn,chw->nhw", (before - after) / before.abs(), acts)


def reciprocam(setting: Setting, explanation: Explanation, method: Any) -> Any:
    (acts,) = captured(setting, LAYER)
    rows, columns = (
        [round(i * side / min(side, method.cells)) for i in range(min(side, method.cells) + 1)]
        for side in acts.shape[1:]
    )
    height, width = len(rows) - 1, len(columns) - 1
    kept = torch.zeros(1 + height * width, *acts.shape, dtype=acts.dtype)  # the first keeps nothing
    for i in range(height):
        for j in range(width):
            cell = np.s_[:, rows[i] : rows[i + 1], columns[j] : columns[j + 1]]
            kept[1 + i * width + j][cell] = acts[cell]
    scores = logits_with(setting, explanation, {LAYER: kept})
    return (scores[1:] - scores[0]).T.reshape(len(explanation), height, width)


# ---- gradients at the pixels ----


def scalars(setting: Setting, explanation: Explanation) -> list[Callable[[Tensor], Tensor]]:
    """Each object's class logit, images [b, 3, H, W] -> [b], from the library's own forward."""
    model = Anchor(setting.model)
    places = zip(explanation.class_ids.tolist(), explanation.objects.index.tolist(), strict=True)
    return [lambda pixels, c=c, a=a: model(pixels)[:, c, a] for c, a in places]


def gradient(score: Callable[[Tensor], Tensor], pixels: Tensor) -> Tensor:
    """[3, H, W]"""
    leaf = pixels.clone()[None].requires_grad_()
    return torch.autograd.grad(score(leaf).sum(), leaf)[0][0]


def of_each(one: Callable[[Setting, Callable[[Tensor], Tensor], Any], Tensor]) -> Callable[..., Tensor]:
    """[N, H, W]: what `one` makes of each object's scalar."""
    return lambda setting, explanation, method: torch.stack(
        [one(setting, score, method) for score in scalars(setting, explanation)]
    )


def noises(setting: Setting, method: Any) -> list[Tensor]:
    generator = torch.Generator().manual_seed(method.seed)
    strength = method.deviation * float(setting.pixels.max() - setting.pixels.min())
    return [strength * torch.randn(setting.pixels.shape, generator=generator).double() for _ in range(method.samples)]


def smoothgrad(setting: Setting, score: Callable[[Tensor], Tensor], method: Any) -> Tensor:
    found = [gradient(score, setting.pixels + noise) for noise in noises(setting, method)]
    return torch.stack(found).mean(dim=0).abs().amax(dim=0)


def integrated(setting: Setting, score: Callable[[Tensor], Tensor], method: Any) -> Tensor:
    found = captum.attr.IntegratedGradients(score).attribute(setting.pixels[None], n_steps=method.steps)
    return found[0].sum(dim=0).detach()


def mean_powers(setting: Setting, explanation: Explanation, method: Any) -> tuple[Tensor, list[Any]]:
    """Activations [C, h, w], and the means of g, g^2 and g^3 [N, C, h, w] over noisy images, from whole forwards."""
    model, kept = Anchor(setting.model), []
    model.model.get_submodule(LAYER).register_forward_hook(lambda module, args, out: kept.append(out))
    powers: list[Any] = [0.0, 0.0, 0.0]
    for noise in noises(setting, method):
        logits = model((setting.pixels + noise)[None].requires_grad_())[0]
        scores = logits[explanation.class_ids, explanation.objects.index]
        grads = torch.stack([torch.autograd.grad(score, kept[-1], retain_graph=True)[0][0] for score in scores])
        powers = [total + grads**power / method.samples for power, total in enumerate(powers, start=1)]
    model(setting.pixels[None])
    return kept[-1].detach()[0], powers


def smooth_grad_cam_plus_plus(setting: Setting, explanation: Explanation, method: Any) -> Tensor:
    acts, (first, second, third) = mean_powers(setting, explanation, method)
    expected = torch.zeros(len(explanation), *acts.shape[1:], dtype=torch.float64)
    for i in range(len(explanation)):
        for k in range(len(acts)):
            alpha = second[i, k] / (2 * second[i, k] + acts[k].sum() * third[i, k] + 1e-6)
            expected[i] += (alpha * first[i, k].clamp(min=0)).sum() * acts[k]
    return expected


def rounding_near_poles(setting: Setting, explanation: Explanation, method: Any) -> Tensor:
    """[N, h, w]: how far float32 may move the maps of Smooth Grad-CAM++, whose quotient amplifies it near its poles."""
    acts, (first, second, third) = mean_powers(setting, explanation, method)
    terms = 2 * second + acts.abs().sum(dim=(1, 2))[:, None, None] * third.abs()
    denominator = 2 * second + acts.sum(dim=(1, 2))[:, None, None] * third + 1e-6
    weights = (second * first.clamp(min=0) * terms / denominator**2).sum(dim=(2, 3))
    return 32 * torch.finfo(torch.float32).eps * torch.einsum("nc,chw->nhw", weights, acts.abs())


# ---- of the boxes alone ----


def filled_box(setting: Setting, explanation: Explanation, method: Any) -> Any:
    """The share of each cell of 8 x 8 pixels that the box covers."""
    maps = np.zeros((len(explanation), 8, SIZE // 8))
    for n, (x1, y1, x2, y2) in enumerate(explanation.objects.network_boxes.tolist()):
        across = [max(min(x2, 8 * j + 8) - max(x1, 8 * j), 0) / 8 for j in range(SIZE // 8)]
        down = [max(min(y2, 8 * i + 8) - max(y1, 8 * i), 0) / 8 for i in range(8)]
        maps[n] = np.outer(down, across)
    return maps


def gaussian(setting: Setting, explanation: Explanation, method: Any) -> Any:
    y, x = torch.meshgrid(torch.arange(8) * 8 + 4.0, torch.arange(12) * 8 + 4.0, indexing="ij")
    maps = []
    for x1, y1, x2, y2 in explanation.objects.network_boxes.tolist():
        sx, sy = max((x2 - x1) / 4, 1), max((y2 - y1) / 4, 1)
        maps.append(torch.exp(-(((x - (x1 + x2) / 2) / sx) ** 2 + ((y - (y1 + y2) / 2) / sy) ** 2) / 2))
    return torch.stack(maps)


SWEEP_FORMULAS: dict[str, Callable[[Setting, Explanation, Any], Any]] = {
    "rise": rise,
    "drise": drise,
    "dclose": dclose,
    "search": search,
    "occlusion": occlusion,
    "scorecam": through_channels(lambda masks, method: [masks]),
    "sscam": through_channels(noisy_masks),
    "iscam": through_channels(growing_masks),
    "ablationcam": ablationcam,
    "reciprocam": reciprocam,
    "smoothgradcam++": smooth_grad_cam_plus_plus,
    "gradient": of_each(lambda setting, score, method: gradient(score, setting.pixels).abs().amax(dim=0)),
    "gradientxinput": of_each(
        lambda setting, score, method: (gradient(score, setting.pixels) * setting.pixels).sum(dim=0)
    ),
    "smoothgrad": of_each(smoothgrad),
    "integratedgradients": of_each(integrated),
    "captum": of_each(lambda setting, score, method: (gradient(score, setting.pixels) * setting.pixels).sum(dim=0)),
    "box": filled_box,
    "gaussian": gaussian,
}
