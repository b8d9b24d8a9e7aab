"""Methods of activations only, against NumPy, scikit-learn and a peer; their signs, and hostile input."""

import numpy as np
import pytest
import pytorch_grad_cam as peer
import torch
from pytorch_grad_cam.utils.svd_on_activations import get_2d_projection_kernel
from sklearn.decomposition import NMF
from torch import Tensor

from detcam.methods import METHODS, Method, get_method
from detcam.methods.activation import FEM, DeepFeatureFactorization, RandomCAM

SHARED = [name for name, kind in METHODS.items() if issubclass(kind, Method) and not kind.object_specific]


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
        torch.randn(1, 1, 3, 4),
        torch.randn(2, 1, 1, 1),
        1e-30 * torch.randn(1, 3, 4, 5),
        1e30 * torch.randn(1, 3, 4, 5),
    ],
    ids=["zeros", "constant", "one cell", "one channel", "one number", "tiny", "huge"],
)
@pytest.mark.parametrize("name", SHARED)
def test_finite_everywhere(name: str, acts: Tensor) -> None:
    maps = get_method(name).maps(acts, None)
    assert maps.shape == (len(acts), *acts.shape[2:])
    assert maps.dtype == torch.float32
    assert maps.isfinite().all()
    if acts.flatten(2).std(dim=2, correction=0).max() == 0 and name in ("eigencam", "kpcacam", "fem"):
        assert maps.abs().max() < 1e-6


@pytest.mark.parametrize("name", SHARED)
def test_pictures_of_a_batch_do_not_mix(name: str, seed: int) -> None:
    acts = torch.randn(3, 6, 5, 7)
    together = get_method(name).maps(acts, None)
    for one, alone in zip(together, acts, strict=True):
        torch.testing.assert_close(get_method(name).maps(alone[None], None)[0], one, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("shape", [(5, 6, 7), (30, 4, 5), (12, 24, 26)])
def test_kpcacam_equals_scikit_learn(shape: tuple[int, ...], seed: int) -> None:
    acts = torch.randn(2, *shape)
    acts[:, 0] *= 3  # one direction that leads
    for ours, truth in zip(
        get_method("kpcacam").maps(acts, None).double(), get_2d_projection_kernel(acts.double().numpy()), strict=True
    ):
        expected = torch.from_numpy(truth).double()
        sign = 1 if float((ours * expected).sum()) > 0 else -1
        torch.testing.assert_close(ours, sign * expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
    strength = acts.abs().sum(dim=1)
    assert ((get_method("kpcacam").maps(acts, None) * strength).sum(dim=(1, 2)) >= 0).all()


def test_kpcacam_halves_maps_of_too_many_cells(seed: int) -> None:
    assert get_method("kpcacam").maps(torch.randn(1, 2, 90, 81), None).shape == (1, 45, 41)


@pytest.mark.parametrize("sigmas", [0.5, 2.0])
def test_fem_by_hand(sigmas: float, seed: int) -> None:
    acts = torch.randn(2, 4, 6, 7)
    for ours, one in zip(FEM(sigmas=sigmas).maps(acts, None), acts.double().numpy(), strict=True):
        expected = np.zeros((6, 7))
        for channel in one:
            threshold = channel.mean() + sigmas * channel.std()
            expected += sum(value > threshold for value in channel.flat) / channel.size * channel
        torch.testing.assert_close(ours.double(), torch.from_numpy(expected), rtol=1e-5, atol=1e-5)


def planted(seed: int) -> tuple[Tensor, Tensor]:
    """[1, 7, 8, 9] activations of three concepts that lie apart, and where each lies [3, 8, 9], strongest first."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.zeros(3, 8, 9)
    places[0, :4, :4], places[1, :4, 5:], places[2, 5:] = 9, 3, 1
    places *= 0.8 + 0.2 * torch.rand(3, 8, 9, generator=generator)
    concepts = torch.zeros(3, 7)
    concepts[0, :2], concepts[1, 2:4], concepts[2, 4:] = 1, 1, 1
    return torch.einsum("khw,kc->chw", places, concepts)[None], places


def test_dff_finds_planted_concepts(seed: int) -> None:
    acts, places = planted(seed)
    for number, place in enumerate(places):
        found = DeepFeatureFactorization(concepts=3, concept=number).maps(acts, None)[0]
        similarity = torch.nn.functional.cosine_similarity(found.flatten(), place.flatten(), dim=0)
        assert similarity > 0.98, f"concept {number}"
    below = acts.clone()
    below[acts == 0] = -1.0  # what a ReLU would have cut off changes nothing
    method = DeepFeatureFactorization(concepts=3)
    torch.testing.assert_close(method.maps(below, None), method.maps(acts, None))


def test_dff_fits_as_well_as_scikit_learn(seed: int) -> None:
    cells = torch.rand(40, 12, dtype=torch.float64)
    places, concepts = DeepFeatureFactorization(concepts=4, updates=500).factors(cells)
    assert (places >= 0).all()
    assert (concepts >= 0).all()
    theirs = NMF(n_components=4, init="nndsvda", max_iter=1000, random_state=0).fit(cells.numpy())
    assert float((cells - places @ concepts).norm()) < 1.05 * theirs.reconstruction_err_


def test_randomcam_equals_the_peers_with_our_weights(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    acts = torch.randn(2, 6, 4, 5)
    method = RandomCAM(seed=seed)
    weights = method.weights(6).numpy()
    assert -1 <= weights.min() < weights.max() <= 1
    monkeypatch.setattr(np.random, "uniform", lambda low, high, size: np.tile(weights, (size[0], 1)))
    cam = peer.RandomCAM(torch.nn.Linear(1, 1), [])
    truth = cam.get_cam_image(None, None, None, acts.numpy(), np.zeros(acts.shape), False)
    torch.testing.assert_close(method.maps(acts, None), torch.from_numpy(np.float32(truth)), rtol=1e-4, atol=1e-5)
    assert not torch.equal(method.maps(acts, None), RandomCAM(seed=seed + 1).maps(acts, None))
