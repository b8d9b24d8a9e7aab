"""Checks by intervention, against the same intervention by hand with OpenCV and the model's own call."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from support import fingerprint
from torch.nn.functional import interpolate
from torchvision.ops import box_iou

from detcam import Explainer, Explanation, InputError, zoo
from detcam.scenes import HELD_OUT_SEED, draw_scene
from detcam.types import Check


@pytest.fixture(scope="module")
def model() -> Any:
    return zoo.load("scenes-yolo")


@pytest.fixture(scope="module")
def explained(model: Any) -> Explanation:
    explanation = Explainer(model, "odam", "evidence")(draw_scene(HELD_OUT_SEED).image)
    assert len(explanation) > 2
    return explanation


def by_hand(model: Any, explanation: Explanation, i: int) -> tuple[float, float]:
    """(share hidden, fall) of an object: a quarter of its box, hottest pixels first, under OpenCV's blur."""
    explainer = Explainer(model, "box")
    image, geometry = explainer.prepare(explanation.image).tensor, explanation.geometry
    x1, y1, x2, y2 = explanation.objects.network_boxes[i].tolist()
    (rows, columns), (top, left) = geometry.resized, geometry.pad
    heat = interpolate(explanation.maps[i].clamp(min=0)[None, None], geometry.network, mode="bilinear")[0, 0]
    inside = torch.zeros(geometry.network, dtype=torch.bool)
    inside[top : top + rows, left : left + columns] = True
    pixels = round(0.25 * (x2 - x1) * (y2 - y1))
    limit = heat[inside].sort(descending=True).values[pixels - 1]
    assert int((heat[inside] >= limit).sum()) == pixels, "no ties"
    sigma = max(geometry.network) / 40
    blurred = cv2.GaussianBlur(image.permute(1, 2, 0).numpy(), (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
    changed = torch.where((heat >= limit) & inside, torch.from_numpy(blurred).permute(2, 0, 1), image)
    scores = []
    for pictures in (image, changed):
        with torch.no_grad():
            output = model.model.eval()(pictures[None])
        while not isinstance(output, torch.Tensor):  # the decoded predictions come first
            output = output[0]
        boxes, probabilities, _ = output[0].T.split([4, len(model.names), 32], dim=1)
        corners = torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], dim=1)
        iou = box_iou(explanation.objects.network_boxes[i : i + 1], corners)[0]
        scores.append(float((iou * probabilities[:, int(explanation.class_ids[i])]).max()))
    return pixels / int(inside.sum()), 1 - scores[1] / scores[0]


def test_the_fall_is_that_of_the_intervention_by_hand(model: Any, explained: Explanation) -> None:
    for i in range(2):
        share, fall = by_hand(model, explained, i)
        assert explained.check(i).share == pytest.approx(share, abs=1e-9)
        assert explained.check(i).hottest == pytest.approx(fall, abs=0.01)


def test_a_map_of_another_object_fails(explained: Explanation) -> None:
    swapped = replace(explained, maps=[*explained.maps[1:], explained.maps[0]])
    for true, false in zip(explained.checks, swapped.checks, strict=True):
        assert (true.random, true.shuffled, true.score) == (false.random, false.shuffled, false.score)
    falls = np.array([[e.hottest for e in explanation.checks] for explanation in (explained, swapped)])
    assert np.median(falls[0]) > 0.5
    assert np.median(falls[1]) < 0.1
    assert [any(check.passed for check in explanation.checks) for explanation in (explained, swapped)] == [True, False]


def test_objects_share_forwards_and_the_model_is_untouched(model: Any, explained: Explanation) -> None:
    before, images = fingerprint(model.model), []
    explainer = Explainer(model, "odam", "evidence")
    hook = explainer.adapter.module.register_forward_hook(lambda module, args, output: images.append(len(args[0])))
    again = explainer(explained.image)
    images.clear()
    assert again.checks == explained.checks
    hook.remove()
    hidden = [
        round(0.25 * float(side.prod()))
        for side in (again.objects.network_boxes[:, 2:] - again.objects.network_boxes[:, :2])
    ]
    rungs = {int(rounded(np.log2(pixels))) for pixels in hidden for rounded in (np.floor, np.ceil)}
    twin = 1  # the explanation by shuffled weights
    assert sum(images) == twin + 1 + 2 * len(again) + 3 * len(rungs)
    assert fingerprint(model.model) == before


def test_a_check_passes_by_a_tenth_over_both_others() -> None:
    assert Check(0.1, 0.9, 0.5, 0.1, 0.4).passed
    assert not Check(0.1, 0.9, 0.5, 0.1, 0.41).passed
    assert not Check(0.1, 0.9, 0.5, 0.45, 0.0).passed
    assert not Check(0.1, 0.0, None, None, None).passed
    assert Check(0.021, 0.9, 0.5, -0.02, None).sentence() == (
        "check passed: score -50 % without the hottest 2.1 % of the image, +2 % without random pixels, "
        "undefined by a map of shuffled weights"
    )


def test_the_check_is_saved_if_it_was_made(model: Any, explained: Explanation, tmp_path: Path) -> None:
    explained.check(0)
    explained.save(tmp_path)
    for item, check in zip(
        json.loads((tmp_path / "explanation.json").read_text())["objects"], explained.checks, strict=True
    ):
        assert item["check"]["hottest"] == pytest.approx(check.hottest, abs=1e-6)
        assert (item["check"]["passed"], item["check"]["text"]) == (check.passed, check.sentence())
    fresh = replace(explained)
    assert "check" not in fresh.to_dict()["objects"][0]


def test_the_model_does_not_travel_with_its_explanation(explained: Explanation) -> None:
    explained.check(0)
    assert len(pickle.dumps(explained)) < 20e6
    copy = pickle.loads(pickle.dumps(explained))
    assert copy.check(0) == explained.check(0)
    unchecked = pickle.loads(pickle.dumps(replace(explained)))
    with pytest.raises(InputError, match="the model was left out when this was saved or pickled"):
        unchecked.check(0)


def test_an_image_without_objects_has_no_checks(model: Any) -> None:
    assert Explainer(model, "odam", conf=0.9)(np.zeros((64, 64, 3), np.uint8)).checks == []
