"""Methods that mask the image and read the scores: M whole forwards, shared by all objects."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, conv_transpose2d, interpolate

from detcam.engine.sweeps import Probe
from detcam.methods.base import MOST, Scalar, SweepMethod, parameter

CELL = 8  # network pixels per cell of a map that could be as fine as the input


def map_size(size: tuple[int, int]) -> tuple[int, int]:
    """(h, w) of a fine map over an input of `size` pixels."""
    return max(size[0] // CELL, 1), max(size[1] // CELL, 1)


def edges(pixels: int, cells: int) -> Tensor:
    """[cells + 1] int64: where `cells` even pieces of `pixels` begin and end."""
    return torch.linspace(0, pixels, cells + 1).round().long()


class RandomMasks:
    """Smooth random masks: coarse random grids, enlarged, each shifted by less than a cell (RISE, section 3.2).

    All masks are drawn at once from the seed and do not depend on the batches.
    """

    def __init__(self, count: int, cells: int, kept: float, size: tuple[int, int], seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._size = size
        self._cell = math.ceil(size[0] / cells), math.ceil(size[1] / cells)
        self._enlarged = [(cells + 1) * side for side in self._cell]
        self._grids = (torch.rand(count, cells, cells, generator=generator) < kept).float()
        shifts = torch.rand(count, 2, generator=generator) * torch.tensor(self._cell)
        self._shifts: list[list[int]] = shifts.long().tolist()

    def __call__(self, part: slice, device: torch.device) -> Tensor:
        """[b, H, W] float32 in [0, 1]."""
        large = interpolate(self._grids[part].to(device)[:, None], self._enlarged, mode="bilinear")[:, 0]
        height, width = self._size
        shifts = self._shifts[part]
        return torch.stack([m[y : y + height, x : x + width] for m, (y, x) in zip(large, shifts, strict=True)])


@dataclass(frozen=True)
class RISE(SweepMethod):
    """RISE: for each cell the mean score over random masks of the image, weighted by the masks' values there.

    Petsiuk et al. 2018, "RISE: Randomized Input Sampling for Explanation of Black-box Models", equation 4. The paper
    takes 4000 to 8000 masks and divides by their expected sum (equation 6); we divide by the sum of the masks drawn,
    which has the same limit and removes the noise of how often a cell happens to be shown. The score is the
    probability at the object's anchor: a mask that hides the object counts little.
    """

    masks: int = parameter(1000, 1, MOST)
    cells: int = parameter(7, 1, 1024)
    kept: float = parameter(0.5, 0.01, 0.99)
    seed: int = parameter(0, 0, MOST)

    name = "rise"
    formula = "sum_m S(x * M_m) M_m / sum_m M_m, M_m random masks, S the probability"
    source = "Petsiuk et al. 2018, arXiv:1806.07421, eq. 4"
    reads = "forwards"
    passes = "(2 + masks) F"
    scalar: ClassVar[Scalar] = "prob"

    def sweep(self, probe: Probe, layer: str) -> Tensor:
        draw = RandomMasks(self.masks, self.cells, self.kept, probe.size, self.seed)
        device = probe.image.device
        weighted = shown = torch.zeros((), device=device)
        for part in probe.batches(self.masks):
            masks = draw(part, device)
            scores = probe.scores(probe.image * masks[:, None])
            coarse = adaptive_avg_pool2d(masks, map_size(probe.size))
            weighted = weighted + torch.einsum("bm,bhw->mhw", scores, coarse)
            shown = shown + coarse.sum(dim=0)
        return weighted / shown.clamp(min=torch.finfo(torch.float32).tiny)


@dataclass(frozen=True)
class DRISE(RISE):
    """D-RISE: RISE with the similarity of the most similar prediction in place of a class score.

    Petsiuk et al. 2021, "Black-box Explanation of Object Detectors via Saliency Maps", section 3.2; the paper takes
    5000 masks. A model without objectness gives its largest class probability: without either, anchors with a
    confidence of 1e-5 would count like any other.
    """

    cells: int = parameter(16, 1, 1024)

    name = "drise"
    formula = "sum_m s_m M_m / sum_m M_m, s_m = max over predictions of IoU * cos(p, p_object) * confidence"
    source = "Petsiuk et al. 2021, arXiv:2006.03204, eq. 4-7"
    scalar = "similarity"


@dataclass(frozen=True)
class Occlusion(SweepMethod):
    """Occlusion: the drop of the score when a patch is painted over, averaged over the patches that cover a cell.

    Zeiler & Fergus 2014, "Visualizing and Understanding Convolutional Networks", section 4.2. The paint is the mean
    colour of the network's input. A patch is `patch` cells high and wide and moves by one cell.
    """

    cells: int = parameter(20, 1, 1024)
    patch: int = parameter(2, 1, 1024)

    name = "occlusion"
    formula = "mean over patches P that cover the cell of S(x) - S(x painted over in P)"
    source = "Zeiler & Fergus 2014, arXiv:1311.2901, sec. 4.2"
    reads = "forwards"
    passes = "(2 + (cells - patch + 1)^2) F"

    def sweep(self, probe: Probe, layer: str) -> Tensor:
        patch = min(self.patch, self.cells)
        steps = self.cells - patch + 1
        rows, columns = (edges(pixels, self.cells).tolist() for pixels in probe.size)
        paint = probe.image.mean(dim=(1, 2))[:, None, None]
        drops = []
        for part in probe.batches(steps**2):
            images = probe.image.repeat(part.stop - part.start, 1, 1, 1)
            for image, place in zip(images, range(part.start, part.stop), strict=True):
                i, j = divmod(place, steps)
                image[:, rows[i] : rows[i + patch], columns[j] : columns[j + patch]] = paint
            drops.append(probe.unchanged - probe.scores(images))
        fallen = torch.cat(drops).T.reshape(-1, 1, steps, steps)  # [M, 1, steps, steps]
        window = fallen.new_ones(1, 1, patch, patch)
        return (conv_transpose2d(fallen, window) / conv_transpose2d(torch.ones_like(fallen[:1]), window))[:, 0]


@dataclass(frozen=True)
class ScoreCAM(SweepMethod):
    """Score-CAM: each channel is weighted by the score of the image masked with it.

    Wang et al. 2020, "Score-CAM: Score-Weighted Visual Explanations for Convolutional Neural Networks", definition 3
    and equations 6 to 8. The score of the baseline image, the same for every channel, cancels in the softmax.
    """

    name = "scorecam"
    formula = "ReLU(sum_k w_k A_k), w = softmax_k(S(x * H_k)), H_k = A_k enlarged, min-max"
    source = "Wang et al. 2020, arXiv:1910.01279, eq. 6-8"
    reads = "activations, forwards"
    passes = "(2 + C) F, C the channels of all layers"
    layers = "evidence"

    def mask(self, mask: Tensor, version: int, generator: torch.Generator) -> Tensor:
        """One version of a channel's mask [H, W]."""
        return mask

    def sweep(self, probe: Probe, layer: str) -> Tensor:
        acts, samples = probe.layers[layer], getattr(self, "samples", 1)  # masks made from each channel
        generator = torch.Generator().manual_seed(getattr(self, "seed", 0))
        scores = []
        for part in probe.batches(samples * len(acts)):
            turns = [divmod(number, len(acts)) for number in range(part.start, part.stop)]  # (version, channel)
            masks = channel_masks(acts[[channel for _, channel in turns]], probe.size)
            versions = [self.mask(mask, turn, generator) for mask, (turn, _) in zip(masks, turns, strict=True)]
            scores.append(probe.scores(probe.image * torch.stack(versions)[:, None]))
        mean = torch.cat(scores).unflatten(0, (samples, len(acts))).mean(dim=0)  # [C, M]
        return torch.einsum("cm,chw->mhw", mean.softmax(dim=0), acts)


