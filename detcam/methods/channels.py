"""Methods that change the activations at a layer and read the score: forwards of the model's tail only."""

from dataclasses import dataclass

import torch
from torch import Tensor

from detcam.engine.sweeps import Probe
from detcam.methods.base import SweepMethod, parameter
from detcam.methods.perturbation import edges

EPSILON = 1e-6  # keeps the quotient finite where a score is zero


class AblationCAM(SweepMethod):
    """Ablation-CAM: each channel is weighted by the drop of the score without it.

    Desai & Ramaswamy 2020, "Ablation-CAM: Visual Explanations for Deep Convolutional Network via Gradient-free
    Localization", equations 3 and 4. The paper divides by the score, which is positive there; a detector's logit may
    be negative, and here its absolute value divides: a channel whose removal lowers the score always counts positively.
    """

    name = "ablationcam"
    formula = "ReLU(sum_k w_k A_k), w_k = (S - S with A_k = 0) / |S|"
    source = "Desai & Ramaswamy 2020, WACV, eq. 3-4"
    reads = "activations, forwards"
    passes = "2 F + (2 L + C) T, C the channels of all L layers"
    layers = "evidence"

    def sweep(self, probe: Probe, layer: str) -> Tensor:
        acts, tail = probe.layers[layer], probe.tail(layer)
        drops = []
        for part in probe.batches(len(acts)):
            channels = torch.arange(part.start, part.stop, device=acts.device)
            changed = acts.repeat(len(channels), 1, 1, 1)  # [b, C, h, w]
            changed[torch.arange(len(channels)), channels] = 0
            drops.append(probe.unchanged - tail(changed))
        weights = torch.cat(drops) / probe.unchanged.abs().clamp(min=EPSILON)  # [C, M]
        return torch.einsum("cm,chw->mhw", weights, acts)


@dataclass(frozen=True)
class ReciproCAM(SweepMethod):
    """Recipro-CAM: the score with all cells of the layer zero except one.

    Byun & Lee 2022, "Recipro-CAM: Fast gradient-free visual explanations for convolutional neural networks",
    equations 1 to 3. Only the rise over the score of a layer of zeros is kept: a detector's logits are mostly negative,
    and the ReLU would leave nothing of them. A layer with more than `cells` rows or columns is cut into that many
    even blocks, which are kept one at a time.
    """

    cells: int = parameter(20, 1, 1024)

    name = "reciprocam"
    formula = "S(A, zero but in the cell) - S(A = 0)"
    source = "Byun & Lee 2022, arXiv:2209.14074, eq. 1-3"
    reads = "activations, forwards"
    passes = "2 F + sum over layers of (3 + min(h, cells) min(w, cells)) T"
    layers = "evidence"

    def sweep(self, probe: Probe, layer: str) -> Tensor:
        acts, tail = probe.layers[layer], probe.tail(layer)
        rows, columns = (edges(side, min(side, self.cells)).tolist() for side in acts.shape[1:])
        height, width = len(rows) - 1, len(columns) - 1
        nothing = tail(torch.zeros_like(acts)[None])
        rises = []
        for part in probe.batches(height * width):
            kept = acts.new_zeros(part.stop - part.start, *acts.shape)
            for alone, place in zip(kept, range(part.start, part.stop), strict=True):
                i, j = divmod(place, width)
                cell = (..., slice(rows[i], rows[i + 1]), slice(columns[j], columns[j + 1]))
                alone[cell] = acts[cell]
            rises.append(tail(kept) - nothing)
        return torch.cat(rises).T.reshape(-1, height, width)
