"""What the contract of all families compares: predictions, maps, and answers about missed objects."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from family_case import FamilyCase, Prediction
from torch import Tensor
from torchvision.ops import box_iou

from detcam import Explanation
from detcam.adapters import Adapter
from detcam.types import Objects


def assert_predicted(explanation: Explanation, expected: Prediction, case: FamilyCase) -> None:
    """Same objects in the same order; only objects whose scores are equal but for rounding may change places."""
    scores = expected.scores.float()
    assert len(explanation) == len(scores), f"{explanation.scores.tolist()} instead of {scores.tolist()}"
    torch.testing.assert_close(explanation.scores, scores, rtol=0, atol=case.score)
    free = set(range(len(scores)))
    for i, score in enumerate(explanation.scores):
        fits = (scores - score).abs() <= case.score
        if expected.boxes is not None:
            room = case.box + case.share * expected.boxes.abs()
            fits &= ((expected.boxes - explanation.boxes[i]).abs() <= room).all(dim=1)
        if expected.class_ids is not None:
            fits &= expected.class_ids == explanation.class_ids[i]
        if expected.masks is not None:
            assert explanation.masks is not None
            fits &= (expected.masks == explanation.masks[i]).double().mean(dim=(1, 2)) >= (1 if case.exact else 0.999)
        matches = free & set(fits.nonzero().flatten().tolist())
        assert matches, f"object {i} of {len(scores)}, {explanation.boxes[i].tolist()}, is not one of the library's"
        free.remove(i if i in matches else min(matches))
    if expected.names is not None:
        assert explanation.labels == [expected.names[c] for c in explanation.class_ids.tolist()]
    if expected.segments is not None:
        assert explanation.masks is not None
        segments = torch.full_like(expected.segments, -1)
        for i, mask in enumerate(explanation.masks):
            segments[mask] = i
        assert float((segments == expected.segments).double().mean()) > 0.999


def assert_sound(explanation: Explanation, broken: bool = False) -> None:
    """A finite map and heatmap for each object in source pixels; where there is no heat, a note says why.

    Of a broken model the raw maps may hold what is not finite, if a note says so.
    """
    height, width = explanation.image.shape[:2]
    assert explanation.heatmaps.shape == (len(explanation), height, width)
    assert bool(explanation.heatmaps.isfinite().all())
    assert explanation.masks is None or explanation.masks.shape == (len(explanation), height, width)
    for raw, heat, note in zip(explanation.maps, explanation.heatmaps, explanation.notes, strict=True):
        assert raw.dtype == torch.float32
        assert bool(raw.isfinite().all()) or (broken and note is not None and "not finite" in note)
        assert float(heat.amin()) >= 0
        assert float(heat.amax()) <= 1
        assert bool(heat.any()) or note is not None


def objects_in(adapter: Adapter, image: np.ndarray, conf: float = 0.0) -> Objects:
    pixels, geometry = adapter.prepare(image)
    return adapter.detect(adapter.forward(pixels[None], 300), [geometry], conf, 0.7, 100)[0]


def visible(boxes: Tensor, class_ids: Tensor, image: np.ndarray) -> list[tuple[list[float], int]]:
    """Boxes of some size inside the image, each with its class."""
    height, width = image.shape[:2]
    return [
        ([x1, y1, x2, y2], int(label))
        for (x1, y1, x2, y2), label in zip(boxes.tolist(), class_ids, strict=True)
        if x2 > max(x1 + 1, 1) and y2 > max(y1 + 1, 1) and x1 < width - 1 and y1 < height - 1
    ]


def jittered(boxes: Tensor, seed: int) -> Tensor:
    return boxes + 4 * torch.rand(boxes.shape, generator=torch.Generator().manual_seed(seed)) - 2


def check_answer(
    answer: Any,
    asked: Explanation,
    explanation: Explanation,
    returned: list[tuple[int, int]],
    conf: float,
    exact: bool,
) -> None:
    """What holds whatever the reason: the object, its score and box, and whether it is among the returned ones."""
    first = answer.objects[0]
    if answer.reason != "no overlap":
        assert (answer.reason == "returned") == ((answer.candidate, answer.class_id) in returned), answer
    assert int(asked.objects.index[first]) == answer.candidate
    assert asked.labels[first] == answer.label
    overlap = box_iou(torch.tensor([answer.box]), asked.boxes[first : first + 1])
    assert answer.iou == pytest.approx(float(overlap), abs=1e-4)
    assert 1 <= answer.rank <= answer.candidates
    if answer.reason == "returned" and exact:
        i = returned.index((answer.candidate, answer.class_id))
        scale = float(explanation.maps[i].abs().max())
        edges = torch.tensor(explanation.image.shape[1::-1] * 2)  # boxes around rotated ones may lead beyond them
        boxes = (boxes.clamp(min=0).minimum(edges) for boxes in (asked.boxes[first], explanation.boxes[i]))
        torch.testing.assert_close(*boxes, rtol=0, atol=1e-2)
        torch.testing.assert_close(asked.scores[first], explanation.scores[i], rtol=0, atol=1e-4)
        torch.testing.assert_close(asked.maps[first], explanation.maps[i], rtol=0, atol=1e-3 * scale)
    elif answer.reason == "confidence":
        assert answer.score <= conf
    elif answer.reason == "suppressed":
        assert answer.rival is not None
        assert answer.rival.class_id == answer.class_id
        assert answer.rival.score >= answer.score > conf
    elif answer.reason == "another class won":
        assert answer.rival is not None
        assert answer.rival.score > max(answer.score, conf)
        assert len(answer.objects) == 2
