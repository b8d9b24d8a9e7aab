"""Methods that read activations only: all objects of an image share one map, and a note says so."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, normalize

from detcam.methods.base import MOST, Method, parameter
from detcam.methods.components import first_component, first_kernel_component

MOST_CELLS = 6400  # of a map whose kernel is held: 80 x 80 cells take 330 MB


class SharedMethod(Method):
    """A method that gives all objects of an image one map."""

    reads = "activations"
    object_specific = False
    passes = "1 F"


def vectors_of(maps: Tensor) -> Tensor:
    """Maps [n, C, h, w] as one vector for each cell: [n, hw, C] float64."""
    return maps.flatten(2).transpose(1, 2).double()


class EigenCAM(SharedMethod):
    """Eigen-CAM: the activations projected on their first principal component.

    Muhammad & Yeasin 2020, "Eigen-CAM: Class Activation Map using Principal Components", equation 4, on activations
    centred per channel. The sign of a principal component is arbitrary: here the projection grows with the strength of
    the activations (sum_k |A_k|).
    """

    name = "eigencam"
    formula = "ReLU(+-(A - mean_ij(A)) v), v = first principal component of A"
    source = "Muhammad & Yeasin 2020, arXiv:2008.00299, eq. 4"

    def maps(self, acts: Tensor, grads: Tensor | None) -> Tensor:
        cells = vectors_of(acts)
        return first_component(cells, cells.abs().sum(dim=2)).to(acts.dtype).view(len(acts), *acts.shape[2:])


class KPCACAM(SharedMethod):
    """KPCA-CAM: the activations projected on their first principal component in the space of a sigmoid kernel.

    Karmani et al. 2024, "KPCA-CAM: Visual Explainability of Deep Computer Vision Models using Kernel PCA", with the
    sigmoid kernel of its experiments, on activations centred per channel: tanh(<a, b> / C + 1). The sign is that of
    Eigen-CAM. A kernel has a row and a column for every cell, so maps of more than 6400 cells are halved until the
    kernel fits.
    """

    name = "kpcacam"
    formula = "ReLU(+-sqrt(l) u), (l, u) = first eigenpair of tanh(A A^T / C + 1), centred"
    source = "Karmani et al. 2024, arXiv:2410.00267"

    def maps(self, acts: Tensor, grads: Tensor | None) -> Tensor:
        while acts.shape[2] * acts.shape[3] > MOST_CELLS:
            acts = avg_pool2d(acts, 2, ceil_mode=True)
        cells = vectors_of(acts).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        strength = cells.abs().sum(dim=2)
        cells = cells - cells.mean(dim=1, keepdim=True)
        maps = [
            first_kernel_component(torch.tanh(vectors @ vectors.T / vectors.shape[1] + 1), towards)
            for vectors, towards in zip(cells, strength, strict=True)
        ]
        return torch.stack(maps).to(acts.dtype).view(len(acts), *acts.shape[2:])


@dataclass(frozen=True)
class FEM(SharedMethod):
    """FEM: each channel weighs the share of its cells that stand out by `sigmas` standard deviations.

    Fuad et al. 2020, "Features Understanding in 3D CNNs for Actions Recognition in Video", the k-sigma rule, as
    pytorch-grad-cam computes it. The paper itself adds up the masks of the cells that stand out, weighted by the
    channels' means, which favours channels that are active everywhere.
    """

    sigmas: float = parameter(2.0, 0.0, 100.0)

    name = "fem"
    formula = "ReLU(sum_k w_k A_k), w = mean_ij(A > mean_ij(A) + sigmas * std_ij(A))"
    source = "Fuad et al. 2020, IPTA, k-sigma rule, as in pytorch-grad-cam"

    def maps(self, acts: Tensor, grads: Tensor | None) -> Tensor:
        spread, mean = torch.std_mean(acts, dim=(2, 3), correction=0, keepdim=True)
        weights = (acts > mean + self.sigmas * spread).to(acts.dtype).mean(dim=(2, 3))
        return torch.einsum("nc,nchw->nhw", weights, acts)


@dataclass(frozen=True)
class DeepFeatureFactorization(SharedMethod):
    """Deep feature factorisation: the location of one of a few non-negative concepts.

    Collins et al. 2018, "Deep Feature Factorization For Concept Discovery", equation 2: the activations behind a ReLU
    (we put one) are factored as A = H W with H, W >= 0, by Lee and Seung's updates from a start that follows from A.
    The map is column number `concept` of H, the strongest concept being number 0. The paper factors several images
    together; here each is factored alone, which makes its map independent of the batch.
    """

    concepts: int = parameter(5, 1, 1024)
    concept: int = parameter(0, 0, 1023)
    updates: int = parameter(200, 1, 100_000)

    name = "dff"
    formula = "H_concept of argmin |ReLU(A) - H W|^2 with H, W >= 0"
    source = "Collins et al. 2018, arXiv:1806.10206, eq. 2"

    def maps(self, acts: Tensor, grads: Tensor | None) -> Tensor:
        cells = vectors_of(acts).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).clamp(min=0)
        scale = cells.amax(dim=(1, 2)).clamp(min=torch.finfo(torch.float64).tiny)  # scaled: no power may underflow
        scaled = zip(cells / scale[:, None, None], scale, strict=True)
        maps = [self._strongest(vectors) * size for vectors, size in scaled]
        return torch.stack(maps).to(acts.dtype).view(len(acts), *acts.shape[2:])

    def _strongest(self, cells: Tensor) -> Tensor:
        """[m]: the strength of the chosen concept in cells [m, C]."""
        places, concepts = self.factors(cells)
        strength = places.norm(dim=0) * concepts.norm(dim=1)
        chosen = int(strength.argsort(descending=True)[min(self.concept, len(strength) - 1)])
        return places[:, chosen] * concepts[chosen].norm()

    def factors(self, cells: Tensor) -> tuple[Tensor, Tensor]:
        """Non-negative [m, K] and [K, C] whose product is close to `cells` [m, C] >= 0."""
        places, concepts = _start(cells, min(self.concepts, *cells.shape))
        tiny = torch.finfo(torch.float64).tiny
        for _ in range(self.updates):
            places = places * (cells @ concepts.T) / (places @ (concepts @ concepts.T)).clamp(min=tiny)
            concepts = concepts * (places.T @ cells) / ((places.T @ places) @ concepts).clamp(min=tiny)
        return places, concepts


def _start(cells: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """[m, K] and [K, C]: of each leading singular pair the positive or the negative parts, whichever are larger.

    Boutsidis & Gallopoulos 2008, "SVD based initialization: A head start for nonnegative matrix factorization". Zeros,
    which the updates could never leave, become small.
    """
    left, values, right = torch.linalg.svd(cells, full_matrices=False)
    places, concepts = [], []
    for place, value, concept in zip(left.T[:count], values, right, strict=False):
        parts = [(place.clamp(min=0), concept.clamp(min=0)), ((-place).clamp(min=0), (-concept).clamp(min=0))]
        place, concept = max(parts, key=lambda pair: float(pair[0].norm() * pair[1].norm()))
        size = (value * place.norm() * concept.norm()).sqrt()
        places.append(size * normalize(place, dim=0))
        concepts.append(size * normalize(concept, dim=0))
    least = 1e-2 * cells.mean().sqrt()
    return torch.stack(places, dim=1).clamp(min=least), torch.stack(concepts).clamp(min=least)


@dataclass(frozen=True)
class RandomCAM(SharedMethod):
    """Random channel weights: a baseline that shows the activations alone.

    Weights are uniform in [-1, 1], one draw for all objects and images.
    """

    seed: int = parameter(0, 0, MOST)

    name = "randomcam"
    formula = "ReLU(sum_k w_k A_k), w uniform in [-1, 1]"
    source = "a baseline"

    def weights(self, channels: int) -> Tensor:
        """[channels] float32."""
        return torch.rand(channels, generator=torch.Generator().manual_seed(self.seed)) * 2 - 1

    def maps(self, acts: Tensor, grads: Tensor | None) -> Tensor:
        return torch.einsum("c,nchw->nhw", self.weights(acts.shape[1]).to(acts), acts)
