"""Segmenters without instances, transformers, and models of one's own before the judge."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from support import NIGHTLY, explanation_of
from torch import Tensor, nn

from benchmarks.training.yolo_dataset import write_dataset
from detcam import Explainer, Objects, zoo
from detcam.adapters import CallableAdapter
from detcam.adapters.shared.segments import mask_iou
from detcam.evaluate.contenders import Contender, contenders
from detcam.evaluate.judge import NO_MASKS, NO_WEIGHTS, Judge, Protocol
from detcam.evaluate.labels.base import Label
from detcam.evaluate.labels.read import read_labels
from detcam.evaluate.matching import by_class, match
from detcam.evaluate.report import markdown, summarise
from detcam.explanation import Explanation
from detcam.images import read_image
from detcam.runners.likeness import Likeness
from detcam.scenes import HELD_OUT_SEED

SMALL = Protocol(objects=2, steps=2, stages=1, stability=1)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A held-out scene with YOLO-seg labels, whose class numbers count no background."""
    folder = tmp_path_factory.mktemp("scenes")
    write_dataset(folder, train=(), val=[HELD_OUT_SEED], size=(240, 320), workers=1)
    return folder


@pytest.fixture(scope="module")
def segmenter_of_classes() -> Any:
    return zoo.load("scenes-semantic")


def judged(model: Any, everyone: list[Contender], scenes: Path, **options: Any) -> dict[str, Any]:
    torch.set_num_threads(1)
    judge = Judge(model, everyone, read_labels(scenes / "labels" / "val"), SMALL, **options)
    row = judge.row(next((scenes / "images" / "val").iterdir()), stable=True)
    json.dumps(row, allow_nan=False)
    return row


def region(rows: slice, columns: slice) -> np.ndarray:
    mask = np.zeros((20, 30), bool)
    mask[rows, columns] = True
    return mask


def label(kind: int, mask: np.ndarray, painted: bool = True) -> Label:
    y, x = np.nonzero(mask)
    return Label(kind, np.array([x.min(), y.min(), x.max() + 1, y.max() + 1], float), mask if painted else None)


def regions_found(masks: list[np.ndarray]) -> Explanation:
    """An explanation of regions of the classes 0, 1, ..."""
    found = torch.from_numpy(np.stack(masks))
    boxes = torch.tensor(np.stack([label(0, mask).box for mask in masks])).float()
    plain = explanation_of(np.zeros((20, 30, 3), np.uint8), [torch.ones(2, 2)] * len(masks), boxes=boxes)
    objects = Objects(**{**vars(plain.objects), "masks": found})
    return Explanation(plain.image, objects, plain.maps, plain.notes, plain.settings, plain.geometry)


def test_a_region_stands_for_all_labels_of_its_class() -> None:
    left, right = (region(slice(2, 8), columns) for columns in (slice(1, 9), slice(20, 28)))
    below = region(slice(12, 18), slice(4, 20))
    labels = [label(0, left), label(1, below), label(0, right)]
    explanation = regions_found([left | right, below])
    assert match(explanation, labels).objects == [1]  # as instances, only the second fits
    matched = match(explanation, labels, "class")
    assert (matched.objects, matched.iou) == ([0, 1], [1.0, 1.0])
    assert matched.boxes.tolist() == [[1, 2, 28, 8], [4, 12, 20, 18]]
    assert matched.masks is not None
    assert matched.others is not None
    assert matched.masks.numpy().tolist() == [(left | right).tolist(), below.tolist()]
    assert matched.others.numpy().tolist() == [below.tolist(), (left | right).tolist()]


def test_regions_match_by_what_they_cover() -> None:
    """A stray pixel far away leaves the box of a region no IoU, and its mask nearly all."""
    body = region(slice(2, 8), slice(2, 8))
    stray = body | region(slice(19, 20), slice(29, 30))
    matched = match(regions_found([stray]), [label(0, body)], "class")
    assert matched.iou == pytest.approx([36 / 37])
    assert match(regions_found([stray]), [label(0, body)]).objects == []
    assert match(regions_found([stray]), [label(0, body, painted=False)], "class").objects == []
    assert match(regions_found([body]), [label(0, body, painted=False)], "class").iou == [1.0]
    assert match(regions_found([body]), [], "class").objects == []


