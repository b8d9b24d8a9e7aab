"""Intervals over resampled pictures."""

import math

import numpy as np
import pytest

from detcam.evaluate.metrics.bootstrap import bootstrap


def test_the_interval_covers_the_truth(seed: int) -> None:
    generator = np.random.default_rng(seed)
    hits = 0
    for _ in range(60):
        pictures = np.repeat(np.arange(40), 3)
        values = np.repeat(generator.normal(2.0, 1.0, 40), 3) + generator.normal(0, 0.2, 120)
        found = bootstrap(values, pictures)
        hits += found.low <= 2.0 <= found.high
    assert hits >= 46  # 95 % expected; fewer than 46 of 60 happen once in a million


def test_objects_of_a_picture_are_no_independent_draws(seed: int) -> None:
    generator = np.random.default_rng(seed)
    picture_means = generator.normal(0, 1, 30)
    values, pictures = np.repeat(picture_means, 10), np.repeat(np.arange(30), 10)
    together, alone = bootstrap(values, pictures), bootstrap(values, np.arange(300))
    assert together.high - together.low > 2.4 * (alone.high - alone.low)  # about sqrt(10)
    assert together.high - together.low == pytest.approx(4 * picture_means.std() / math.sqrt(30), rel=0.15)


def test_pictures_weigh_by_their_objects() -> None:
    values, pictures = np.array([1.0] * 6 + [0.0] * 4), np.array([7] * 6 + [1, 2, 3, 4])
    found = bootstrap(values, pictures)
    assert (found.mean, found.low, found.count, found.pictures) == (0.6, 0.0, 10, 5)
    assert found.high == pytest.approx(6 * 3 / (6 * 3 + 2))  # of 5 draws, 3 or more are picture 7 in 6 %, 4 in .7 %


@pytest.mark.parametrize(("pictures", "tells"), [(1, False), (4, False), (5, True)])
def test_few_images_have_no_interval_and_no_verdict(pictures: int, tells: bool) -> None:
    found = bootstrap(np.ones(20), np.arange(20) % pictures)
    assert (found.mean, found.count, found.pictures) == (1.0, 20, pictures)
    assert (not math.isnan(found.low)) == tells
    assert found.sign == int(tells)


def test_undefined_values_are_left_out() -> None:
    values = np.array([1.0, np.nan, 3.0])
    assert bootstrap(values, np.array([0, 1, 2])).mean == 2.0
    assert bootstrap(values, np.array([0, 1, 2])).count == 2
    nothing = bootstrap(np.array([np.nan]), np.array([0]))
    assert nothing.count == 0
    assert math.isnan(nothing.mean)
    one = bootstrap(np.array([1.0, 2.0]), np.array([4, 4]))
    assert (one.mean, one.sign) == (1.5, 0)
    assert math.isnan(one.low)


def test_pairs_see_what_means_hide(seed: int) -> None:
    generator = np.random.default_rng(seed)
    pictures = np.arange(50)
    hard = generator.normal(0, 5, 50)
    a, b = hard + 0.3 + generator.normal(0, 0.2, 50), hard
    assert bootstrap(a - b, pictures).sign == 1
    assert bootstrap(b - a, pictures).sign == -1
    assert bootstrap(a - a, pictures).sign == 0
    means = bootstrap(a, pictures), bootstrap(b, pictures)
    assert means[0].low < means[1].high  # unpaired, the intervals overlap
