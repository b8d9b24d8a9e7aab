"""Rank correlations, noise, and randomised weights: the check that guided backpropagation fails."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from support import explanation_of, fingerprint
from torch import nn

from detcam import Explainer, zoo
from detcam.engine.randomised import randomised
from detcam.evaluate.metrics.stability import (
    PASSED,
    agreement,
    cascade,
    rank_correlation,
    rank_correlations,
    sensitivity,
)
from detcam.runners.twin import held
from detcam.scenes import HELD_OUT_SEED, draw_scene


def test_rank_correlation_is_scipys(seed: int) -> None:
    values = torch.randint(0, 6, (4, 60)).float()  # many ties
    expected = spearmanr(values.numpy(), axis=1).statistic
    np.testing.assert_allclose(rank_correlations(values).numpy(), expected, atol=1e-6)
    for a, b in ((0, 1), (2, 3)):
        assert float(rank_correlation(values[a : a + 1], values[b : b + 1])) == pytest.approx(expected[a, b], abs=1e-6)


def test_the_ends_of_rank_correlation(seed: int) -> None:
    values = torch.rand(1, 50)
    assert float(rank_correlation(values, values.exp())) == pytest.approx(1.0)
    assert float(rank_correlation(values, -values)) == pytest.approx(-1.0)
    assert bool(rank_correlation(values, torch.ones(1, 50)).isnan())
    noise = rank_correlation(torch.rand(200, 400), torch.rand(200, 400))
    assert abs(float(noise.mean())) < 0.02


def test_agreement_of_maps_of_different_sizes(seed: int) -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    ramp = torch.linspace(0, 1, 16).repeat(16, 1)
    maps = [ramp, ramp[::2, ::2] * 3, 1 - ramp]
    explanations = [explanation_of(image, [one]) for one in maps]
    matrix = agreement(explanations, [0])
    assert float(matrix[0, 1]) > 0.98
    assert float(matrix[0, 2]) < -0.98
    torch.testing.assert_close(matrix.diagonal(), torch.ones(3))


def test_sensitivity_by_hand() -> None:
    image = np.zeros((40, 40, 3), np.uint8)
    one = torch.zeros(40, 40)
    one[3, 4] = 2.0
    moved = torch.zeros(40, 40)
    moved[30, 30] = 5.0
    box = torch.tensor([[4.0, 4.0, 20.0, 20.0]])
    plain, same, other = (explanation_of(image, [m], boxes=box) for m in (one, one * 7, moved))
    assert sensitivity(plain, same).tolist() == [0.0]  # each map over its own maximum
    assert sensitivity(plain, other).tolist() == pytest.approx([2**0.5])
    elsewhere = explanation_of(image, [one], boxes=box + 30)
    assert bool(sensitivity(plain, elsewhere).isnan())
    assert bool(sensitivity(plain, explanation_of(image, [])).isnan())


def test_randomised_weights_are_put_back(seed: int, detector: nn.Module, picture: np.ndarray) -> None:
    before = fingerprint(detector)
    explainer = Explainer(detector, "odam", "level", imgsz=160)
    plain = explainer(picture)
    own = {name: p.data_ptr() for name, p in explainer.adapter.module.named_parameters()}
    last = list(explainer.adapter.module.named_parameters())[-1][0]
    with randomised(explainer.adapter.module, 0.5, 1), held(explainer.adapter, plain.objects):
        now = dict(explainer.adapter.module.named_parameters())
        changed = {name for name, p in now.items() if p.data_ptr() != own[name]}
        assert 0.3 < len(changed) / len(own) < 0.7
        assert last in changed
        assert next(iter(own)) not in changed
        kept = dict(detector.named_parameters())
        for name in changed:
            assert torch.equal(now[name].flatten().sort().values, kept[name].detach().flatten().sort().values)
        assert torch.equal(explainer(picture).boxes, plain.boxes)
    assert {name: p.data_ptr() for name, p in explainer.adapter.module.named_parameters()} == own
    assert fingerprint(detector) == before
    again = explainer(picture)
    assert all(torch.equal(a, b) for a, b in zip(plain.maps, again.maps, strict=True))


def randomised_correlation(method: str, layers: str, scenes: tuple[int, ...], objects: int) -> float:
    """Mean over objects of the demo model, with its trained weights and fixed shuffles of them."""
    explainer = Explainer(zoo.load("scenes-yolo"), method, layers)
    values = []
    for number in scenes:
        image = draw_scene(HELD_OUT_SEED + number).image
        plain = explainer(image)
        some = list(range(min(len(plain), objects)))
        values.append(cascade(explainer, image, plain, some, stages=1)[-1])
    return float(torch.cat(values).nanmean())


def test_guided_backprop_is_flagged_and_both_views_are_not() -> None:
    assert abs(randomised_correlation("odam", "level", (0,), 2)) < PASSED
    assert abs(randomised_correlation("layerig", "auto", (0,), 1)) < PASSED
    assert randomised_correlation("guidedbackprop", "auto", (0,), 2) > PASSED


@pytest.mark.nightly
def test_guided_backprop_is_flagged_and_the_defaults_are_not() -> None:
    for method, layers in (
        ("odam", "level"),
        ("odam", "evidence"),
        ("auto", "auto"),
        ("fused", "auto"),
        ("layerig", "auto"),
    ):
        assert abs(randomised_correlation(method, layers, (0, 3, 4), 4)) < PASSED, (method, layers)
    assert randomised_correlation("guidedbackprop", "auto", (0, 3, 4), 4) > PASSED
    assert randomised_correlation("box", "auto", (0, 3, 4), 4) == pytest.approx(1.0)