def channel_masks(acts: Tensor, size: tuple[int, int]) -> Tensor:
    """Channels [b, h, w] enlarged to [b, H, W] and stretched to [0, 1]; a constant channel gives 0."""
    large = interpolate(acts[:, None], size, mode="bilinear")[:, 0]
    low, high = large.amin(dim=(1, 2), keepdim=True), large.amax(dim=(1, 2), keepdim=True)
    return (large - low) / (high - low + 1e-8)


@dataclass(frozen=True)
class SSCAM(ScoreCAM):
    """SS-CAM: Score-CAM with noise on every channel's mask, averaged.

    Wang et al. 2020, "SS-CAM: Smoothed Score-CAM for Sharper Visual Feature Localization", algorithm 1, smoothing on
    the feature map. The paper takes 35 samples with deviation 2.
    """

    samples: int = parameter(5, 1, MOST)
    deviation: float = parameter(2.0, 0.0, 1e6)
    seed: int = parameter(0, 0, MOST)

    name = "sscam"
    formula = "ReLU(sum_k w_k A_k), w = softmax_k(mean_i S(x * (H_k + noise_i)))"
    source = "Wang et al. 2020, arXiv:2006.14255, alg. 1"
    passes = "(2 + samples C) F, C the channels of all layers"

    def mask(self, mask: Tensor, version: int, generator: torch.Generator) -> Tensor:
        return mask + self.deviation * torch.randn(mask.shape, generator=generator).to(mask.device)


@dataclass(frozen=True)
class ISCAM(ScoreCAM):
    """IS-CAM: Score-CAM with the score integrated while the mask grows.

    Naidu et al. 2020, "IS-CAM: Integrated Score-CAM for axiomatic-based explanations", equations 6 to 8: the i-th
    mask is (1 + 2 + ... + i) / samples times the channel's.
    """

    samples: int = parameter(10, 1, MOST)

    name = "iscam"
    formula = "ReLU(sum_k w_k A_k), w = softmax_k(mean_i S(x * H_k (1 + ... + i) / samples))"
    source = "Naidu et al. 2020, arXiv:2010.03023, eq. 6-8"
    passes = "(2 + samples C) F, C the channels of all layers"

    def mask(self, mask: Tensor, version: int, generator: torch.Generator) -> Tensor:
        return mask * ((version + 1) * (version + 2) / 2 / self.samples)
