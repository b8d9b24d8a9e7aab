"""Regions of semantic segmenters: by class, by component, as asked for, and where their heat lies in the picture."""

from __future__ import annotations

from itertools import product
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from semantic_models import (
    TORCHVISION,
    explain,
    label_map,
    options,
    picture_for,
    random_segmenter,
)
from support import few, few_rows, random_picture

from detcam import Explainer
from detcam.adapters.shared.segments import covered, on_source, segments_of
from detcam.errors import InputError
from detcam.geometry import Geometry

pytest.importorskip("transformers")

BACKGROUND = {*TORCHVISION, "smp-binary"}  # whose class 0 is the background


def test_components_part_the_classes(seed: int) -> None:
    picture = picture_for("segformer", seed)
    model = random_segmenter("segformer", seed).double()
    labels, logits = label_map("segformer", model, picture)
    explanation = explain("segformer", model, picture, segments="component", layers="level")
    assert len(explanation) > len(labels.unique())
    assert explanation.masks.sum(dim=0).eq(1).all()
    areas = explanation.masks.sum(dim=(1, 2)).tolist()
    assert areas == sorted(areas, reverse=True)
    for mask, c, score in zip(explanation.masks, explanation.class_ids.tolist(), explanation.scores, strict=True):
        assert bool((labels[mask] == c).all())
        array = mask.numpy().astype(np.uint8)
        assert cv2.connectedComponents(array)[0] == 2
        edge = torch.from_numpy(cv2.dilate(array, np.ones((3, 3), np.uint8)) - array > 0)
        assert bool((labels[edge] != c).all())
        assert float(score) == pytest.approx(float(logits.softmax(0)[c][mask].mean()), abs=1e-5)
    assert all(bool(m.any()) for m in explanation.maps)
    assert explain("segformer", model, picture, segments="component", max_det=3).labels == explanation.labels[:3]
    adapter: Any = Explainer(model, **options("segformer")).adapter
    adapter.segments = "blob"
    with pytest.raises(InputError, match="segments: 'blob' does not exist"):
        adapter.detect(adapter.forward(torch.zeros(1, 3, 96, 128).double(), 9), [], 0.0, 0.7, 9)


def test_regions_of_a_map_by_hand() -> None:
    labels = torch.tensor([[1, 0, 0, 2], [0, 1, 0, 2], [0, 0, 0, 2], [1, 0, -1, 3]])
    probability = torch.full((4, 4), 0.5)
    probability[0, 0], probability[3, 3] = 0.9, 0.1
    masks, classes, scores = segments_of(labels, probability, {0}, "class", 0.2, 9)
    assert classes.tolist() == [1, 2]
    assert [mask.sum().item() for mask in masks] == [3, 3]
    assert scores.tolist() == pytest.approx([1.9 / 3, 0.5])
    masks, classes, scores = segments_of(labels, probability, {0}, "component", 0.0, 9)
    assert classes.tolist() == [2, 1, 1, 3]  # the first two cells of class 1 touch at a corner
    assert masks[1].nonzero().tolist() == [[0, 0], [1, 1]]
    assert scores.tolist() == pytest.approx([0.5, 0.7, 0.5, 0.1])
    assert segments_of(labels, probability, {0}, "component", 0.0, 2)[1].tolist() == [2, 1]
    assert segments_of(labels, probability, {0, 1, 2, 3}, "class", 0.0, 2)[0].shape == (0, 4, 4)


@pytest.mark.parametrize("kind", few(["segformer", "mobilevit", "smp-unet"], "mobilevit"))
def test_regions_that_the_user_asks_for(kind: str, seed: int) -> None:
    picture = picture_for(kind, seed)
    model = random_segmenter(kind, seed)
    adapter: Any = Explainer(model, conf=0.0, **options(kind)).adapter
    pixels, geometry = adapter.prepare(picture)
    outputs = adapter.forward(torch.stack([pixels * 0, pixels]), 300)
    masks = torch.zeros(2, *picture.shape[:2], dtype=torch.bool)
    masks[0, 20:50, 30:70] = True
    masks[1, 40, 60] = True  # a point
    objects = adapter.objects_for_masks(outputs, masks, torch.tensor([3, 1]), geometry, image=1)
    _, logits = label_map(kind, model, picture)
    assert objects.class_ids.tolist() == [3, 1]
    assert objects.boxes.tolist() == [[30, 20, 70, 50], [60, 40, 61, 41]]
    probabilities = logits.softmax(0)
    expected = [float(probabilities[3, 20:50, 30:70].mean()), float(probabilities[1, 40, 60])]
    assert objects.scores.tolist() == pytest.approx(expected, abs=1e-5)
    # The point's scalar is the logit of the one cell that holds it.
    nothing = objects.select(torch.arange(0))
    point = adapter.score(outputs, [nothing, objects.select(torch.tensor([1]))], "class")
    cells = outputs.logits.shape[2:]
    column = (60 - 24) / 80 if kind == "mobilevit" else 60 / pixels.shape[2]
    cell = outputs.logits[1, 1, int(40 / pixels.shape[1] * cells[0]), int(column * cells[1])]
    assert float(point) == pytest.approx(float(cell), abs=1e-5)
    with pytest.raises(InputError, match="mask 0 has no pixel"):
        adapter.objects_for_masks(outputs, masks[:1] & False, torch.tensor([3]), geometry)
    with pytest.raises(InputError, match="class 5 does not exist: give one of 0 to 4"):
        adapter.objects_for_masks(outputs, masks[:1], torch.tensor([5]), geometry)


