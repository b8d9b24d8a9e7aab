"""Who is matched with whom, and how alike two maps are, against scipy and against what was planted."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.stats import spearmanr
from support import explanation_of, fingerprint, random_picture
from torch import Tensor, nn

import detcam
from detcam import Explanation, InputError
from detcam.analysis.comparison import CELLS, match, overlaps, similarities
from detcam.geometry import Geometry

BLANK = np.zeros((160, 160, 3), np.uint8)


def grid_boxes(n: int, size: float = 20.0, gap: float = 30.0) -> Tensor:
    """[n, 4] boxes that do not touch, five in a row."""
    corner = torch.tensor([[gap * (i % 5), gap * (i // 5)] for i in range(n)]).view(n, 2)
    return torch.cat([corner, corner + size], dim=1)


def hill(y: float, x: float, rows: int = 20, columns: int = 20, width: float = 2.0) -> Tensor:
    """[rows, columns] one smooth hill, its middle in cells."""
    down, across = torch.arange(rows)[:, None] + 0.5 - y, torch.arange(columns) + 0.5 - x
    return torch.exp(-(down**2 + across**2) / (2 * width**2))


def made(maps: list[Tensor], labels: tuple[str, ...] | None = None, boxes: Tensor | None = None) -> Explanation:
    return explanation_of(BLANK, maps, labels=labels, boxes=grid_boxes(len(maps)) if boxes is None else boxes)


def test_best_first_is_the_best_assignment_of_doubling_weights(seed: int) -> None:
    """Where each fit outweighs all worse ones together, the best assignment takes the best fit first, and so on."""
    least = 0.3
    for shape in ((6, 7), (7, 6), (1, 5), (5, 5), (0, 3), (3, 0)):
        fits = torch.rand(shape, dtype=torch.float64)
        order = fits.flatten().argsort().argsort().view(shape)
        weights = torch.where(fits >= least, 2.0**order, 0.0).numpy()
        rows, columns = linear_sum_assignment(weights, maximize=True)
        expected = {(i, j) for i, j in zip(rows.tolist(), columns.tolist(), strict=True) if weights[i, j] > 0}
        assert set(match(fits, least)) == expected
        assert [float(fits[place]) for place in match(fits, least)] == sorted(
            (float(fits[place]) for place in expected), reverse=True
        )


def test_shuffled_and_shaken_boxes_find_their_own(seed: int) -> None:
    n = 15
    boxes, labels = grid_boxes(n), [f"kind {i % 3}" for i in range(n)]
    order = torch.randperm(n).tolist()
    shaken = (boxes + (torch.rand(n, 4) - 0.5) * 4)[order]
    a = made([hill(10, 10)] * n, tuple(labels), boxes)
    b = made([hill(10, 10)] * n, tuple(labels[i].upper() for i in order), shaken)
    found = detcam.compare(a, b)
    assert sorted((pair.a, order[pair.b]) for pair in found.pairs) == [(i, i) for i in range(n)]
    for pair in found.pairs:
        x1, y1, x2, y2 = np.stack([boxes[pair.a], shaken[pair.b]]).T
        inner = (x2.min() - x1.max()) * (y2.min() - y1.max())
        assert pair.iou == pytest.approx(inner / (((x2 - x1) * (y2 - y1)).sum() - inner), abs=1e-4)


def test_a_box_is_matched_from_the_threshold_on() -> None:
    a, b = (made([hill(5, 5)], boxes=torch.tensor([box])) for box in ([0.0, 0, 100, 100], [0.0, 0, 100, 70]))
    assert [pair.found_by for pair in detcam.compare(a, b, iou=0.7).pairs] == ["both"]
    assert [pair.found_by for pair in detcam.compare(a, b, iou=0.71).pairs] == ["a", "b"]
    apart = made([hill(5, 5)], boxes=torch.tensor([[0.0, 80, 100, 100]]))
    assert [pair.found_by for pair in detcam.compare(b, apart, iou=1e-40).pairs] == ["a", "b"]


def test_equal_boxes_are_the_same_even_without_an_area() -> None:
    boxes = torch.tensor([[5.0, 5, 5, 5], [0.0, 0, 10, 10]])
    assert overlaps(boxes, boxes).tolist() == [[1, 0], [0, 1]]


def test_measures_against_scipy_and_by_hand(seed: int) -> None:
    """Also with ties, which ReLU makes by the hundred."""
    a, b = torch.randn(2, 4, 300, dtype=torch.float64).clamp(min=0)
    shared, ranks = similarities(a, b)
    for i in range(4):
        p, q = a[i].numpy() / a[i].sum().item(), b[i].numpy() / b[i].sum().item()
        assert float(shared[i]) == pytest.approx(sum(min(x, y) for x, y in zip(p, q, strict=True)), abs=1e-9)
        assert float(ranks[i]) == pytest.approx(spearmanr(a[i].numpy(), b[i].numpy()).statistic, abs=1e-5)


def test_measures_of_maps_with_nothing_in_them() -> None:
    zero, left, right = torch.zeros(4), torch.tensor([1.0, 2, 0, 0]), torch.tensor([0.0, 0, 3, 1])
    shared, ranks = similarities(torch.stack([zero, zero, left]).double(), torch.stack([zero, left, right]).double())
    assert shared.isnan().tolist() == [True, False, False]
    assert shared[1:].tolist() == [0, 0]
    assert ranks.isnan().tolist() == [True, True, False]


def test_a_pair_is_measured_on_the_stated_cells_of_the_source(seed: int) -> None:
    side = 2 * CELLS  # so that the heatmap at source resolution has 2 x 2 pixels in a cell
    image = np.zeros((side, side, 3), np.uint8)
    a, b = (explanation_of(image, [torch.randn(size)]) for size in ((20, 20), (13, 31)))
    pair = detcam.compare(a, b).pairs[0]
    cells = [e.heatmaps[0].numpy().reshape(CELLS, 2, CELLS, 2).mean(axis=(1, 3)).ravel() for e in (a, b)]
    p, q = (heat / heat.sum() for heat in cells)
    assert pair.similarity == pytest.approx(np.minimum(p, q).sum(), abs=1e-5)
    assert pair.rank_correlation == pytest.approx(spearmanr(*cells).statistic, abs=1e-3)


def test_the_same_explainer_twice_agrees_with_itself(seed: int, picture: np.ndarray, detector: nn.Module) -> None:
    before = fingerprint(detector)
    first, second = (detcam.Explainer(detector, imgsz=160)(picture) for _ in range(2))
    found = detcam.compare(first, second)
    assert len(found.pairs) == len(first) >= 1
    for pair in found.pairs:
        assert pair.found_by == "both"
        assert pair.a == pair.b
        assert pair.iou == 1
        if first.maps[pair.a].clamp(min=0).unique().numel() > 1:
            assert pair.similarity == pytest.approx(1, abs=1e-9)
            assert pair.rank_correlation == pytest.approx(1, abs=1e-6)
        else:
            assert pair.similarity is None, "nothing in either map"
    assert fingerprint(detector) == before


@pytest.mark.parametrize("moved", range(4))
def test_the_map_that_was_moved_comes_first(moved: int, seed: int) -> None:
    places = (torch.rand(4, 2) * 8 + 2).tolist()
    a = made([hill(y, x) for y, x in places])
    maps = list(a.maps)
    maps[moved] = maps[moved].roll((9, 9), (0, 1))
    order = torch.randperm(4)
    b = dataclasses.replace(a, objects=a.objects.select(order), maps=[maps[i] for i in order.tolist()])
    found = detcam.compare(a, b)
    assert found.pairs[0].a == moved
    assert found.pairs[0].similarity < 0.2
    assert [pair.similarity for pair in found.pairs[1:]] == pytest.approx([1, 1, 1])
    assert found.similarity == pytest.approx((3 + found.pairs[0].similarity) / 4)


def test_one_place_through_two_geometries() -> None:
    """A letterboxed and a cropped input see the same hill of the picture in other cells."""
    image, middle, width = np.zeros((120, 160, 3), np.uint8), (40.0, 110.0), 14.0
    geometries = [
        Geometry(source=(120, 160), resized=(240, 320), pad=(40, 0), network=(320, 320)),
        Geometry(source=(120, 160), resized=(192, 256), pad=(-20, -40), network=(160, 200)),
    ]
    explanations = []
    for geometry in geometries:
        rows, columns = geometry.network[0] // 8, geometry.network[1] // 8
        gain = geometry.resized[0] / 120
        y, x = ((at * gain + pad) / 8 for at, pad in zip(middle, geometry.pad, strict=True))
        explanations.append(explanation_of(image, [hill(y, x, rows, columns, width * gain / 8)], geometry))
    assert detcam.compare(*explanations).pairs[0].similarity > 0.95
    whole = Geometry((120, 160), (120, 160), (0, 0), (120, 160))
    ignorant = [dataclasses.replace(e, geometry=whole) for e in explanations]
    assert detcam.compare(*ignorant).pairs[0].similarity < 0.8, "without the geometry it would not be so"


def test_what_one_only_found_comes_last_and_says_what_the_other_saw() -> None:
    boxes = grid_boxes(4)
    a = made([hill(5, 5)] * 3, ("dog", "cat", "bird"), boxes[:3])
    b = made([hill(5, 5), hill(15, 15)], ("wolf", "dog"), torch.stack([boxes[1] + 1, boxes[0]]))
    found = detcam.compare(a, b)
    assert [(pair.found_by, pair.a, pair.b, pair.instead) for pair in found.pairs] == [
        ("both", 0, 1, None),
        ("b", None, 0, 1),  # a wolf where the first saw a cat
        ("a", 1, None, 0),
        ("a", 2, None, None),
    ]
    rows = found.to_dict()["rows"]
    assert [row["instead"] and row["instead"]["label"] for row in rows] == [None, "cat", "wolf", None]
    assert rows[1]["a"] is None
    assert rows[1]["b"]["label"] == "wolf"
    assert [row["similarity"] is None for row in rows] == [False, True, True, True]


def test_a_box_that_was_found_twice_is_paired_once() -> None:
    box = grid_boxes(1)
    a, b = made([hill(5, 5)], ("dog",), box), made([hill(5, 5)] * 3, ("dog",) * 3, torch.cat([box + 2, box, box + 3]))
    found = detcam.compare(a, b)
    assert [(pair.a, pair.b, pair.instead) for pair in found.pairs] == [(0, 1, None), (None, 0, 0), (None, 2, 0)]


def test_blank_maps_are_told_apart() -> None:
    full, zero = hill(5, 5), torch.zeros(20, 20)
    a, b = made([full, zero, zero]), made([full, full, zero])
    pairs = detcam.compare(a, b).pairs
    assert [pair.a for pair in pairs] == [1, 0, 2]
    assert pairs[0].similarity == 0
    assert pairs[1].similarity == pytest.approx(1)
    assert pairs[2].similarity is None


def test_no_objects_at_all(seed: int) -> None:
    some, none = made([hill(5, 5), hill(9, 9)]), made([])
    assert detcam.compare(none, none).pairs == ()
    assert detcam.compare(none, none).similarity is None
    assert [pair.found_by for pair in detcam.compare(some, none).pairs] == ["a", "a"]
    assert [pair.found_by for pair in detcam.compare(none, some).pairs] == ["b", "b"]


def test_wrong_input_is_one_clear_error(seed: int) -> None:
    a, b = (explanation_of(random_picture(seed, *size), [hill(5, 5)]) for size in ((60, 80), (80, 60)))
    with pytest.raises(InputError, match="80 x 60 and 60 x 80"):
        detcam.compare(a, b)
    for iou in (0, -1, 1.01, float("nan"), "half"):
        with pytest.raises(InputError, match="iou"):
            detcam.compare(a, a, iou=iou)
