"""First principal components: of vectors, and of vectors seen through a kernel."""

import torch
from torch import Tensor

DENSE = 400  # matrices up to this size are decomposed as a whole
STEPS = 120  # of Lanczos at most, where two eigenvalues nearly tie
EXACT = 1e-8  # the residual at which it stops, as a share of the eigenvalue


def first_component(cells: Tensor, towards: Tensor) -> Tensor:
    """Vectors projected on their first principal component.

    The sign of a component is arbitrary: here the projection grows with `towards`.

    Args:
        cells: [n, m, C] float64, m vectors of each of n sets; values that are not finite count as 0.
        towards: [n, m] float64.

    Returns:
        [n, m] float64, with mean 0 over m.
    """
    cells = cells.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)  # an overflow in the model: eigh takes finite numbers
    centred = cells - cells.mean(dim=1, keepdim=True)
    if centred.shape[1] < centred.shape[2]:  # the smaller of the two Gram matrices has the same leading component
        values, vectors = torch.linalg.eigh(centred @ centred.transpose(1, 2))  # ascending eigenvalues
        projection = vectors[:, :, -1] * values[:, -1:].clamp(min=0).sqrt()
    else:
        _, vectors = torch.linalg.eigh(centred.transpose(1, 2) @ centred)
        projection = (centred @ vectors[:, :, -1:]).squeeze(2)
    return projection * _sign(projection, towards)


def first_kernel_component(kernel: Tensor, towards: Tensor) -> Tensor:
    """Vectors, given by their kernel [m, m] float64, projected on their first kernel principal component: [m].

    The kernel is centred in feature space first (Schoelkopf et al. 1998, "Nonlinear Component Analysis as a Kernel
    Eigenvalue Problem", appendix B). A kernel that is not positive, as the sigmoid, may have no positive eigenvalue:
    the projection is 0 then. The sign is that of `first_component`.
    """
    centred = kernel - kernel.mean(dim=0) - kernel.mean(dim=1, keepdim=True) + kernel.mean()
    value, vector = _leading(centred)
    projection = vector * value.clamp(min=0).sqrt()
    return projection * _sign(projection[None], towards[None])[0]


def _sign(projection: Tensor, towards: Tensor) -> Tensor:
    """[n, 1]: 1, or -1 where the projection [n, m] falls as `towards` grows."""
    towards = towards.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    return torch.where((projection * towards).sum(dim=1, keepdim=True) < 0, -1.0, 1.0)


def _leading(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The largest eigenvalue of a symmetric matrix [m, m] and its eigenvector [m].

    Large matrices by Lanczos' iteration with full orthogonalisation, from a fixed start.
    """
    size = len(matrix)
    if size <= DENSE:
        values, vectors = torch.linalg.eigh(matrix)
        return values[-1], vectors[:, -1]
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(size, generator=generator, dtype=torch.float64).to(matrix.device)
    basis = vector[None, :] / vector.norm()  # [k, m], orthonormal
    images = basis[:0]  # [k, m], the matrix times each of them
    while True:
        images = torch.cat([images, (matrix @ basis[-1])[None]])
        values, vectors = torch.linalg.eigh(basis @ images.T)
        found = vectors[:, -1] @ basis
        vector = images[-1]
        for _ in range(2):  # a single pass leaves rounding errors
            vector = vector - (basis @ vector) @ basis
        residual = (vectors[:, -1] @ images - values[-1] * found).norm()
        if residual <= EXACT * values.abs().amax() or len(basis) == STEPS:
            return values[-1], found
        basis = torch.cat([basis, vector[None] / vector.norm()])
