"""Families that can be asked what became of a missed object: torchvision's detectors and detection transformers."""

from typing import Any

import numpy as np
import pytest
import torch
from detr_models import random_detr, random_rtdetr
from support import fingerprint, random_picture
from torch import Tensor, nn
from torchvision.ops import box_iou
from torchvision_models import conf_after, predict, small

from detcam import Explainer, Explanation, InputError
from detcam.adapters import Adapter, CallableAdapter
from detcam.questions.missed import SLACK

pytest.importorskip("transformers")
pytest.importorskip("ultralytics")

TORCHVISION = ("faster", "mask", "retinanet", "fcos")
QUERIES = ("detr", "deformable_detr", "rt_detr", "yolos")


def pairs_on(boxes: Tensor, count: int, classes: list[int], seed: int) -> list[tuple[list[float], int]]:
    """Some of the boxes, jittered, each with any class."""
    generator = np.random.default_rng(seed)
    pairs = []
    for i in generator.permutation(len(boxes))[:count].tolist():
        x1, y1, x2, y2 = (boxes[i].double().numpy() + generator.uniform(-2, 2, 4)).tolist()
        if x2 > x1 + 1 and y2 > y1 + 1:
            pairs.append(([x1, y1, x2, y2], int(generator.choice(classes))))
    return pairs


def check_answers(
    explainer: Explainer, picture: np.ndarray, found: Explanation, pairs: list[tuple[list[float], int]]
) -> set[str]:
    """What holds whatever the reason: the object, its score and box, and whether it is among the returned ones."""
    returned = list(zip(found.objects.index.tolist(), found.class_ids.tolist(), strict=True))
    explanation = explainer(picture, ask=pairs)
    assert len(explanation.asked) == len(pairs)
    for answer in explanation.asked:
        first = answer.objects[0]
        if answer.reason != "no overlap":
            assert (answer.reason == "returned") == ((answer.candidate, answer.class_id) in returned), answer
        assert int(explanation.objects.index[first]) == answer.candidate
        assert explanation.labels[first] == answer.label
        overlap = box_iou(torch.tensor([answer.box]), explanation.boxes[first : first + 1])
        assert answer.iou == pytest.approx(float(overlap), abs=1e-4)
        assert 1 <= answer.rank <= answer.candidates
        if answer.reason == "returned":
            i = returned.index((answer.candidate, answer.class_id))
            scale = float(found.maps[i].abs().max())
            torch.testing.assert_close(explanation.boxes[first], found.boxes[i], rtol=0, atol=1e-2)
            torch.testing.assert_close(explanation.scores[first], found.scores[i], rtol=0, atol=1e-4)
            torch.testing.assert_close(explanation.maps[first], found.maps[i], rtol=0, atol=1e-3 * scale)
        elif answer.reason == "confidence":
            assert answer.score <= explainer.conf
        elif answer.reason == "suppressed":
            assert answer.rival is not None
            assert answer.rival.class_id == answer.class_id
            assert answer.rival.score >= answer.score > explainer.conf
        elif answer.reason == "another class won":
            assert answer.rival is not None
            assert answer.rival.score > max(answer.score, explainer.conf)
            assert len(answer.objects) == 2
    assert bool(explanation.heatmaps.isfinite().all())
    return {a.reason for a in explanation.asked}


@pytest.mark.parametrize("kind", TORCHVISION)
def test_torchvision(kind: str, seed: int) -> None:
    picture = random_picture(seed, 120, 170)
    model: Any = small(kind, seed, picture)
    conf = conf_after(predict(model, picture)["scores"], 8)
    explainer = Explainer(model, conf=conf)
    found = explainer(picture)
    before = fingerprint(model)
    classes = [1, 2, 3, 4] if kind in ("faster", "mask") else [0, 1, 2, 3]
    own = list(zip(found.boxes.tolist(), found.class_ids.tolist(), strict=True))
    everything = Explainer(model, conf=0.0)(picture)
    met = check_answers(explainer, picture, found, own + pairs_on(everything.boxes, 30, classes, seed))
    assert fingerprint(model) == before
    assert "returned" in met
    assert len(met) >= 2
    if kind in ("faster", "mask"):
        with pytest.raises(InputError, match=r"class 0 does not exist: the model has 1 to 4"):
            explainer(picture, ask=[((10, 10, 60, 60), 0)])


