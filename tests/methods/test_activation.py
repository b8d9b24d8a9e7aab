"""Eigen-CAM against NumPy's singular value decomposition, its sign, and hostile input."""

import numpy as np
import pytest
import torch
from torch import Tensor

from detcam.methods import get_method


def svd_projection(acts: Tensor) -> Tensor:
    """[C, h, w] -> [h, w]: cells projected on the first right singular vector of the centred [hw, C] matrix."""
    cells = acts.double().numpy().reshape(len(acts), -1).T
    centred = cells - cells.mean(axis=0)
    direction = np.linalg.svd(centred, full_matrices=False)[2][0]
    return torch.from_numpy((centred @ direction).reshape(acts.shape[1:]))


def eigencam(acts: Tensor) -> Tensor:
    return get_method("eigencam").maps(acts, None)


# More cells than channels, fewer, as many, one channel.
@pytest.mark.parametrize("shape", [(2, 3, 6, 7), (2, 40, 4, 5), (1, 12, 3, 4), (3, 1, 5, 4)])
def test_equals_svd_up_to_sign(shape: tuple[int, ...], seed: int) -> None:
    acts = torch.randn(shape)
    acts[:, 0] *= 5  # one direction that leads: a tie would leave the component undefined
    maps = eigencam(acts)
    assert maps.dtype == torch.float32
    for ours, one in zip(maps.double(), acts, strict=True):
        expected = svd_projection(one)
        sign = 1 if float((ours * expected).sum()) > 0 else -1
        torch.testing.assert_close(ours, sign * expected, rtol=1e-4, atol=1e-4)


def test_grows_with_the_strength_of_the_activations(seed: int) -> None:
    acts = torch.randn(4, 8, 5, 6)
    strength = acts.abs().sum(dim=1)
    agreement = (eigencam(acts) * strength).sum(dim=(1, 2))
    assert (agreement >= -1e-4 * strength.sum(dim=(1, 2))).all()


def test_a_bright_patch_is_positive(seed: int) -> None:
    """The sign by its meaning: cells that are strongly active, whatever the sign of their channels, come out hot."""
    acts = 0.01 * torch.randn(2, 6, 8, 8)
    acts[0, :, 2:4, 5:7] += 3
    acts[1, :, 2:4, 5:7] -= 3
    for one in eigencam(acts):
        hot = torch.zeros(8, 8, dtype=torch.bool)
        hot[2:4, 5:7] = True
        assert (one[hot] > 0).all()
        assert (one[~hot] < one[hot].min()).all()


def test_same_sign_and_values_on_every_run(seed: int) -> None:
    acts = torch.randn(3, 16, 6, 6)
    first = eigencam(acts)
    torch.testing.assert_close(eigencam(acts.clone()), first, rtol=0, atol=0)
    # neither the order of the channels nor the company of other pictures matters
    torch.testing.assert_close(eigencam(acts[:, torch.randperm(16)]), first, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(eigencam(acts[1:2]), first[1:2], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_an_overflow_in_the_model_is_no_crash(value: float, seed: int) -> None:
    acts = torch.randn(2, 4, 5, 5)
    acts[0, 1, 2, 3] = value
    maps = eigencam(acts)
    assert maps[:, :2].isfinite().all()
    torch.testing.assert_close(maps[1:], eigencam(acts[1:]))


@pytest.mark.parametrize(
    "acts",
    [
        torch.zeros(1, 3, 4, 5),
        torch.full((1, 3, 4, 5), 2.5),
        torch.randn(1, 7, 1, 1),
        1e-30 * torch.randn(1, 3, 4, 5),
        1e30 * torch.randn(1, 3, 4, 5),
    ],
    ids=["zeros", "constant", "one cell", "tiny", "huge"],
)
def test_finite_everywhere(acts: Tensor) -> None:
    maps = eigencam(acts)
    assert maps.shape == (1, *acts.shape[2:])
    assert maps.isfinite().all()
    if acts.flatten(2).std(dim=2, correction=0).max() == 0:
        assert maps.abs().max() < 1e-6
