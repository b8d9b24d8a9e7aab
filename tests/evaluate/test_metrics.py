"""The measures of a map against a label: by hand, against Quantus, and at their two ends."""

import math

import numpy as np
import pytest
import torch

from detcam.evaluate.metrics.localisation import (
    LOCALISATION,
    Case,
    compactness,
    complexity,
    energy_in_box,
    energy_in_box_per_area,
    energy_in_mask,
    energy_in_mask_per_area,
    object_discrimination,
    pointing_box,
    pointing_mask,
    visual_explanation_accuracy,
)

H, W = 12, 20


def case(seed: int, n: int = 4) -> Case:
    """Random maps, boxes with corners between pixels, masks within them, and others' masks.

    Heat has 997 levels, and one pixel has the highest: 997 is prime, so no pixel is within rounding of a twentieth of
    the maximum, where VEA's thresholds are.
    """
    generator = torch.Generator().manual_seed(seed)
    heat = torch.randint(1, 997, (n, H * W), generator=generator) / 997
    heat.scatter_(1, torch.randint(H * W, (n, 1), generator=generator), 1.0)
    heat = heat.view(n, H, W)
    starts = torch.rand(n, 2, generator=generator) * torch.tensor([W / 2, H / 2])
    sides = 2 + torch.rand(n, 2, generator=generator) * torch.tensor([W / 2 - 2, H / 2 - 2])
    boxes = torch.cat([starts, starts + sides], dim=1)
    inside = Case(heat, boxes).in_boxes
    masks = inside & (torch.rand(n, H, W, generator=generator) < 0.7)
    columns, rows = (boxes[:, :2] + boxes[:, 2:]).div(2).long().unbind(1)
    masks[torch.arange(n), rows, columns] = True  # no mask is empty: energy per area would be undefined
    others = (torch.rand(n, H, W, generator=generator) < 0.2) & ~masks
    return Case(heat, boxes, masks, others)


def perfect() -> Case:
    """A map that is its mask, which fills its box; another object beside it."""
    mask = torch.zeros(1, H, W, dtype=torch.bool)
    mask[:, 2:6, 3:9] = True
    other = torch.zeros_like(mask)
    other[:, 8:11, 12:18] = True
    return Case(mask.float(), torch.tensor([[3.0, 2.0, 9.0, 6.0]]), mask, other)


def wrong() -> Case:
    """All heat on the other object."""
    good = perfect()
    assert good.others is not None
    return Case(good.others.float(), good.boxes, good.masks, good.others)


def test_each_measure_by_hand(seed: int) -> None:
    judged = case(seed)
    made = {measure.name: function(judged) for measure, function in LOCALISATION}
    assert judged.masks is not None
    assert judged.others is not None
    for i in range(len(judged.heatmaps)):
        heat = judged.heatmaps[i].double().numpy()
        mask, other = judged.masks[i].numpy(), judged.others[i].numpy()
        x1, y1, x2, y2 = judged.boxes[i].tolist()
        box = np.array([[x1 <= x + 0.5 < x2 and y1 <= y + 0.5 < y2 for x in range(W)] for y in range(H)])
        y, x = np.unravel_index(heat.argmax(), heat.shape)
        share = heat / heat.sum()
        centred = [
            share[r, c] * (((c + 0.5 - (x1 + x2) / 2) / (x2 - x1)) ** 2 + ((r + 0.5 - (y1 + y2) / 2) / (y2 - y1)) ** 2)
            for r in range(H)
            for c in range(W)
        ]
        ious = []
        for t in np.arange(20) / 20:
            hot = heat > t * heat.max()
            ious.append((hot & mask).sum() / (hot | mask).sum())
        expected = {
            "pointing_box": float(box[y, x]),
            "pointing_mask": float(mask[y, x]),
            "energy_in_box": heat[box].sum() / heat.sum(),
            "energy_in_box_per_area": heat[box].sum() / heat.sum() / (box.sum() / (H * W)),
            "energy_in_mask": heat[mask].sum() / heat.sum(),
            "energy_in_mask_per_area": heat[mask].sum() / heat.sum() / (mask.sum() / (H * W)),
            "odi": heat[other].sum() / (heat[mask].sum() + heat[other].sum()),
            "vea": np.mean(ious),
            "compactness": math.sqrt(sum(centred)),
            "complexity": -(share * np.log(share)).sum() / math.log(H * W),
        }
        assert expected.keys() == made.keys()
        for name, value in expected.items():
            assert float(made[name][i]) == pytest.approx(value, abs=2e-5), name