@pytest.mark.parametrize("kind", ["faster", "retinanet"])
def test_suppression_is_that_of_the_model(kind: str, seed: int) -> None:
    """What was suppressed is returned, box and score, once the model's own overlap is 1."""
    picture = random_picture(seed, 120, 170)
    model: Any = small(kind, seed, picture)
    part, name = (model.roi_heads, "nms_thresh") if kind == "faster" else (model, "nms_thresh")
    setattr(part, name, 0.1)
    conf = conf_after(predict(model, picture)["scores"], 12)
    explainer = Explainer(model, conf=conf)
    setattr(part, name, 1.0)
    free = predict(model, picture)
    chosen = (free["scores"] > conf) & (free["boxes"][:, 2:] > free["boxes"][:, :2] + 1).all(dim=1)
    pairs = [
        (box.tolist(), int(label)) for box, label in zip(free["boxes"][chosen], free["labels"][chosen], strict=True)
    ]
    setattr(part, name, 0.1)
    strict = predict(model, picture)
    suppressed = 0
    for answer in explainer(picture, ask=pairs).asked:
        if answer.reason == "suppressed":
            suppressed += 1
            assert not holds(strict, answer)
            assert holds(free, answer)
            assert answer.rival is not None
            assert answer.rival.iou > 0.1 - SLACK
            boxes = torch.tensor([answer.candidate_box, answer.rival.box])
            assert answer.rival.iou == pytest.approx(float(box_iou(boxes[:1], boxes[1:])), abs=1e-2)
        elif answer.reason == "returned":
            assert holds(strict, answer)
        elif answer.reason == "own limit":
            assert not holds(free, answer)
    assert suppressed >= 2


def holds(result: dict[str, Tensor], answer: Any) -> bool:
    apart = (result["boxes"] - torch.tensor(answer.candidate_box)).abs().amax(dim=1)
    other = (result["scores"] - answer.score).abs()
    return bool(((apart < 0.1) & (other < 1e-3) & (result["labels"] == answer.class_id)).any())


@pytest.mark.parametrize("kind", QUERIES)
def test_transformers(kind: str, seed: int) -> None:
    picture = random_picture(seed, 120, 160)
    model, processor = random_detr(kind, seed)
    everything = Explainer(model, processor=processor, conf=0.0)(picture)
    conf = float(everything.scores.median())
    explainer = Explainer(model, processor=processor, conf=conf)
    found = explainer(picture)
    before = fingerprint(model)
    own = [p for p in zip(found.boxes.tolist(), found.class_ids.tolist(), strict=True) if inside(p[0])]
    met = check_answers(
        explainer, picture, found, own + pairs_on(everything.boxes.clamp(1, 119), 12, list(range(5)), seed)
    )
    assert fingerprint(model) == before
    assert "returned" in met
    assert "suppressed" not in met


def inside(box: list[float]) -> bool:
    return box[2] > max(box[0], 0) and box[3] > max(box[1], 0) and box[0] < 160 and box[1] < 120


def test_rtdetr_of_ultralytics(seed: int) -> None:
    picture = random_picture(seed, 90, 128)
    model = random_rtdetr("yolov8n-rtdetr.yaml", seed)
    everything = Explainer(model, imgsz=96, conf=0.0)(picture)
    explainer = Explainer(model, imgsz=96, conf=float(everything.scores.median()))
    found = explainer(picture)
    pairs = [p for p in zip(found.boxes.tolist(), found.class_ids.tolist(), strict=True) if p[0][2] > 1 and p[0][3] > 1]
    met = check_answers(explainer, picture, found, [*pairs[:6], ((20, 20, 60, 60), 1), ((64, 45, 120, 80), 3)])
    assert "returned" in met
    assert "suppressed" not in met


def test_candidates_of_queries_are_their_boxes_and_scores(seed: int) -> None:
    """Every object that a transformer returns is one of the candidates: same box, score and class, by its query."""
    picture = random_picture(seed, 120, 160)
    for kind in ("detr", "deformable_detr"):
        model, processor = random_detr(kind, seed)
        explainer = Explainer(model, processor=processor, conf=0.0)
        found = explainer(picture).objects
        pixels, _ = explainer.adapter.prepare(picture)
        boxes, scores, confidence = explainer.adapter.candidates(explainer.adapter.forward(pixels[None], 300))
        torch.testing.assert_close(boxes[0, found.index], found.network_boxes, rtol=0, atol=1e-2)
        torch.testing.assert_close(scores[0, found.index, found.class_ids], found.scores, rtol=0, atol=1e-4)
        assert torch.equal(confidence, scores.amax(dim=2))


def test_a_family_that_cannot_be_asked_says_so() -> None:
    def detect(outputs: Tensor, conf: float) -> list[dict[str, Tensor]]:
        one = torch.zeros(1, dtype=torch.int64)
        return [{"boxes": torch.tensor([[0.0, 0, 9, 9]]), "scores": torch.ones(1), "class_ids": one, "index": one}]

    adapter = CallableAdapter(lambda m, x: m(x), detect, lambda o, objects, t: o.sum()[None], ["0"])
    assert isinstance(adapter, Adapter)
    explainer = Explainer(nn.Sequential(nn.Conv2d(3, 2, 8, 8)), adapter=adapter, imgsz=32)
    with pytest.raises(InputError, match=r"own models list no candidates.*leave ask out"):
        explainer(np.zeros((32, 32, 3), np.uint8), ask=[((1, 1, 9, 9), 0)])
