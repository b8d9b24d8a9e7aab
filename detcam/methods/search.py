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
        """See `SweepMethod.sweep`."""
        labels = segments(probe.image, self.regions, adaptive=True)
        n, count = len(probe.objects), int(labels.max()) + 1
        steps, window = min(self.steps, count - 1), min(self.window, count)
        total = count + 2 * steps * window * n
        everything = torch.eye(count, dtype=torch.bool, device=labels.device)

        def scores(shown: Tensor, start: int) -> Tensor:
            """[b, N] scores of the image with only some superpixels [b, R] shown."""
            parts = probe.batches(total, start, start + len(shown))
            masks = (shown[part.start - start : part.stop - start, labels][:, None] for part in parts)
            return torch.cat([probe.scores(probe.image * m) for m in masks]).unflatten(1, (n, -1)).mean(dim=2)

        whole = probe.unchanged.view(n, -1).mean(dim=1)  # [N]
        fall = (whole - scores(~everything, 0)).T.clamp(min=0)  # [N, R]
        maps = _scaled(BoxGaussian().sweep(probe, ""))
        if probe.starts:
            maps = maps + _scaled(
                torch.stack([_resized(m.clamp(min=0)[None], maps.shape[1:])[0] for m in probe.starts])
            )
        fine = _resized(maps, probe.size).flatten(1)
        sizes = torch.bincount(labels.flatten(), minlength=count)
        means = torch.zeros(n, count, device=labels.device).index_add_(1, labels.flatten(), fine) / sizes
        ranking = _scaled(means) + _scaled(fall)

        taken = torch.zeros(n, count, dtype=torch.bool, device=labels.device)
        order = ranking.new_zeros(n, 0, dtype=torch.int64)
        reached = ranking.new_zeros(n, 1)  # [N, steps + 1] s with the superpixels taken so far shown alone
        late = CLEAR * (torch.arange(window, device=labels.device) > 0)
        for step in range(steps):
            first = ranking.masked_fill(taken, -1).topk(window, dim=1).indices  # [N, w]
            shown = taken[:, None] | everything[first]  # [N, w, R]
            both = torch.stack([shown, ~shown], dim=2).flatten(0, 2)
            s = scores(both, count + 2 * step * window * n).view(n, window, 2, n).diagonal(dim1=0, dim2=3)  # [w, 2, N]
            best = (s[:, 0] - s[:, 1] - late[:, None]).argmax(dim=0)[:, None]  # [N, 1]
            order = torch.cat([order, first.gather(1, best)], dim=1)
            reached = torch.cat([reached, s[:, 0].T.gather(1, best)], dim=1)
            taken.scatter_(1, order[:, -1:], value=True)

        peak = torch.maximum(reached.amax(dim=1), whole).clamp(min=1e-6)[:, None]
        missing = 1 - reached.cummax(dim=1).values / peak  # [N, steps + 1]
        heat = missing[:, -1:] * _scaled(ranking.masked_fill(taken, 0))
        heat = heat.scatter(1, order, missing[:, :-1])
        ranks = ranking.masked_fill(taken, -1).argsort(dim=1, descending=True)[:, : count - steps]
        places = torch.cat([order, ranks], dim=1).argsort(dim=1)  # [N, R] from 0 for the first
        heat = heat + FINE * (1 - places / count)
        heat = heat[:, labels] + FINE / count * _scaled(fine).view(n, *probe.size)
        return adaptive_avg_pool2d(heat, map_size(probe.size))


def _scaled(values: Tensor) -> Tensor:
    """Values [N, ...] divided by each row's maximum."""
    highest = values.flatten(1).amax(dim=1).clamp(min=torch.finfo(values.dtype).tiny)
    return values / highest.view(-1, *(1,) * (values.ndim - 1))


def _resized(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    return interpolate(maps[:, None], size, mode="bilinear")[:, 0]