def test_labels_of_a_class_together() -> None:
    one, two = region(slice(0, 2), slice(0, 3)), region(slice(5, 9), slice(10, 12))
    merged, other = by_class([label(4, one), label(7, one, painted=False), label(4, two)])
    assert (merged.kind, merged.box.tolist()) == (4, [0, 0, 12, 9])
    np.testing.assert_array_equal(merged.mask, one | two)
    assert (other.kind, other.mask) == (7, None)
    assert by_class([label(4, one), label(4, two, painted=False)])[0].mask is None


def test_overlap_of_a_region_with_masks() -> None:
    share = torch.zeros(4, 4)
    share[1:3, 1:3] = torch.tensor([[1.0, 0.5], [1.0, 0.5]])
    masks = torch.zeros(3, 4, 4, dtype=torch.bool)
    masks[0, 1:3, 1] = True
    masks[1, 1:3, 1:3] = True
    assert mask_iou(share, masks).tolist() == pytest.approx([2 / 3, 3 / 4, 0])
    assert mask_iou(share * 0, masks).tolist() == [0, 0, 0]


@pytest.mark.parametrize("segments", [pytest.param("class", marks=pytest.mark.nightly), "component"])
def test_the_score_of_a_region_by_hand(segmenter_of_classes: Any, scenes: Path, segments: str) -> None:
    """s = the largest IoU * mean softmax over regions of the class, from the classifier's own logits."""
    path = next((scenes / "images" / "val").iterdir())
    explainer = Explainer(segmenter_of_classes, "box", segments=segments)
    image = read_image(path)
    found = explainer(image)
    assert len(found) > 1
    picture = explainer.adapter.prepare(image)[0]
    pictures = torch.stack([picture, picture.flip(2), torch.zeros_like(picture)])
    kept: list[Tensor] = []
    handle = segmenter_of_classes.decode_head.classifier.register_forward_hook(lambda *a: kept.append(a[2]))
    with torch.no_grad():
        segmenter_of_classes(pixel_values=pictures)
    handle.remove()
    probabilities = kept[0].softmax(dim=1).numpy()
    assert found.objects.mask_logits is not None
    score = Likeness(explainer.adapter, found.objects, 300)
    for i in range(len(found) if NIGHTLY else 3):
        share, number = (found.objects.mask_logits[i].numpy() + 1) / 2, int(found.class_ids[i])
        expected = []
        for one in probabilities:
            own = one.argmax(axis=0) == number
            parts = own.astype(np.int32)
            if segments == "component":
                parts = cv2.connectedComponents(own.astype(np.uint8), connectivity=8)[1]
            best = 0.0
            for part in range(1, parts.max() + 1):
                inside = parts == part
                both = share[inside].sum()
                best = max(best, both / (share.sum() + inside.sum() - both) * one[number][inside].mean())
            expected.append(best)
        made = score(pictures, torch.full((3,), i))
        np.testing.assert_allclose(made.numpy(), expected, atol=1e-5)
        if found.scores[i] > 0.5:
            assert made[0] > made[1:].amax() + 0.1  # mirrored, or gone


