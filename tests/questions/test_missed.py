"""What became of an object that was asked for, against predict's own answers when the reason is taken away."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from support import few, fingerprint, predict, random_picture, random_yolo
from torch import Tensor, nn

from detcam import Explainer, InputError
from detcam.methods.perturbation import Occlusion
from detcam.questions.answer import Answer
from detcam.scenes import CLASSES, HELD_OUT_SEED, draw_scene

SIZE = 160
WHOLE = (0.0, 0.0, 200.0, 120.0)


@torch.no_grad()
def all_anchors(model: nn.Module, explainer: Explainer, picture: np.ndarray) -> tuple[Tensor, Tensor]:
    """Every anchor's box [A, 4] in source pixels, as Ultralytics decodes it, and probabilities [A, nc]."""
    pixels, geometry = explainer.adapter.prepare(picture)
    decoded = model(pixels[None])[0]
    decoded = decoded[0] if isinstance(decoded, tuple) else decoded
    cx, cy, w, h = decoded[0, :4]
    boxes = torch.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], dim=1)
    return geometry.to_source(boxes), decoded[0, 4 : 4 + len(model.names)].T


def random_pairs(seed: int, count: int) -> list[tuple[tuple[float, ...], int]]:
    generator = np.random.default_rng(seed)
    pairs = []
    for _ in range(count):
        cx, cy = generator.uniform(10, 190), generator.uniform(10, 110)
        w, h = generator.uniform(8, 90, 2)
        pairs.append(((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2), int(generator.integers(7))))
    return pairs


@pytest.mark.parametrize("config", ["yolov8n.yaml", "yolov8n-seg.yaml"])
def test_the_best_candidate_its_overlap_score_and_rank(config: str, seed: int) -> None:
    picture = random_picture(seed, 120, 200)
    model = random_yolo(config, seed, picture, SIZE)
    explainer = Explainer(model, imgsz=SIZE)
    boxes, scores = all_anchors(model, explainer, picture)
    pairs = random_pairs(seed, 20)
    before = fingerprint(model)
    explanation = explainer(picture, ask=pairs)
    assert fingerprint(model) == before
    assert [a.class_id for a in explanation.asked] == [kind for _, kind in pairs]
    for answer, (box, kind) in zip(explanation.asked, pairs, strict=True):
        x1, y1, x2, y2 = box
        cut = torch.tensor([[max(x1, 0), max(y1, 0), min(x2, 200), min(y2, 120)]], dtype=torch.float32)
        torch.testing.assert_close(torch.tensor([answer.box]), cut)
        overlaps = torchvision.ops.box_iou(cut, boxes)[0]
        fit = overlaps * scores[:, kind]
        assert float(fit[answer.candidate]) >= float(fit.max()) * (1 - 1e-4)
        assert answer.iou == pytest.approx(float(overlaps[answer.candidate]), abs=1e-4)
        assert answer.score == pytest.approx(float(scores[answer.candidate, kind]), abs=1e-5)
        above, near = scores[:, kind] > answer.score + 1e-5, scores[:, kind] > answer.score - 1e-5
        assert int(above.sum()) < answer.rank <= int(near.sum()) + 1
        assert answer.candidates == len(boxes)
        assert answer.label == model.names[kind]
        first = answer.objects[0]
        assert int(explanation.objects.index[first]) == answer.candidate
        assert int(explanation.class_ids[first]) == kind
        torch.testing.assert_close(explanation.boxes[first], torch.tensor(answer.candidate_box))
    assert len(explanation) == sum(len(a.objects) for a in explanation.asked)
    assert explanation.heatmaps.shape == (len(explanation), 120, 200)
    assert bool(explanation.heatmaps.isfinite().all())


def test_a_missed_object_s_map_is_the_gradient_of_the_asked_class(detector: nn.Module, picture: np.ndarray) -> None:
    explainer = Explainer(detector, "odam", ["model.15"], imgsz=SIZE)
    pairs = random_pairs(3, 30)
    explanation = explainer(picture, ask=pairs)
    kept: list[Tensor] = []
    handle = detector.get_submodule("model.15").register_forward_hook(lambda m, a, out: kept.append(out))
    raw = detector(explainer.adapter.prepare(picture)[0][None])[1]["scores"]
    handle.remove()
    compared = 0
    for i in range(len(explanation)):
        anchor, kind = int(explanation.objects.index[i]), int(explanation.class_ids[i])
        (gradient,) = torch.autograd.grad(raw[0, kind, anchor], kept[0], retain_graph=True)
        expected = (gradient * kept[0]).sum(dim=1)[0].detach()
        largest = float(expected.abs().max())
        torch.testing.assert_close(explanation.maps[i], expected, rtol=0, atol=1e-4 * max(largest, 1e-3))
        compared += largest > 0
    assert compared >= 10


