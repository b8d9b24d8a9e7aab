"""Inputs and weights at the edge of arithmetic: results are finite, and a zero map has a note that says why."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from support import random_picture
from torch import Tensor, nn

from detcam import Explainer, Explanation
from detcam.adapters import CallableAdapter

LONG = pytest.mark.nightly
METHODS = (
    "odam",
    "eigencam",
    *(pytest.param(name, marks=LONG) for name in ("gradcam", "gradcam++", "layercam", "xgradcam")),
)
CHUNK = 128 * 2**20  # bytes
BATCH_TOLERANCE = 1e-3  # of a map's largest value; as Explainer's docstring says


def assert_sound(explanation: Explanation, folder: Path) -> None:
    """All results are finite, and a zero map has a note."""
    for values in (explanation.scores, explanation.boxes):
        assert bool(values.isfinite().all())
    for normalize in ("object", "image", "none"):
        heat = explanation.render(dtype=torch.float32, normalize=normalize)
        assert bool(heat.isfinite().all())
        assert float(heat.amin()) >= 0 if heat.numel() else True
    assert explanation.heatmaps.numel() == 0 or float(explanation.heatmaps.amax()) <= 1
    for raw, note in zip(explanation.maps, explanation.notes, strict=True):
        assert bool((raw > 0).any()) or note is not None
    explanation.save(folder)
    text = (folder / "explanation.json").read_text()
    document = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert len(document["objects"]) == len(explanation)
    json.dumps(explanation.to_dict(), allow_nan=False)
    with np.load(folder / "heatmaps.npz") as arrays:
        assert np.isfinite(arrays["heatmaps"]).all()


@pytest.mark.parametrize("method", METHODS)
def test_constant_pictures(method: str, detector: nn.Module, tmp_path: Path) -> None:
    explainer = Explainer(detector, method=method, imgsz=64, conf=0.0, max_det=4)
    for i, (size, grey) in enumerate([((120, 200), 0), ((1, 1), 9), ((3, 400), 128), ((64, 64), 255)]):
        assert_sound(explainer(np.full((*size, 3), grey, np.uint8)), tmp_path / str(i))


@pytest.mark.parametrize("layers", ["level", "evidence"])
@pytest.mark.parametrize("method", [name for name in METHODS if name != "eigencam"])
def test_gradients_of_zero(method: str, layers: str, detector: nn.Module, picture: np.ndarray, tmp_path: Path) -> None:
    model = copy.deepcopy(detector)
    with torch.no_grad():
        for branch in model.model[-1].cv3:
            branch[-1].weight.zero_()
            branch[-1].bias.fill_(1.0)
    explanation = Explainer(model, method=method, imgsz=96, layers=layers, max_det=3)(picture)
    assert len(explanation) == 3
    assert all(note is not None and "zero map: the score has no gradient" in note for note in explanation.notes)
    assert not explanation.heatmaps.any()
    assert_sound(explanation, tmp_path)


def test_a_saturated_score(detector: nn.Module, picture: np.ndarray, tmp_path: Path) -> None:
    """The probability is 1 in float32 and its gradient 0; the gradient of the logit is not 0."""
    model = copy.deepcopy(detector)
    with torch.no_grad():
        for branch in model.model[-1].cv3:
            branch[-1].bias[0] += 200
    explanations = {t: Explainer(model, imgsz=96, target=t, max_det=3)(picture) for t in ("class", "margin", "prob")}
    for target, explanation in explanations.items():
        assert explanation.scores.tolist() == [1.0] * 3
        assert_sound(explanation, tmp_path / target)
    assert all(bool(raw.any()) for raw in explanations["class"].maps)
    for note in explanations["prob"].notes:
        assert note is not None
        assert note.startswith("zero map: the score has no gradient at")
        assert "target='class'" in note


@pytest.mark.parametrize(
    "layers", [pytest.param("level", marks=LONG), "evidence", pytest.param(["model.9"], marks=LONG)]
)
@pytest.mark.parametrize("scale", [pytest.param(3e2, marks=LONG), 1e4, pytest.param(1e8, marks=LONG)])
def test_half_precision_overflows(
    layers: Any, scale: float, detector: nn.Module, picture: np.ndarray, tmp_path: Path
) -> None:
    """Activations beyond 65504 are infinite, and NaN after the next layer."""
    model = copy.deepcopy(detector)
    with torch.no_grad():
        model.model[9].cv2.bn.weight.mul_(scale)
    assert_sound(Explainer(model.half(), imgsz=96, layers=layers, conf=0.0, max_det=8)(picture), tmp_path)


@pytest.mark.parametrize("bad", [math.nan, pytest.param(math.inf, marks=LONG), pytest.param(3e38, marks=LONG)])
def test_all_weights_bad(bad: float, detector: nn.Module, picture: np.ndarray, tmp_path: Path) -> None:
    model = copy.deepcopy(detector)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(bad)
    assert_sound(Explainer(model, imgsz=96, conf=0.0)(picture), tmp_path)


BOXES = (
    (10.0, 10.0, 10.0, 10.0),  # a point
    (10.0, 10.0, 40.0, 10.0),  # a line
    (40.0, 40.0, 10.0, 10.0),  # its corners in the wrong order
    (-90.0, -80.0, -20.0, -10.0),  # outside
    (70.0, 70.0, 900.0, 900.0),
    (-1e6, -1e6, 1e6, 1e6),
    (20.0, 20.0, 20.4, 20.4),  # smaller than a pixel
)


def boxed(boxes: tuple[tuple[float, ...], ...]) -> Explainer:
    """A model of two convolutions whose objects have the given boxes."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=8, padding=1), nn.ReLU(), nn.Conv2d(4, len(boxes), 1))

    def detect(outputs: Tensor, conf: float) -> list[dict[str, Tensor]]:
        n = len(boxes)
        objects = {"boxes": torch.tensor(boxes).view(n, 4), "scores": torch.linspace(0.9, 0.5, n)}
        return [{**objects, "class_ids": torch.zeros(n, dtype=torch.int64), "index": torch.arange(n)} for _ in outputs]

    def score(outputs: Tensor, objects: list[Any], target: str) -> Tensor:
        return torch.cat([outputs[i, o.index].sum((1, 2)) for i, o in enumerate(objects)])

    adapter = CallableAdapter(lambda module, batch: module(batch), detect, score, layers=["1"])
    return Explainer(model, adapter=adapter, imgsz=64)


