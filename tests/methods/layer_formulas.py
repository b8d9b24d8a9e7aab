"""The formulas of methods that read a layer, in loops and NumPy: a map [h, w] from activations and gradients [C, h, w]."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

LayerFormula = Callable[[Tensor, Tensor], Tensor]


def pooled(weight: Callable[[list[float], list[float]], float]) -> LayerFormula:
    """Channels weighted by a function of their cells' activations and gradients."""

    def formula(acts: Tensor, grads: Tensor) -> Tensor:
        result = torch.zeros_like(acts[0])
        for a, g in zip(acts, grads, strict=True):
            result += weight(a.flatten().tolist(), g.flatten().tolist()) * a
        return result

    return formula


def cell_by_cell(term: Callable[[float, float], float]) -> LayerFormula:
    """The sum over channels of a function of one cell."""

    def formula(acts: Tensor, grads: Tensor) -> Tensor:
        result = torch.zeros_like(acts[0])
        channels, height, width = acts.shape
        for k in range(channels):
            for i in range(height):
                for j in range(width):
                    result[i, j] += term(float(acts[k, i, j]), float(grads[k, i, j]))
        return result

    return formula


def spatial(weight: Callable[[list[float], list[float]], float]) -> LayerFormula:
    """Like `pooled`, with each cell weighted by the size of its gradient as a share of the channel's largest."""

    def formula(acts: Tensor, grads: Tensor) -> Tensor:
        result = torch.zeros_like(acts[0])
        for a, g in zip(acts, grads, strict=True):
            result += weight(a.flatten().tolist(), g.flatten().tolist()) * a * g.abs() / g.abs().max()
        return result

    return formula


def gradcam_weight(a: list[float], g: list[float]) -> float:
    return sum(g) / len(g)


def gradcam_plus_plus_weight(a: list[float], g: list[float]) -> float:
    alphas = [0.0 if x == 0 else x**2 / (2 * x**2 + sum(a) * x**3) for x in g]
    return sum(alpha * max(x, 0.0) for alpha, x in zip(alphas, g, strict=True))


def xgradcam_weight(a: list[float], g: list[float]) -> float:
    return sum(x / sum(a) * y for x, y in zip(a, g, strict=True))


def fem_weight(a: list[float], g: list[float]) -> float:
    return sum(x > np.mean(a) + 2 * np.std(a) for x in a) / len(a)


def gcame(acts: Tensor, grads: Tensor, stride: float = 16.0) -> Tensor:
    channels, height, width = acts.shape
    row, column = divmod(int(grads.abs().sum(dim=0).argmax()), width)
    reach = max(math.floor((math.sqrt(height * width) - 1) / 2), 1)
    result = torch.zeros_like(acts[0])
    for k in range(channels):
        weight = float(grads[k].mean())
        sigma = max(abs(math.log(abs(weight))) * math.log(stride) * 3 / reach, 1)
        for i in range(height):
            for j in range(width):
                gaussian = math.exp(-((i - row) ** 2 + (j - column) ** 2) / (2 * sigma**2))
                result[i, j] += weight * gaussian * acts[k, i, j]
    return result


def principal(terms: Tensor, towards: Tensor) -> Tensor:
    """Cells of [C, h, w] projected on the first right singular vector, with the sign that grows with `towards`."""
    cells = terms.double().numpy().reshape(len(terms), -1).T
    centred = cells - cells.mean(axis=0)
    projection = torch.from_numpy(centred @ np.linalg.svd(centred, full_matrices=False)[2][0]).view(terms.shape[1:])
    return projection if float((projection * towards).sum()) > 0 else -projection


def kpcacam(acts: Tensor, grads: Tensor) -> Tensor:
    """Kernel PCA as in scikit-learn: the centred kernel's first eigenvector times the root of its eigenvalue."""
    cells = acts.double().numpy().reshape(len(acts), -1).T
    strength = np.abs(cells).sum(axis=1)
    cells = cells - cells.mean(axis=0)
    count = len(cells)
    kernel = np.tanh(cells @ cells.T / cells.shape[1] + 1)
    centring = np.eye(count) - np.full((count, count), 1 / count)
    values, vectors = np.linalg.eigh(centring @ kernel @ centring)
    projection = vectors[:, -1] * math.sqrt(max(values[-1], 0))
    return torch.from_numpy(projection * (1 if projection @ strength > 0 else -1)).view(acts.shape[1:])


def randomcam(acts: Tensor, grads: Tensor) -> Tensor:
    weights = torch.rand(len(acts), generator=torch.Generator().manual_seed(0)) * 2 - 1
    return sum((weight * channel for weight, channel in zip(weights, acts, strict=True)), torch.zeros_like(acts[0]))


LAYER_FORMULAS: dict[str, LayerFormula] = {
    "odam": cell_by_cell(lambda a, g: g * a),
    "hirescam": cell_by_cell(lambda a, g: g * a),
    "gradcam": pooled(gradcam_weight),
    "gradcam++": pooled(gradcam_plus_plus_weight),
    "xgradcam": pooled(xgradcam_weight),
    "layercam": cell_by_cell(lambda a, g: max(g, 0.0) * a),
    "cam": pooled(lambda a, g: sum(g)),  # where g is the same in all cells
    "shapleycam": pooled(gradcam_weight),  # its gradients come corrected, see test_shapley
    "finercam": pooled(gradcam_weight),  # its scalar is a contrast, see test_shapley
    "eigengradcam": lambda acts, grads: principal(acts * grads, (acts * grads).sum(dim=0)),
    "layerig": cell_by_cell(lambda a, g: g * a),  # of differences, see test_path
    "elementwise": cell_by_cell(lambda a, g: max(g * a, 0.0)),
    "ssgradcam": spatial(gradcam_weight),
    "ssgradcam++": spatial(gradcam_plus_plus_weight),
    "gcame": gcame,
    "eigencam": lambda acts, grads: principal(acts, acts.abs().sum(dim=0)),
    "kpcacam": kpcacam,
    "fem": pooled(fem_weight),
    "randomcam": randomcam,
}