def test_returned_objects_are_said_to_be(detector: nn.Module, picture: np.ndarray) -> None:
    explainer = Explainer(detector, imgsz=SIZE)
    found = explainer(picture)
    pairs = list(zip(found.boxes.tolist(), found.labels, strict=True))
    explanation = explainer(picture, ask=pairs)
    returned = set(zip(found.objects.index.tolist(), found.class_ids.tolist(), strict=True))
    for answer in explanation.asked:
        assert (answer.reason == "returned") == ((answer.candidate, answer.class_id) in returned)
        if answer.reason == "returned":
            i = [(a, c) for a, c in returned].index((answer.candidate, answer.class_id))
            i = found.objects.index.tolist().index([a for a, _ in returned][i])
            expected = found.maps[i]
            torch.testing.assert_close(
                explanation.maps[answer.objects[0]], expected, rtol=0, atol=1e-4 * float(expected.abs().max())
            )
            assert "among the model's objects" in str(explanation.notes[answer.objects[0]])
    assert sum(a.reason == "returned" for a in explanation.asked) >= len(found) // 2


REASONS = {
    "yolov8n.yaml": {"returned", "confidence", "suppressed", "another class won", "max_det"},
    "yolo26n.yaml": {"returned", "confidence", "suppressed", "another class won", "max_det"},
    "yolov10n.yaml": {"returned", "confidence", "another class won", "max_det"},  # suppresses nothing
}


@pytest.mark.parametrize("config", few(REASONS, "yolov8n.yaml"))
def test_without_the_reason_the_object_is_returned(config: str, seed: int) -> None:
    """The reason is right if predict returns the candidate's box once it is taken away, and not before."""
    picture = random_picture(seed, 120, 200)
    model = random_yolo(config, seed, picture, SIZE, found=8)
    options = {"imgsz": SIZE, "conf": 0.25, "iou": 0.3, "max_det": 20}
    boxes, scores = all_anchors(model, Explainer(model, **options), picture)
    if "v10" in config:
        model.end2end = True
        boxes, scores = end_to_end_anchors(model, picture)
    explainer = Explainer(model, **options)
    sound = (boxes[:, 2:] > boxes[:, :2] + 1).all(dim=1)
    best = [a for a in scores.amax(dim=1).argsort(descending=True).tolist() if sound[a]][:120:2]
    pairs = random_pairs(seed, 20)
    pairs += [(boxes[a].tolist(), c) for a in best for c in scores[a].topk(2).indices.tolist()]
    explanation = explainer(picture, ask=pairs)
    options["nms"] = False if "v10" in config else None  # for predict: the one-to-one head
    now = predict(model, picture, **options)
    cured = {
        "confidence": predict(model, picture, **{**options, "conf": 1e-6, "iou": 1.0, "max_det": 1000}),
        "suppressed": predict(model, picture, **{**options, "iou": 1.0, "max_det": 1000}),
        "max_det": predict(model, picture, **{**options, "max_det": 1000}),
    }
    met: Counter[str] = Counter()
    for answer in explanation.asked:
        met[answer.reason] += 1
        assert matches(now, answer) == (answer.reason == "returned"), answer
        own = scores[answer.candidate]
        if answer.reason == "returned":
            continue
        if answer.reason == "another class won":
            assert answer.rival is not None
            assert answer.rival.class_id != answer.class_id
            assert answer.rival.score > max(answer.score, options["conf"])
            asked, winner = answer.objects
            assert explanation.class_ids[[asked, winner]].tolist() == [answer.class_id, answer.rival.class_id]
            assert answer.label in str(explanation.notes[winner])
            continue
        if answer.reason == "confidence":
            assert answer.score <= options["conf"]
            if int(own.argmax()) != answer.class_id:
                continue  # Ultralytics would go on to return it as its best class
            if answer.score <= float(cured["confidence"].boxes.conf.min()):
                continue  # an end-to-end head returns as many (anchor, class) pairs as there are anchors
        elif answer.reason == "suppressed":
            assert answer.rival is not None
            assert answer.rival.class_id == answer.class_id
            assert answer.rival.score >= answer.score > options["conf"]
            assert answer.rival.iou > options["iou"] - 0.01
        assert matches(cured[answer.reason], answer), answer
    assert REASONS[config] - {"max_det"} <= set(met) <= REASONS[config], met


