from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from benchmarks.backgrounds import (
    FEATHER,
    MARGIN,
    auroc,
    emptied,
    multiplicities,
    noise,
    rank_correlation,
    shifted,
)


@pytest.fixture
def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def once(n: int) -> np.ndarray:
    return np.ones((2, n))


def test_auroc_counts_pairs_and_ties_by_half(rng: np.random.Generator) -> None:
    values, positive = rng.integers(0, 6, 60).astype(float), rng.random(60) < 0.4
    pairs = [(a > b) + (a == b) / 2 for a in values[positive] for b in values[~positive]]
    assert auroc(values, positive, once(60)).value == pytest.approx(np.mean(pairs), abs=1e-12)


def test_auroc_of_a_resampled_sample_is_that_of_its_copies(rng: np.random.Generator) -> None:
    values, positive = rng.normal(size=40), rng.random(40) < 0.5
    times = multiplicities(rng.integers(0, 9, 40))
    copies = np.repeat(np.arange(40), times[5].astype(int))
    expected = auroc(values[copies], positive[copies], once(len(copies))).value
    assert auroc(values, positive, times).draws[4] == pytest.approx(expected, abs=1e-12)


def test_auroc_without_positives_is_undefined() -> None:
    found = auroc(np.arange(4.0), np.zeros(4, bool), once(4))
    assert np.isnan(found.value)
    assert found.listed(images=3) == [None, None, None]


def test_images_are_resampled_as_a_whole(rng: np.random.Generator) -> None:
    images = np.array([0, 0, 0, 3, 3, 7])
    times = multiplicities(images)
    assert (times[0] == 1).all()
    assert (times[:, 0] == times[:, 2]).all()
    assert (times[1:, [0, 3, 5]].sum(axis=1) == 3).all()


def test_rank_correlation_is_spearmans(rng: np.random.Generator) -> None:
    a = rng.integers(0, 9, 50).astype(float)
    b = a + rng.normal(size=50) * 3
    found = rank_correlation(a, b, once(50))
    assert found.value == pytest.approx(spearmanr(a, b).statistic, abs=1e-9)
    assert (found - found).listed(images=50) == [0.0, 0.0, 0.0]


def test_given_the_common_cause_nothing_is_left(rng: np.random.Generator) -> None:
    cause = rng.normal(size=4000)
    a, b = (cause + rng.normal(size=4000) * 0.3 for _ in range(2))
    assert rank_correlation(a, b, once(4000)).value > 0.8
    assert abs(rank_correlation(a, b, once(4000), [cause]).value) < 0.1


def test_emptied_keeps_what_lies_outside_and_forgets_the_object(rng: np.random.Generator) -> None:
    image = rng.integers(0, 100, (60, 80, 3), np.uint8)
    objects = np.zeros((60, 80), bool)
    objects[20:40, 30:50] = True
    other = image.copy()
    other[objects] = 255
    assert (emptied(image, objects) == emptied(other, objects)).all()
    far = np.ones_like(objects)
    far[20 - MARGIN : 40 + MARGIN, 30 - MARGIN : 50 + MARGIN] = False
    assert (emptied(image, objects)[far] == image[far]).all()


def test_shifted_keeps_the_object_and_replaces_the_rest(rng: np.random.Generator) -> None:
    image, background = rng.integers(0, 256, (60, 80, 3), np.uint8), noise((30, 30, 3), rng)
    objects = np.zeros((60, 80), bool)
    objects[10:50, 10:40] = True
    changed = shifted(image, objects, background)
    reach = int(5 * FEATHER)
    inner, outer = (
        (slice(10 + reach, 50 - reach), slice(10 + reach, 40 - reach)),
        (slice(None), slice(40 + reach, None)),
    )
    assert (changed[inner] == image[inner]).all()
    assert (changed[outer] == shifted(image, objects & False, background)[outer]).all()