def test_crops_and_padding_by_hand() -> None:
    # A picture of 4 x 8 becomes 8 x 16, of which the network sees the middle 8 x 8: source columns 2 to 6.
    geometry = Geometry((4, 8), (8, 16), (0, -4), (8, 8))
    columns = torch.arange(8.0).expand(1, 8, 8)
    full, seen = on_source(columns, geometry)
    assert seen.int().tolist() == [[0, 0, 1, 1, 1, 1, 0, 0]] * 4
    torch.testing.assert_close(full[0, 0, 2:6], torch.tensor([0.5, 2.5, 4.5, 6.5]))
    masks = torch.zeros(1, 4, 8, dtype=torch.bool)
    masks[0, :2, :3] = True
    assert covered(masks, geometry, (2, 2))[0].tolist() == [[0.5, 0.0], [0.0, 0.0]]
    # And one of 4 x 6 stays as it is in the corner of 8 x 8.
    geometry = Geometry((4, 6), (4, 6), (0, 0), (8, 8))
    full, seen = on_source(columns, geometry)
    assert torch.equal(full, columns[:, :4, :6])
    assert bool(seen.all())
    masks = torch.ones(1, 4, 6, dtype=torch.bool)
    assert covered(masks, geometry, (2, 2))[0].tolist() == [[1.0, 0.5], [0.0, 0.0]]


@pytest.mark.parametrize(
    ("kind", "size"),
    few_rows(
        product(["fcn", "segformer", "dpt", "mobilevit", "mobilevitv2", "smp-unet"], [(96, 128), (70, 60), (60, 150)]),
        *zip(["fcn", "dpt", "mobilevit"], [(96, 128), (70, 60), (60, 150)], strict=True),
    ),
)
def test_a_squares_map_lies_on_the_square(kind: str, size: tuple[int, int], seed: int) -> None:
    """Nothing but the cells of a region is read by the last classifier, and they come back to the region's pixels."""
    explainer = Explainer(random_segmenter(kind, seed), layers="level", **options(kind))
    adapter: Any = explainer.adapter
    middle = (size[0] // 2, size[1] // 2)
    y, x = (m + int(torch.randint(-m // 4, m // 4, ())) for m in middle)
    masks = torch.zeros(5, *size, dtype=torch.bool)
    masks[:, y - 6 : y + 6, x - 6 : x + 6] = True
    adapter.detect = lambda outputs, geometries, *rest: [
        adapter.objects_for_masks(outputs, masks, torch.arange(5), geometries[0])
    ]
    explanation = explainer(random_picture(seed, *size))
    geometry, (rows, columns) = explanation.geometry, explanation.maps[0].shape
    cell = [
        geometry.network[axis] / cells * size[axis] / geometry.resized[axis]
        for axis, cells in enumerate((rows, columns))
    ]
    # A cell at the rim, half a cell more for the resize, and those beside it that smp's 3 x 3 classifier reads.
    reach = [int(side * (2.5 if kind.startswith("smp") else 1.5)) + 1 for side in cell]
    near = torch.zeros(size, dtype=torch.bool)
    near[max(y - 6 - reach[0], 0) : y + 6 + reach[0], max(x - 6 - reach[1], 0) : x + 6 + reach[1]] = True
    assert not near.all()
    assert not explanation.heatmaps[:, ~near].any()
    row, column = (
        int(place * geometry.resized[axis] / size[axis] + geometry.pad[axis]) * cells // geometry.network[axis]
        for axis, (place, cells) in enumerate(((y, rows), (x, columns)))
    )
    assert all(raw[row, column] != 0 for raw in explanation.maps)  # of either sign