def test_a_perfect_map_and_one_on_another_object() -> None:
    best, worst = perfect(), wrong()
    for function in (pointing_box, pointing_mask, energy_in_box, energy_in_mask, visual_explanation_accuracy):
        assert function(best).tolist() == [1.0], function.__name__
        assert function(worst).tolist() == [0.0], function.__name__
    assert object_discrimination(best).tolist() == [0.0]
    assert object_discrimination(worst).tolist() == [1.0]
    for function in (energy_in_box_per_area, energy_in_mask_per_area):
        assert float(function(best)) == pytest.approx(H * W / 24)
        assert function(worst).tolist() == [0.0]


def test_the_ends_of_compactness_and_complexity() -> None:
    box = torch.tensor([[2.0, 2.0, 7.0, 5.0]])  # its middle is the centre of pixel (row 3, column 4)
    centre, aside, even = torch.zeros(3, 1, H, W)
    centre[0, 3, 4] = 5.0
    aside[0, 3, 9] = 0.2  # one width to the right
    even += 0.7
    assert compactness(Case(centre, box)).tolist() == [0.0]
    assert float(compactness(Case(aside, box))) == pytest.approx(1.0)
    assert complexity(Case(centre, box)).tolist() == [0.0]
    assert float(complexity(Case(even, box))) == pytest.approx(1.0, abs=1e-6)


def test_even_heat_scores_the_share_of_the_area(seed: int) -> None:
    judged = case(seed)
    even = Case(torch.ones_like(judged.heatmaps), judged.boxes, judged.masks, judged.others)
    assert judged.masks is not None
    area = judged.masks.float().mean(dim=(1, 2))
    torch.testing.assert_close(energy_in_mask(even), area)
    torch.testing.assert_close(energy_in_mask_per_area(even), torch.ones(len(area)))
    torch.testing.assert_close(pointing_mask(even), area)  # every pixel is the hottest


def test_noise_scores_as_noise(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    n, size = 400, (40, 60)
    heat = torch.rand(n, *size, generator=generator)
    boxes = torch.tensor([[6.0, 4.0, 36.0, 24.0]]).repeat(n, 1)  # a quarter of the picture
    masks = Case(heat, boxes).in_boxes
    others = torch.zeros_like(masks)
    others[:, 30:, 30:] = True  # an eighth
    noise = Case(heat, boxes, masks, others)
    assert float(pointing_mask(noise).mean()) == pytest.approx(0.25, abs=0.12)  # 5.5 deviations
    assert float(energy_in_mask(noise).mean()) == pytest.approx(0.25, abs=0.005)
    assert float(energy_in_box_per_area(noise).mean()) == pytest.approx(1.0, abs=0.02)
    assert float(object_discrimination(noise).mean()) == pytest.approx(1 / 3, abs=0.01)
    assert 0.97 < float(complexity(noise).mean()) < 0.99


def test_blank_maps_and_labels_without_masks(seed: int) -> None:
    judged = case(seed)
    blank = Case(torch.zeros_like(judged.heatmaps), judged.boxes, judged.masks, judged.others)
    for measure, function in LOCALISATION:
        values = function(blank)
        undefined = measure.name in ("odi", "compactness", "complexity")
        assert bool(values.isnan().all() if undefined else (values == 0).all()), measure.name
    boxed = Case(judged.heatmaps, judged.boxes)
    for measure, function in LOCALISATION:
        needs_mask = "mask" in measure.name or measure.name in ("odi", "vea")
        assert bool(function(boxed).isnan().all()) == needs_mask, measure.name


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"heatmaps \[N, H, W\]"):
        Case(torch.rand(2, 4, 4), torch.rand(3, 4))
    with pytest.raises(ValueError, match="masks"):
        Case(torch.rand(2, 4, 4), torch.rand(2, 4), torch.zeros(2, 4, 5, dtype=torch.bool))


@pytest.mark.nightly
def test_quantus_agrees(seed: int) -> None:
    """Quantus 0.6 on the same maps and masks, for what it defines alike."""
    quantus = pytest.importorskip("quantus")
    judged = case(seed)
    n = len(judged.heatmaps)
    assert judged.masks is not None
    maps, masks = judged.heatmaps[:, None].numpy(), judged.masks[:, None].numpy()
    batch = {
        "model": torch.nn.Identity(), "x_batch": np.zeros((n, 3, H, W), np.float32), "y_batch": np.zeros(n, int),
        "a_batch": maps, "s_batch": masks, "device": "cpu",
    }  # fmt: skip
    plain = {"normalise": False, "abs": False, "disable_warnings": True}
    pairs = {
        quantus.PointingGame(**plain): pointing_mask,
        quantus.RelevanceMassAccuracy(**plain): energy_in_mask,
        quantus.Complexity(**plain): complexity,
    }
    for theirs, ours in pairs.items():
        expected = np.array(theirs(**batch), dtype=float)
        if ours is complexity:
            expected = expected / math.log(H * W)
        np.testing.assert_allclose(ours(judged).numpy(), expected, atol=2e-5, err_msg=ours.__name__)
