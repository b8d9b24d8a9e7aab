"""Which is which from frame to frame, and the heatmap that a track carries along."""

import numpy as np
import pytest
import torch
from support import explanation_of
from torch import Tensor

from detcam import Objects
from detcam.geometry import Geometry
from detcam.render.energy import energies
from detcam.video.tracks import FOLLOW, HALF_LIFE, HeatMemory, Tracker


def objects_at(boxes: list[tuple[float, ...]], classes: list[int], scores: list[float] | None = None) -> Objects:
    n = len(boxes)
    corners = torch.tensor(boxes, dtype=torch.float32).view(n, 4)
    zeros = torch.zeros(n, dtype=torch.int64)
    return Objects(
        boxes=corners,
        scores=torch.tensor(scores or [0.5] * n, dtype=torch.float32).view(n),
        class_ids=torch.tensor(classes, dtype=torch.int64).view(n),
        labels=tuple(f"thing {c}" for c in classes),
        index=zeros,
        level=zeros,
        cells=torch.zeros(n, 2, dtype=torch.int64),
        network_boxes=corners,
    )


class TestTracker:
    """Numbers that stay."""

    def test_two_that_cross_in_any_order_keep_their_numbers(self, seed: int) -> None:
        generator = np.random.default_rng(seed)
        tracker = Tracker(25)
        expected: dict[str, int] = {}
        for t in range(40):
            places = {"right": (10 + 5 * t, 40, 50 + 5 * t, 140), "left": (210 - 5 * t, 160, 250 - 5 * t, 260)}
            order = list(generator.permutation(["right", "left"]))
            scores = generator.uniform(0.3, 0.9, 2).tolist()
            numbers = tracker.update(objects_at([places[name] for name in order], [0, 0], scores), t / 25)
            found = dict(zip(order, numbers, strict=True))
            expected = expected or found
            assert found == expected
        assert sorted(expected.values()) == [1, 2]

    def test_everyone_has_a_number_at_once_even_in_one_frame(self, seed: int) -> None:
        tracker = Tracker(25)
        first = tracker.update(objects_at([(0, 0, 50, 50), (100, 0, 150, 50)], [0, 1]), 0.0)
        second = tracker.update(objects_at([(300, 0, 350, 50), (1, 0, 51, 50), (101, 0, 151, 50)], [2, 0, 1]), 0.04)
        assert sorted(first) == [1, 2]
        assert second[1:] == first
        assert second[0] == 3

    def test_classes_are_never_taken_for_each_other(self) -> None:
        """The same place, twice: a car that is also called a truck."""
        tracker = Tracker(25)
        box = (10.0, 10.0, 80.0, 80.0)
        first = tracker.update(objects_at([box, box], [2, 7], [0.8, 0.6]), 0.0)
        second = tracker.update(objects_at([box, box], [7, 2], [0.8, 0.6]), 0.04)
        assert first[0] != first[1]
        assert second == first[::-1]

    def test_a_short_absence_and_a_long_one(self) -> None:
        tracker = Tracker(10)
        box = [(10.0, 10.0, 80.0, 80.0)]
        number = tracker.update(objects_at(box, [0]), 0.0)
        for t in range(1, 4):
            assert tracker.update(objects_at(box, [0]), t / 10) == number
        assert tracker.update(objects_at([], []), 0.4) == []
        assert tracker.update(objects_at(box, [0]), 0.5) == number
        for t in range(6, 40):
            tracker.update(objects_at([], []), t / 10)
        assert tracker.update(objects_at(box, [0]), 4.0) != number


NETWORK = (80, 160)  # cells of 8 pixels: 10 x 20


def one_hot(row: int, column: int, value: float = 1.0, size: tuple[int, int] = (10, 20)) -> Tensor:
    """A blob of 3 x 3 cells."""
    heat = torch.zeros(size)
    heat[row - 1 : row + 2, column - 1 : column + 2] = value
    return heat


def add(memory: HeatMemory, raw: Tensor, time: float, box: tuple[float, ...] = (16, 16, 64, 64)) -> Tensor:
    memory.add([1], np.array([box]), [raw], [0.5], [None], time, NETWORK)
    (heat,) = memory.get([1], time)
    assert heat is not None
    return heat.map / heat.scale