@torch.no_grad()
def end_to_end_anchors(model: Any, picture: np.ndarray) -> tuple[Tensor, Tensor]:
    """What `all_anchors` gives, of a head that decodes only its best anchors."""
    pixels, geometry = Explainer(model, imgsz=SIZE).adapter.prepare(picture)
    raw = model(pixels[None])[1]["one2one"]
    boxes = model.model[-1]._get_decode_boxes(raw)[0].T
    return geometry.to_source(boxes), raw["scores"][0].sigmoid().T


def matches(result: Any, answer: Answer) -> bool:
    """Whether Ultralytics' own result holds the candidate: its box, class and score."""
    apart = (result.boxes.xyxy - torch.tensor(answer.candidate_box)).abs().amax(dim=1)
    other = (result.boxes.conf - answer.score).abs()
    return bool(((apart < 0.1) & (other < 1e-3) & (result.boxes.cls.long() == answer.class_id)).any())


def test_a_full_list_is_told_from_suppression(detector: nn.Module, picture: np.ndarray) -> None:
    found = Explainer(detector, imgsz=SIZE)(picture)
    few = Explainer(detector, imgsz=SIZE, max_det=1)
    explanation = few(picture, ask=list(zip(found.boxes.tolist(), found.class_ids.tolist(), strict=True)))
    returned = set(zip(found.objects.index.tolist(), found.class_ids.tolist(), strict=True))
    reasons = [a.reason for a in explanation.asked if (a.candidate, a.class_id) in returned]
    assert reasons.count("returned") <= 1
    assert reasons.count("max_det") >= len(reasons) - 2  # one may overlap the only object
    assert len(reasons) >= 5


def test_a_box_that_no_candidate_overlaps(detector: nn.Module, picture: np.ndarray) -> None:
    """All boxes are moved to the left half, so nothing lies at the right border."""

    class Left(nn.Module):
        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return torch.full_like(self.inner(x), 1e-3)

    detector.model[-1].dfl = Left(detector.model[-1].dfl)
    explanation = Explainer(detector, imgsz=SIZE)(picture, ask=[((199.5, 119.5, 200, 120), 2)])
    (answer,) = explanation.asked
    assert (answer.reason, answer.iou, answer.rival) == ("no overlap", 0.0, None)
    assert len(explanation) == 1
    assert "no candidate overlaps the box" in str(explanation.notes[0])
    cells = explanation.objects.boxes[0]  # the anchor nearest to the lower right corner, at the finest level
    assert float((cells[:2] + cells[2:]).div(2).sub(torch.tensor([200.0, 120.0])).abs().max()) <= 10


def test_an_object_dropped_for_its_empty_mask(segmenter: Any, picture: np.ndarray) -> None:
    """All coefficients are negative and all prototypes positive, so every mask is empty and predict returns nothing."""
    head = segmenter.model[-1]
    head.proto.cv3.bn.bias.data.fill_(5.0)
    head.proto.cv3.bn.weight.data.mul_(0.1)
    for branch in head.cv4:
        branch[-1].weight.data.zero_()
        branch[-1].bias.data.fill_(-1.0)
    boxes, scores = all_anchors(segmenter, Explainer(segmenter, imgsz=SIZE), picture)
    best = int(scores.amax(dim=1).argmax())
    pair = (boxes[best].tolist(), int(scores[best].argmax()))
    for target in ("class", "mask"):
        explanation = Explainer(segmenter, imgsz=SIZE, target=target)(picture, ask=[pair])
        (answer,) = explanation.asked
        assert (answer.reason, answer.candidate, answer.rank) == ("own limit", best, 1)
        assert "empty mask" in str(explanation.notes[0])
        assert explanation.masks is not None
        assert not explanation.masks.any()
        assert bool(explanation.maps[0].any()) or "; zero map" in str(explanation.notes[0])
    assert len(predict(segmenter, picture, imgsz=SIZE).boxes) == 0


