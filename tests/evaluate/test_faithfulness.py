"""Deletion and insertion: toy models whose areas are known, and a detector asked one picture at a time."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from detcam import Explainer
from detcam.boxes import box_iou
from detcam.engine.masking import fill, places
from detcam.evaluate.metrics.faithfulness import Curves, curves, ends, measures, shares
from detcam.runners.likeness import Likeness

SIDE = 40
INSIDE = torch.ones(SIDE, SIDE, dtype=torch.bool)


def visible(region: Tensor) -> object:
    """A model whose score is the share of a region that it sees, of a white picture on black."""
    return lambda pictures, asked: pictures[:, 0, region].mean(dim=1)


def run(heat: Tensor, region: Tensor, steps: int = 10) -> Curves:
    white = torch.ones(3, SIDE, SIDE)
    hide = fill("black", white, torch.zeros_like(white))
    owner = torch.zeros(len(heat), dtype=torch.int64)
    score = visible(region)
    whole, hidden = ends(score, hide, INSIDE, owner[:1], 4)
    count = len(heat)
    return curves(score, hide, places(heat, INSIDE), owner, whole.repeat(count), hidden.repeat(count), 7, steps)


def test_the_best_and_the_worst_map(seed: int) -> None:
    region = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    region[:20, :20] = True  # a quarter: the curve bends at one of the steps, so that the areas are exact
    made = run(torch.stack([region.float(), 1 - region.float()]), region)
    deletion, insertion, raw_deletion, raw_insertion, least = made.values()
    for areas, best, worst in ((deletion, 0.125, 0.875), (insertion, 0.875, 0.125)):
        assert float(areas[0]) == pytest.approx(best, abs=1e-3)
        assert float(areas[1]) == pytest.approx(worst, abs=0.02)  # it bends between two steps
    torch.testing.assert_close(raw_deletion, deletion)
    torch.testing.assert_close(raw_insertion, insertion)
    torch.testing.assert_close(least, torch.tensor([0.125, 0.875]), atol=0.02, rtol=0)


def test_one_decisive_pixel_brings_the_ends() -> None:
    region = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    region[7, 9] = True
    deletion, insertion, _, _, least = run(torch.stack([region.float(), 1 - region.float()]), region).values()
    half = float(shares()[1]) / 2  # between the first two points of the curve
    assert deletion[0] <= half + 1e-6
    assert insertion[0] >= 1 - half - 1e-6
    assert least[0] <= half + 1e-6
    last = float(1 - shares()[-2]) / 2
    assert deletion[1] == pytest.approx(1 - last)
    assert insertion[1] == pytest.approx(last)


def test_noise_scores_as_noise(seed: int) -> None:
    region = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    region[5:30, 8:33] = True
    deletion, insertion, *_ = run(torch.rand(20, SIDE, SIDE), region).values()
    assert float(deletion.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(insertion.mean()) == pytest.approx(0.5, abs=0.02)


def test_raw_areas_scale_with_the_score_and_relative_ones_do_not() -> None:
    curve = torch.tensor([[0.8, 0.4, 0.0], [0.4, 0.2, 0.0]])
    made = Curves(shares(2), curve, curve.flip(1))
    deletion, insertion, raw_deletion, _, least = made.values()
    assert float(deletion[0]) == pytest.approx(float(deletion[1]))
    assert float(insertion[0]) == pytest.approx(float(insertion[1]))
    assert float(raw_deletion[0]) == pytest.approx(2 * float(raw_deletion[1]))
    assert least.tolist() == pytest.approx([0.25, 0.25])  # the point of the middle step
    unseen = Curves(shares(2), torch.zeros(1, 3), torch.zeros(1, 3)).values()
    assert [bool(v.isnan()) for v in unseen] == [True, True, False, False, True]
    assert len(made.values()) == len(measures("blur"))


def test_a_detector_asked_one_picture_at_a_time(seed: int, detector: nn.Module, picture: np.ndarray) -> None:
    """The same curves by a plain loop: hide, forward, and the largest IoU * p of the object's class."""
    explainer = Explainer(detector, "box", imgsz=160)
    found, adapter = explainer(picture).objects, explainer.adapter
    image = adapter.prepare(picture)[0]
    owner = torch.tensor([0, len(found) - 1, 0])
    heat, inside = torch.rand(3, *image.shape[1:]), torch.ones(image.shape[1:], dtype=torch.bool)
    hide, score = fill("black", image, torch.zeros_like(image)), Likeness(adapter, found, 300)
    objects = torch.tensor([0, len(found) - 1])
    whole, hidden = ends(score, hide, inside, objects, 3)
    back = torch.tensor([0, 1, 0])
    made = curves(score, hide, places(heat, inside), owner, whole[back], hidden[back], 5, steps=3)

    def asked(pixels: Tensor, i: int) -> float:
        with torch.no_grad():
            boxes, probabilities, _ = adapter.candidates(adapter.forward(pixels[None], 300))
        x1, y1, x2, y2 = found.network_boxes[i].tolist()
        best = 0.0
        likely = probabilities[0, :, int(found.class_ids[i])].numpy()
        for (a, b, c, d), p in zip(boxes[0].tolist(), likely, strict=True):
            both = max(min(x2, c) - max(x1, a), 0) * max(min(y2, d) - max(y1, b), 0)
            union = (x2 - x1) * (y2 - y1) + max(c - a, 0) * max(d - b, 0) - both
            best = max(best, both / union * p if union > 0 else 0.0)
        return best

    for k in range(3):
        order = heat[k].flatten().argsort(descending=True)
        for step, share in enumerate((torch.arange(4) / 3) ** 2):
            hot = torch.zeros(heat[k].numel(), dtype=torch.bool)
            hot[order[: round(float(share) * len(order))]] = True
            hot = hot.view(image.shape[1:])
            tolerance = {"abs": 1e-3}
            assert float(made.deletion[k, step]) == pytest.approx(asked(image * ~hot, int(owner[k])), **tolerance)
            assert float(made.insertion[k, step]) == pytest.approx(asked(image * hot, int(owner[k])), **tolerance)
    assert bool((made.initial >= found.scores[owner] - 1e-3).all())  # its own anchor, or a better one


def test_the_ends_are_run_once(seed: int) -> None:
    shown: list[int] = []
    white = torch.ones(3, SIDE, SIDE)
    hide = fill("black", white, torch.zeros_like(white))

    def score(pictures: Tensor, asked: Tensor) -> Tensor:
        shown.append(len(pictures))
        return pictures.mean(dim=(1, 2, 3)) + asked

    owner = torch.tensor([0, 1, 0, 1, 0, 1])
    whole, hidden = ends(score, hide, INSIDE, torch.tensor([0, 1]), 100)
    assert sum(shown) == 4
    back = owner
    made = curves(score, hide, places(torch.rand(6, SIDE, SIDE), INSIDE), owner, whole[back], hidden[back], 16, steps=4)
    assert sum(shown) == 4 + 6 * 2 * 3
    assert max(shown) == 16
    assert made.initial.tolist() == pytest.approx([1, 2, 1, 2, 1, 2])


def test_overlap_of_boxes() -> None:
    box = torch.tensor([0.0, 0.0, 4.0, 2.0])
    others = torch.tensor([[0.0, 0.0, 4.0, 2.0], [2.0, 0.0, 6.0, 2.0], [5.0, 5.0, 6.0, 6.0], [1.0, 1.0, 1.0, 1.0]])
    assert box_iou(box[None], others)[0].tolist() == pytest.approx([1.0, 1 / 3, 0.0, 0.0])