def test_boxes_without_area_or_outside(seed: int, tmp_path: Path) -> None:
    explanation = boxed(BOXES)(random_picture(seed, 64, 64))
    assert len(explanation) == len(BOXES)
    assert_sound(explanation, tmp_path)
    for box, share in zip(BOXES, explanation.energy_in_box, strict=True):
        assert share is None or 0 <= share <= 1
        if share is not None and (box[2] <= max(box[0], 0) or box[3] <= max(box[1], 0)):
            assert share == 0
    for i in range(len(BOXES)):
        assert explanation.overlay(i).shape == (64, 64, 3)


@pytest.mark.parametrize(
    ("count", "imgsz", "method"),
    [
        (1_000, 224, "odam"),
        pytest.param(10_000, 704, "odam", marks=LONG),
        pytest.param(1_000, 224, "layerig", marks=LONG),
    ],
)
def test_thousands_of_objects(count: int, imgsz: int, method: str, detector: nn.Module, seed: int) -> None:
    """Memory is that of the maps and of a chunk, not of thousands of heatmaps or backwards."""
    explainer = Explainer(detector, method, imgsz=imgsz, conf=0.0, iou=1.0, max_det=count, memory=CHUNK)
    before = psutil.Process().memory_info().rss
    explanation = explainer(random_picture(seed, 64, 64))
    assert len(explanation) == count
    assert all(bool(raw.isfinite().all()) for raw in explanation.maps)
    assert explanation.render(objects=[0, count - 1], size=(16, 16)).shape == (2, 16, 16)
    heat = explanation.render(size=(16, 24))
    assert heat.shape == (count, 16, 24)
    kept = sum(raw.numel() * 4 for raw in explanation.maps) + heat.numel()
    grown = psutil.Process().memory_info().rss - before
    print(f"maps of {kept / 2**20:.0f} MiB, resident memory grew {grown / 2**20:.0f} MiB")
    assert grown < 3 * kept + 4 * CHUNK


@pytest.mark.parametrize("method", METHODS)
def test_same_input_same_bits(method: str, detector: nn.Module, picture: np.ndarray) -> None:
    runs = [Explainer(detector, method=method, imgsz=96) for _ in range(2)]
    results = [runs[0](picture), runs[0](picture), runs[1](picture)]
    for other in results[1:]:
        assert torch.equal(other.boxes, results[0].boxes)
        assert all(torch.equal(a, b) for a, b in zip(other.maps, results[0].maps, strict=True))
        assert torch.equal(other.heatmaps, results[0].heatmaps)


@pytest.mark.parametrize("layers", ["level", "evidence"])
@pytest.mark.parametrize("method", ["odam", *(pytest.param(name, marks=LONG) for name in ("gradcam", "layercam"))])
def test_neither_the_batch_nor_other_objects_matter(
    method: str, layers: str, detector: nn.Module, picture: np.ndarray, seed: int
) -> None:
    others = [random_picture(seed + i, 120, 200) for i in range(3)]
    alone = Explainer(detector, method=method, layers=layers, imgsz=96)(picture)
    beside = Explainer(detector, method=method, layers=layers, imgsz=96)([*others, picture])[-1]
    fewer = Explainer(detector, method=method, layers=layers, imgsz=96, max_det=2)(picture)
    small = Explainer(detector, method=method, layers=layers, imgsz=96, memory=1)(picture)
    assert len(alone) >= 3
    for explanation in (beside, fewer, small):
        worst = 0.0
        for i, key in enumerate(keys(explanation)):
            truth = alone.maps[keys(alone).index(key)]
            worst = max(worst, float((explanation.maps[i] - truth).abs().amax() / truth.abs().amax()))
        print(f"{method} {layers}: off by {worst:.1e} of the largest value")
        assert worst < BATCH_TOLERANCE


def keys(explanation: Explanation) -> list[tuple[int, int, int]]:
    """Level, index and class of each object's candidate."""
    objects = explanation.objects
    return list(zip(objects.level.tolist(), objects.index.tolist(), objects.class_ids.tolist(), strict=True))
