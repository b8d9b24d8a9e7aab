"""D-CLOSE: random masks of the image's superpixels, from coarse to fine."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from detcam.engine.sweeps import Probe
from detcam.errors import MethodError
from detcam.methods.base import MOST, Scalar, SweepMethod, parameter
from detcam.methods.perturbation import map_size


def segments(image: Tensor, count: int, adaptive: bool = False) -> Tensor:
    """[H, W] int64 from 0: about `count` superpixels of an image [3, H, W], by SLIC (Achanta et al. 2012).

    Args:
        image: the network's input.
        count: of superpixels.
        adaptive: each superpixel finds its own compactness (SLICO).

    Raises:
        MethodError: if scikit-image is not installed.
    """
    try:
        from skimage.segmentation import slic
    except ImportError:
        raise MethodError('superpixels: scikit-image is not installed: pip install "detcam[pixels]"') from None
    pixels = image.permute(1, 2, 0).float().cpu().numpy()
    low, high = float(pixels.min()), float(pixels.max())
    stretched = (pixels - low) / max(high - low, 1e-6)
    # Smoothed and compact: on noisy images scikit-image's defaults join everything into a single segment.
    labels = slic(stretched, n_segments=count, compactness=30, sigma=1, start_label=0, slic_zero=adaptive)
    return torch.from_numpy(np.ascontiguousarray(labels, dtype=np.int64)).to(image.device)


@dataclass(frozen=True)
class DCLOSE(SweepMethod):
    """D-CLOSE: D-RISE with masks of superpixels at several scales, fused from the coarsest to the finest.

    Truong et al. 2023, "Towards Better Explanations for Object Detection". The image is cut into superpixels (SLIC)
    `levels` times, twice as many each time. At each level random masks keep each segment with probability `kept`; the
    map is at each pixel the mean similarity to the object over the masks that show the pixel, which is the paper's
    division by the density map. Levels, each stretched to [0, 1], are fused as F <- (F + S) * S. The paper's
    masks have smoothed edges, ours are as the segments are.
    """

    masks: int = parameter(200, 1, MOST)
    levels: int = parameter(5, 1, 16)
    coarsest: int = parameter(50, 2, 100_000)
    kept: float = parameter(0.5, 0.01, 0.99)
    seed: int = parameter(0, 0, MOST)

    name = "dclose"
    formula = "F <- (F + S_l) * S_l, S_l = stretch(sum_m s_m M_m / sum_m M_m), M_m random superpixels of level l"
    source = "Truong et al. 2023, arXiv:2306.02744"
    reads = "forwards"
    passes = "(2 + levels masks) F"
    scalar: ClassVar[Scalar] = "similarity"

    def sweep(self, probe: Probe, layer: str) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        places, kept = [], []
        for level in range(self.levels):
            places.append(segments(probe.image, self.coarsest * 2**level))
            kept.append(torch.rand(self.masks, int(places[-1].max()) + 1, generator=generator) < self.kept)
        weighted = [torch.zeros((), device=probe.image.device)] * self.levels
        shown = list(weighted)
        for part in probe.batches(self.levels * self.masks):
            turns = [divmod(number, self.masks) for number in range(part.start, part.stop)]
            masks = torch.stack([kept[level][turn].to(places[level].device)[places[level]] for level, turn in turns])
            scores = probe.scores(probe.image * masks[:, None])
            coarse = adaptive_avg_pool2d(masks.float(), map_size(probe.size))
            for (level, _), score, mask in zip(turns, scores, coarse, strict=True):
                weighted[level] = weighted[level] + score[:, None, None] * mask
                shown[level] = shown[level] + mask
        fused = torch.zeros((), device=probe.image.device)
        for total, seen in zip(weighted, shown, strict=True):
            raw = total / seen.clamp(min=torch.finfo(torch.float32).tiny)
            low, high = raw.amin(dim=(1, 2), keepdim=True), raw.amax(dim=(1, 2), keepdim=True)
            stretched = (raw - low) / (high - low).clamp(min=torch.finfo(torch.float32).tiny)
            fused = (fused + stretched) * stretched
        return fused