def test_names_numbers_tensors_and_methods_that_sweep(detector: nn.Module, picture: np.ndarray) -> None:
    explainer = Explainer(detector, imgsz=SIZE)
    first = explainer(picture, ask=[((10, 20, 80, 90), "thing 3")])
    for pair in [
        (torch.tensor([10.0, 20, 80, 90]), 3),
        (np.array([10, 20, 80, 90]), np.int64(3)),
        [[10, 20, 80, 90], 3],
    ]:
        other = explainer(picture, ask=[pair])
        assert other.asked == first.asked
        assert torch.equal(other.heatmaps, first.heatmaps)
    swept = Explainer(detector, Occlusion(cells=3), imgsz=SIZE)(picture, ask=[((10, 20, 80, 90), "thing 3")])
    assert swept.asked == first.asked
    assert bool(swept.maps[0].any())
    eigen = Explainer(detector, "eigencam", imgsz=SIZE)(picture, ask=[((10, 20, 80, 90), "thing 3")])
    assert "; the same for every object" in str(eigen.notes[0])


BAD: list[tuple[Any, str]] = [
    ([], "expected a list of .box, class. pairs"),
    ("person", "expected a list"),
    (((10, 20, 80, 90), 3), r"ask\[0\]: expected a box of four numbers and a class"),
    ([((10, 20, 80), 3)], r"ask\[0\]: expected a box of four numbers"),
    ([((10, 20, 80, 90), 3), (10, 3)], r"ask\[1\]: expected a box"),
    ([((80, 20, 10, 90), 3)], "x1 < x2 and y1 < y2"),
    ([((10, 20, 80, 20), 3)], "x1 < x2 and y1 < y2"),
    ([((10, math.nan, 80, 90), 3)], "x1 < x2 and y1 < y2"),
    ([((200, 20, 280, 90), 3)], "outside the picture of 200 x 120 pixels"),
    ([((10, -50, 80, 0), 3)], "outside the picture"),
    ([((10, 20, 80, 90), "thin 3")], "class 'thin 3' does not exist: did you mean 'thing 3'"),
    ([((10, 20, 80, 90), 7)], "class 7 does not exist: the model has 0 to 6"),
    ([((10, 20, 80, 90), -1)], "class -1 does not exist"),
    ([((10, 20, 80, 90), True)], "expected a class name or number, got True"),
    ([((10, 20, 80, 90), 1.5)], "expected a class name or number, got 1.5"),
]


def test_what_cannot_be_asked(detector: nn.Module, picture: np.ndarray) -> None:
    explainer = Explainer(detector, imgsz=SIZE)
    for ask, message in BAD:
        with pytest.raises(InputError, match=message) as caught:
            explainer(picture, ask=ask)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="expected one image, got a list of 2"):
        explainer([picture, picture], ask=[(WHOLE, 3)])


def test_a_broken_model_is_no_crash(detector: nn.Module, picture: np.ndarray) -> None:
    with torch.no_grad():
        detector.model[0].conv.weight[0] = float("nan")
    with pytest.raises(InputError, match="no candidate"):
        Explainer(detector, imgsz=SIZE)(picture, ask=[(WHOLE, 3)])


def test_the_answer_on_disk(detector: nn.Module, picture: np.ndarray, tmp_path: Path) -> None:
    explanation = Explainer(detector, imgsz=SIZE)(picture, ask=random_pairs(1, 3))
    explanation.save(tmp_path)
    document = json.loads((tmp_path / "explanation.json").read_text())
    assert len(document["objects"]) == len(explanation)
    for written, answer in zip(document["asked"], explanation.asked, strict=True):
        assert written["reason"] == answer.reason
        assert written["score"] == answer.score
        assert written["objects"] == list(answer.objects)
        assert written["candidate_box"] == list(answer.candidate_box)
        assert document["objects"][answer.objects[0]]["note"] == explanation.notes[answer.objects[0]]


def test_a_scene_s_missed_object_is_found_where_it_is() -> None:
    """The demo model above a threshold that hides most objects: the candidates lie on them, and so does the heat."""
    scene = draw_scene(HELD_OUT_SEED)
    pairs = [(box, CLASSES[kind]) for box, kind in zip(scene.boxes.tolist(), scene.class_ids, strict=True)]
    explanation = Explainer("scenes-yolo", conf=0.95, layers="level")(scene.image, ask=pairs)
    assert {a.reason for a in explanation.asked} == {"confidence"}
    shares = []
    for answer, heat in zip(explanation.asked, explanation.heatmaps, strict=True):
        assert answer.iou > 0.6
        x1, y1, x2, y2 = (round(side) for side in answer.box)
        shares.append(float(heat[y1:y2, x1:x2].sum() / heat.sum()))
    assert np.mean(shares) > 0.7
