"""Search: superpixels in the order in which they bring an object back alone, and take it away when they are hidden."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from detcam.engine.sweeps import Probe
from detcam.methods.base import AnyMethod, Scalar, SweepMethod, parameter
from detcam.methods.baseline import BoxGaussian
from detcam.methods.path import LayerIG
from detcam.methods.perturbation import map_size
from detcam.methods.superpixels import segments

CLEAR = 1e-3  # by how much a superpixel must beat the first of the ranking: rounding shall not decide
FINE = 1e-2  # the part of the heat that follows the order alone
LEAST = 1e-6  # of s, which may be 0 throughout


@dataclass(frozen=True)
class Search(SweepMethod):
    """Seeded search over superpixels, after Visual Precision Search and PhaseWin.

    Chen et al. 2025, "Interpreting Object-level Foundation Models via Visual Precision Search": superpixels (SLICO) are
    taken one by one, each time the one r with the largest s(S + r shown alone) - s(S + r hidden), S those taken before
    and s the similarity of D-RISE. Scoring all that are left at each step takes R^2 + R forwards for R superpixels;
    Gu et al. 2026, "PhaseWin", score a window of the best. Here the first ranking adds up three parts: the mean over
    each superpixel of `layerig` and of a Gaussian in the box, and the fall of s when the superpixel alone is hidden, by
    forwards that all objects share. At each of `steps` steps the first `window` of the ranking are scored. Where the
    model has no gradients, the ranking does without `layerig`.

    The heat of a superpixel is the part of s that those before it leave missing; those that are not searched share the
    last of it, by the ranking. Within a superpixel heat follows the maps a little.
    """

    regions: int = parameter(50, 2, 1000)
    steps: int = parameter(8, 1, 1000)
    window: int = parameter(2, 1, 1000)

    name = "search"
    formula = "1 - s(S) / max s, S the superpixels before; next: argmax_r s(S + r shown alone) - s(S + r hidden)"
    source = "Chen et al. 2025, CVPR, arXiv:2411.16198, alg. 1; Gu et al. 2026, CVPR, arXiv:2511.10914"
    reads = "gradients, forwards"
    passes = "(5 + regions + 2 steps window N) F + N B"
    scalar: ClassVar[Scalar] = "match"
    starts_from: ClassVar[AnyMethod | None] = LayerIG()

    def sweep(self, probe: Probe, layer: str) -> Tensor:
        labels = segments(probe.image, self.regions, adaptive=True)
        n, count = len(probe.objects), int(labels.max()) + 1
        trials = Trials(probe, labels, count + 2 * self.steps * self.window * n)
        whole = probe.unchanged.view(n, -1).mean(dim=1)  # [N]
        alone = torch.eye(count, dtype=torch.bool, device=labels.device)
        fall = (whole - trials(~alone)).T.clamp(min=0)  # [N, R]

        maps = _scaled(BoxGaussian().sweep(probe, ""))
        if probe.starts:
            starts = [_resized(start.clamp(min=0)[None], maps.shape[1:]) for start in probe.starts]
            maps = maps + _scaled(torch.cat(starts))
        fine = _resized(maps, probe.size)  # [N, H, W]
        sums = torch.zeros(n, count, device=labels.device).index_add_(1, labels.flatten(), fine.flatten(1))
        means = sums / torch.bincount(labels.flatten(), minlength=count)
        order, missing = self._searched(trials, _scaled(means) + _scaled(fall), whole)

        places = order.argsort(dim=1)  # [N, R] from 0 for the superpixel that was taken first
        heat = missing.gather(1, places) + FINE * (1 - places / count)
        heat = heat[:, labels] + FINE / count * _scaled(fine)
        return adaptive_avg_pool2d(heat, map_size(probe.size))

    def _searched(self, trials: Trials, ranking: Tensor, whole: Tensor) -> tuple[Tensor, Tensor]:
        """The order of the superpixels [N, R], and the part of s that is missing [N, R] before each of them.

        Args:
            trials: scores of the image of which some superpixels are shown.
            ranking: [N, R] where the search looks first, at least 0.
            whole: [N] s of the whole image.
        """
        n, count = ranking.shape
        steps, window = min(self.steps, count - 1), min(self.window, count)
        alone = torch.eye(count, dtype=torch.bool, device=ranking.device)
        taken = torch.zeros_like(ranking, dtype=torch.bool)
        order = torch.zeros(n, 0, dtype=torch.int64, device=ranking.device)
        reached = ranking.new_zeros(n, 1)  # [N, steps + 1] s with those taken so far shown alone
        late = CLEAR * (torch.arange(window, device=ranking.device) > 0)[:, None]
        for _ in range(steps):
            first = ranking.masked_fill(taken, -1).topk(window, dim=1).indices  # [N, w]
            shown = taken[:, None] | alone[first]  # [N, w, R]
            s = trials(torch.stack([shown, ~shown], dim=2).flatten(0, 2))
            s = s.view(n, window, 2, n).diagonal(dim1=0, dim2=3)  # [w, 2, N], each object's own
            best = (s[:, 0] - s[:, 1] - late).argmax(dim=0)[:, None]  # [N, 1]
            order = torch.cat([order, first.gather(1, best)], dim=1)
            reached = torch.cat([reached, s[:, 0].T.gather(1, best)], dim=1)
            taken.scatter_(1, order[:, -1:], value=True)
        left = ranking.masked_fill(taken, -1).sort(dim=1, descending=True)
        highest = torch.maximum(reached.amax(dim=1), whole).clamp(min=LEAST)[:, None]
        missing = 1 - reached.cummax(dim=1).values / highest
        rest = missing[:, -1:] * _scaled(left.values[:, : count - steps])
        return torch.cat([order, left.indices[:, : count - steps]], 1), torch.cat([missing[:, :-1], rest], 1)


class Trials:
    """Scores of an image of which only some superpixels are shown; the others are zero.

    Args:
        probe: the image, its N objects, and the model.
        labels: [H, W] int64, the superpixels.
        total: forwards of the whole sweep, for its progress.
    """

    def __init__(self, probe: Probe, labels: Tensor, total: int) -> None:
        self._probe, self._labels, self._total, self._done = probe, labels, total, 0

    def __call__(self, shown: Tensor) -> Tensor:
        """[b, N] scores for `shown` [b, R] bool."""
        start, n = self._done, len(self._probe.objects)
        self._done += len(shown)
        scores = []
        for part in self._probe.batches(self._total, start, self._done):
            masks = shown[part.start - start : part.stop - start, self._labels]
            scores.append(self._probe.scores(self._probe.image * masks[:, None]))
        return torch.cat(scores).unflatten(1, (n, -1)).mean(dim=2)


def _scaled(values: Tensor) -> Tensor:
    """Values [N, ...] divided by each row's maximum."""
    highest = values.flatten(1).amax(dim=1).clamp(min=torch.finfo(values.dtype).tiny)
    return values / highest.view(-1, *(1,) * (values.ndim - 1))


def _resized(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    return interpolate(maps[:, None], size, mode="bilinear")[:, 0]