class TestHeatMemory:
    """Scale, following and motion, against formulas by hand."""

    def test_the_first_map_is_shown_as_it_is(self, seed: int) -> None:
        raw = torch.randn(10, 20) * 7
        torch.testing.assert_close(add(HeatMemory(), raw, 3.0), raw.relu() / raw.max())

    def test_follows_a_new_map_within_a_time(self) -> None:
        memory, first, second = HeatMemory(), one_hot(4, 5, 2.0), one_hot(4, 12, 2.0)
        add(memory, first, 0.0)
        shown = add(memory, second, 0.1)
        share = 1 - np.exp(-0.1 / FOLLOW)
        mixed = first * (1 - share) + second * share
        torch.testing.assert_close(shown, mixed / (2.0 * 0.5 ** (0.1 / HALF_LIFE)))

    def test_the_scale_is_the_recent_maximum(self) -> None:
        """A weaker map looks weaker, and wins back its strength with the half-life."""
        memory = HeatMemory()
        add(memory, one_hot(4, 5, 4.0), 0.0)
        shown = [float(add(memory, one_hot(4, 5, 1.0), 0.1 * t).max()) for t in range(1, 60)]
        assert max(shown) <= 1.0
        assert shown[20] < 0.75
        assert shown[-1] == pytest.approx(1.0)
        assert float(add(memory, one_hot(4, 5, 9.0), 6.1).max()) == 1.0

    def test_not_steady_means_each_for_itself(self, seed: int) -> None:
        memory = HeatMemory(steady=False)
        for t in range(3):
            raw = torch.randn(10, 20) * 10**t
            torch.testing.assert_close(add(memory, raw, t / 10), raw.relu() / raw.max())

    def test_a_still_object_flickers_half_as_much_at_most(self, seed: int) -> None:
        """A blob whose strength and cells tremble."""
        change = {}
        raws = [one_hot(4, 5) * (0.7 + 0.6 * torch.rand(())) + 0.3 * torch.rand(10, 20) for _ in range(40)]
        for steady in (True, False):
            memory = HeatMemory(steady)
            shown = torch.stack([add(memory, raw, t / 10) for t, raw in enumerate(raws)])
            change[steady] = float(shown[5:].diff(dim=0).abs().mean())
        assert change[True] < 0.5 * change[False]

    def test_what_is_carried_moves_with_the_box(self) -> None:
        """Two cells to the right and one down, while the new map is zero everywhere."""
        memory, heat = HeatMemory(), one_hot(4, 5)
        add(memory, heat, 0.0, (16, 16, 64, 64))
        shown = add(memory, torch.zeros(10, 20), 0.1, (32, 24, 80, 72))
        expected = torch.roll(heat, (1, 2), (0, 1))
        torch.testing.assert_close(shown / shown.max(), expected)

    def test_what_is_carried_grows_with_the_box(self) -> None:
        memory = HeatMemory()
        add(memory, one_hot(3, 4), 0.0, (16, 8, 48, 40))
        shown = add(memory, torch.zeros(10, 20), 0.1, (32, 16, 96, 80))
        rows, columns = (shown > 0.5 * shown.max()).nonzero().T
        assert (rows.min(), rows.max(), columns.min(), columns.max()) == (4, 9, 6, 11)

    def test_maps_of_several_levels_meet_on_the_finest(self, seed: int) -> None:
        memory = HeatMemory()
        coarse, fine = torch.rand(5, 10), torch.rand(10, 20)
        memory.add([1, 2], np.tile([16.0, 16, 64, 64], (2, 1)), [coarse, fine], [0.5] * 2, [None] * 2, 0.0, NETWORK)
        heats = memory.get([1, 2], 0.0)
        expected = torch.nn.functional.interpolate(coarse[None, None], (10, 20), mode="bilinear")[0, 0]
        torch.testing.assert_close(heats[0].map, expected)
        torch.testing.assert_close(heats[1].map, fine)

    def test_nothing_that_is_not_finite_gets_in(self) -> None:
        memory, raw = HeatMemory(), one_hot(4, 5)
        raw[0, 0], raw[1, 1], raw[2, 2] = float("nan"), float("inf"), -float("inf")
        for t in range(3):
            shown = add(memory, raw, t / 10)
            assert shown.isfinite().all()
            assert shown.max() == 1

    def test_forgets_tracks_that_are_gone(self) -> None:
        memory = HeatMemory()
        for t in range(200):
            memory.add([t], np.array([[0.0, 0, 9, 9]]), [torch.rand(4, 4)], [0.5], [None], t / 10, NETWORK)
            memory.get([t], t / 10)
        assert len(memory) < 30
        assert memory.get([0, 199], 20.0)[0] is None


@pytest.mark.parametrize("geometry", [
    Geometry((60, 90), (60, 90), (0, 0), (60, 90)),
    Geometry((60, 90), (80, 120), (8, 4), (96, 128)),
    Geometry((90, 60), (120, 80), (-10, -6), (100, 64)),
], ids=["whole", "letterbox", "cropped"])  # fmt: skip
def test_energy_is_that_of_the_full_heatmap(geometry: Geometry, seed: int) -> None:
    """The share of `Explanation.render`'s pixels whose centres lie in the box."""
    generator = np.random.default_rng(seed)
    height, width = geometry.source
    maps = [torch.randn(8, 11), torch.randn(8, 11).relu(), torch.randn(4, 6), torch.zeros(8, 11)]
    corners = np.sort(generator.uniform(-5, 95, (4, 2, 2)), axis=1)
    boxes = torch.from_numpy(np.concatenate([corners[:, 0], corners[:, 1]], axis=1)).float()
    explanation = explanation_of(np.zeros((height, width, 3), np.uint8), maps, geometry)
    full = explanation.render(dtype=torch.float32, normalize="none").double()
    y, x = torch.arange(height)[:, None] + 0.5, torch.arange(width) + 0.5
    found = energies(maps, boxes, geometry)
    for heat, box, energy in zip(full[:3], boxes[:3], found[:3], strict=True):
        inside = (x >= box[0]) & (x < box[2]) & (y >= box[1]) & (y < box[3])
        assert energy == pytest.approx(float(heat[inside].sum() / heat.sum()), abs=1e-4)
    assert np.isnan(found[3])
