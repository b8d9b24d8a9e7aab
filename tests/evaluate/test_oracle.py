from __future__ import annotations

import itertools

import pytest
import torch

from detcam.evaluate.metrics.stability import rank_correlation
from detcam.evaluate.planted.judge import heat_of_parts, top_agreement


def striped_parts() -> torch.Tensor:
    """[1, 3, 4, 4] bool: two rows, one row, one row."""
    parts = torch.zeros(1, 3, 4, 4, dtype=torch.bool)
    parts[0, 0, :2] = parts[0, 1, 2] = parts[0, 2, 3] = True
    return parts


def test_heat_of_parts_by_hand() -> None:
    heat = torch.zeros(1, 4, 4)
    heat[0, 0, 0], heat[0, 2] = 4.0, torch.tensor([1.0, 1.0, 1.0, 1.0])
    torch.testing.assert_close(heat_of_parts(heat, striped_parts()), torch.tensor([[0.5, 0.5, 0.0]]))


def test_heat_of_a_blank_map_is_nowhere() -> None:
    assert heat_of_parts(torch.zeros(1, 4, 4), striped_parts()).tolist() == [[0.0, 0.0, 0.0]]


def test_shares_of_disjoint_parts_that_cover_all_add_up_to_one(seed: int) -> None:
    shares = heat_of_parts(torch.rand(1, 4, 4) + 0.01, striped_parts())
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(1))


@pytest.mark.parametrize(
    ("heat", "drops", "expected"),
    [
        ([0.5, 0.3, 0.2], [4.0, 1.0, -1.0], 1.0),
        ([0.2, 0.3, 0.5], [4.0, 1.0, -1.0], 0.0),
        ([0.4, 0.4, 0.2], [4.0, 1.0, -1.0], 0.5),
        ([0.0, 0.0, 0.0], [4.0, 1.0, -1.0], 1 / 3),
    ],
)
def test_top_agreement_by_hand(heat: list[float], drops: list[float], expected: float) -> None:
    assert float(top_agreement(torch.tensor([heat]), torch.tensor([drops]))) == pytest.approx(expected)


def test_spearman_is_the_formula_of_squared_rank_differences(seed: int) -> None:
    """Without ties it is 1 - 6 sum d^2 / (n (n^2 - 1)), for every order of five."""
    base = torch.randn(5)
    ranks = base.argsort().argsort()
    for order in itertools.islice(itertools.permutations(range(5)), 0, 120, 7):
        other = torch.tensor(order, dtype=torch.float32)
        d = (ranks - other).double()
        expected = 1 - 6 * float((d**2).sum()) / (5 * 24)
        assert float(rank_correlation(base[None], other[None])) == pytest.approx(expected, abs=1e-5)


def test_spearman_with_ties_is_pearson_of_mean_ranks() -> None:
    a, b = torch.tensor([[1.0, 1.0, 2.0, 3.0]]), torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    x, y = torch.tensor([0.5, 0.5, 2.0, 3.0]), torch.tensor([0.0, 1.0, 2.0, 3.0])
    expected = float(torch.corrcoef(torch.stack([x, y]))[0, 1])
    assert float(rank_correlation(a, b)) == pytest.approx(expected, abs=1e-6)


def test_spearman_reverses_and_ignores_scale(seed: int) -> None:
    a = torch.randn(3, 6)
    torch.testing.assert_close(rank_correlation(a, a * 3 + 2), torch.ones(3))
    torch.testing.assert_close(rank_correlation(a, -a), -torch.ones(3))