def test_a_segmenter_before_the_judge(segmenter_of_classes: Any, scenes: Path) -> None:
    """Matched although its numbers count a background, and every column has a value or a reason."""
    found, left_out = contenders(segmenter_of_classes, ["odam", "gradcam", "attention"], ["level"])
    assert set(left_out) == {"attention"}
    function = Contender("function", lambda image: found[0].explain(image))
    row = judged(segmenter_of_classes, [*found, function], scenes)
    assert len(row["objects"]) > 1
    assert len({entry["class_id"] for entry in row["objects"]}) == len(row["objects"])
    names = set(segmenter_of_classes.config.id2label.values()) - {"background"}
    assert {entry["label"] for entry in row["objects"]} <= names
    columns = {m.name for m in SMALL.measures()}
    for entry in row["objects"][: SMALL.objects]:
        for name, values in entry["maps"].items():
            assert all(name in row["undefined"][measure] for measure in columns - set(values))
    best = row["objects"][0]["maps"]
    assert best["odam @ level"]["energy_in_mask"] > best["noise"]["energy_in_mask"] + 0.2
    assert best["odam @ level"]["insertion_blur"] > best["noise"]["insertion_blur"]
    assert row["undefined"]["randomised"]["function"] == NO_WEIGHTS
    assert row["cascade"]["box"] == [1.0]


@pytest.mark.nightly
def test_a_transformer_before_the_judge(scenes: Path) -> None:
    model, options = zoo.load("scenes-detr"), {"max_det": 4}
    found, left_out = contenders(model, ["odam", "attention", "rollout", "relevance"], ["level"], **options)
    assert not left_out
    row = judged(model, found, scenes, **options)
    assert row["failed"] == {}
    columns = {m.name for m in SMALL.measures()}
    for entry in row["objects"][: SMALL.objects]:
        for name, values in entry["maps"].items():
            assert all(name in row["undefined"][measure] for measure in columns - set(values))
        assert {"randomised", "insertion_blur"} <= set(entry["maps"]["relevance"])


class Plain(nn.Module):
    """Scores [B, 4] of four fixed boxes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 4, 8, stride=8)

    def forward(self, batch: Tensor) -> Tensor:
        result: Tensor = self.body(batch).clamp(min=-5).mean(dim=(2, 3)) + 3
        return result


def test_what_is_not_defined_is_said(scenes: Path, tmp_path: Path) -> None:
    """A model of one's own with neither candidates nor a probability, labels without masks, and maps without ranks."""

    def detect(logits: Tensor, conf: float) -> list[dict[str, Tensor]]:
        return [
            {
                "boxes": torch.tensor([[16.0, 24.0, 80.0, 72.0]]),
                "scores": one[:1].sigmoid(),
                "class_ids": torch.zeros(1, dtype=torch.int64),
                "index": torch.zeros(1, dtype=torch.int64),
            }
            for one in logits
        ]

    def score(logits: Tensor, objects: list[Objects], target: str) -> Tensor:
        return torch.cat([logits[i, o.index] for i, o in enumerate(objects)])

    adapter = CallableAdapter(lambda module, batch: module(batch), detect, score, layers=["body"], names=["thing"])
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.mkdir()
    labels.mkdir()
    cv2.imwrite(str(images / "a.png"), np.random.default_rng(0).integers(0, 255, (96, 96, 3), np.uint8))
    (labels / "a.txt").write_text("0 0.5 0.5 0.6667 0.5\n")
    options: dict[str, Any] = {"adapter": adapter, "imgsz": 96}
    model = Plain().eval()
    found, _ = contenders(model, ["odam"], ["level"], **options)
    row = Judge(model, found, read_labels(labels), SMALL, **options).row(images / "a.png", stable=True)
    (entry,) = row["objects"]
    assert "energy_in_box" in entry["maps"]["odam @ level"]
    for name in entry["maps"]:
        assert "lists no candidates and has no probability" in row["undefined"]["deletion_blur"][name]
        assert row["undefined"]["energy_in_mask"][name] == NO_MASKS
        assert row["undefined"]["odi"][name] == NO_MASKS
    document = summarise([row], SMALL.measures(), {})
    why = document["undefined"]
    assert why["energy_in_mask"] == {NO_MASKS: list(document["contenders"])}
    page = markdown(document)
    assert f"- `energy_in_mask`: {NO_MASKS}: all." in page
    assert "- `insertion_blur`: this custom detect model lists no candidates" in page
