"""RT-DETR of Ultralytics: the objects of its predict call, a sound map for each, exact gradients."""

from typing import Any

import numpy as np
import pytest
import torch
from detr_models import CLASSES, middle, random_rtdetr
from support import assert_same_objects, fingerprint, random_picture
from torch import Tensor, nn

from detcam import Explainer
from detcam.adapters import adapter_for
from detcam.adapters.ultralytics.rtdetr import RtdetrAdapter
from detcam.engine import Capture, object_gradients, shadow

pytest.importorskip("ultralytics")

SMALL = "yolov8n-rtdetr.yaml"


def wrapped(model: nn.Module) -> Any:
    from ultralytics import RTDETR

    wrapper = RTDETR("yolov8n-rtdetr.yaml")
    wrapper.model = model
    return wrapper


def predict(model: nn.Module, picture: np.ndarray, **options: Any) -> Any:
    bgr = np.ascontiguousarray(picture[:, :, ::-1])
    return wrapped(model).predict(bgr, device="cpu", verbose=False, **options)[0]


@pytest.mark.parametrize("config", [SMALL, "rtdetr-l.yaml", "rtdetr-resnet50.yaml"])
def test_predicted_objects_each_get_a_map(config: str, seed: int) -> None:
    picture = random_picture(seed, 90, 128)
    model = random_rtdetr(config, seed)
    conf = middle(predict(model, picture, imgsz=96, conf=0.0).boxes.conf)
    before = fingerprint(model)
    level = Explainer(model, imgsz=96, conf=conf, max_det=5)(picture)
    evidence = Explainer(model, imgsz=96, conf=conf, max_det=5, layers="evidence")(picture)
    assert fingerprint(model) == before

    result = predict(model, picture, imgsz=96, conf=conf, max_det=5)
    assert len(result) == 5
    for each in (level, evidence):
        assert_same_objects(each, result, box=1e-2)
        assert each.labels == [f"thing {int(c)}" for c in result.boxes.cls]
        assert all(bool(m.isfinite().all()) and bool(m.any()) for m in each.maps), each.notes
        assert each.maps[0].shape == (12, 12)
        assert each.heatmaps.shape == (5, 90, 128)


def test_the_index_is_the_query(seed: int) -> None:
    picture = random_picture(seed, 96, 96)
    model = random_rtdetr(SMALL, seed)
    explanation = Explainer(model, imgsz=96, conf=0.0, max_det=5)(picture)
    with torch.no_grad():
        _, (boxes, logits, *_) = model(torch.from_numpy(picture).permute(2, 0, 1)[None] / 255)
    query = explanation.objects.index
    own = logits[0, 0, query].gather(1, explanation.class_ids[:, None])[:, 0]
    torch.testing.assert_close(own.sigmoid(), explanation.scores, rtol=0, atol=1e-4)
    centers = (explanation.boxes[:, :2] + explanation.boxes[:, 2:]) / 2
    torch.testing.assert_close(centers, boxes[0, 0, query, :2] * 96, rtol=0, atol=1e-2)


def test_a_list_of_pictures_equals_one_by_one(seed: int) -> None:
    pictures = [random_picture(seed + i, *size) for i, size in enumerate([(96, 128), (70, 120)])]
    explainer = Explainer(random_rtdetr(SMALL, seed).double(), imgsz=96, conf=0.0, max_det=5)
    for together, picture in zip(explainer(pictures), pictures, strict=True):
        alone = explainer(picture)
        torch.testing.assert_close(together.scores, alone.scores, rtol=0, atol=1e-4)
        torch.testing.assert_close(together.heatmaps, alone.heatmaps, rtol=0, atol=1e-4)


class Replay(Capture):
    """A forward in which the captured maps take given values."""

    values: dict[str, Tensor]

    def _cut_map(self, output: Tensor, name: str) -> Tensor:
        return self.values[name]


@pytest.mark.parametrize("preset", ["level", "evidence"])
def test_gradients_match_finite_differences(preset: str, seed: int) -> None:
    picture = random_picture(seed, 90, 128)
    model = random_rtdetr(SMALL, seed).double()
    view = shadow(model)
    adapter = RtdetrAdapter(view, model, 96)
    pixels, geometry = adapter.prepare(picture)
    plan = adapter.layers(preset)
    modules = {name: view.get_submodule(name) for name in plan.names}
    with Capture(modules) as capture:
        outputs = adapter.forward(pixels[None], 300)
    objects = [adapter.detect(outputs, [geometry], 0.0, 0.7, 300)[0].select(torch.tensor([1]))]
    tensors = [captured.tensor for captured in capture.captured]
    directions = [torch.randn_like(tensor) for tensor in tensors]
    step = 1e-8  # so small that hardly ever a sample or an activation crosses a kink
    sides = []
    for sign in (1, -1):
        replay = Replay(modules)
        replay.values = {
            captured.name: captured.tensor.detach() + sign * step * direction
            for captured, direction in zip(capture.captured, directions, strict=True)
        }
        with torch.no_grad(), replay:
            sides.append(adapter.forward(pixels[None], 300))
    for target in ("class", "prob", "margin", "top", "right"):
        scalars = adapter.score(outputs, objects, target)
        _, gradients = next(iter(object_gradients(scalars, torch.zeros(1, dtype=torch.int64), tensors)))
        slope = sum(float((g * d).sum()) for g, d in zip(gradients, directions, strict=True) if g is not None)
        plus, minus = (float(adapter.score(side, objects, target)) for side in sides)
        assert slope == pytest.approx((plus - minus) / (2 * step), rel=1e-3, abs=1e-4), target
        if target == "class":
            assert all(g is not None and bool(g.any()) for g in gradients)


def test_scalars_by_hand(seed: int) -> None:
    picture = random_picture(seed, 96, 96)
    model = random_rtdetr(SMALL, seed)
    adapter = RtdetrAdapter(shadow(model), model, 96)
    pixels, geometry = adapter.prepare(picture)
    outputs = adapter.forward(pixels[None], 300)
    objects = adapter.detect(outputs, [geometry], 0.0, 0.7, 8)
    logits = outputs.logits[0, objects[0].index].detach()
    own = logits[torch.arange(8), objects[0].class_ids]
    others = torch.stack(
        [row[torch.arange(CLASSES) != c].max() for row, c in zip(logits, objects[0].class_ids, strict=True)]
    )
    x1, y1, x2, y2 = objects[0].network_boxes.unbind(1)
    expected = {"class": own, "prob": own.sigmoid(), "margin": own - others, "top": -y1, "right": x2}
    for target, values in expected.items():
        torch.testing.assert_close(adapter.score(outputs, objects, target).detach(), values, rtol=1e-4, atol=1e-3)
    box = adapter.score(outputs, objects, "box").detach()
    torch.testing.assert_close(box, torch.stack([-x1, -y1, x2, y2], dim=1), rtol=1e-4, atol=1e-3)


def test_a_model_that_predict_has_fused_and_frozen(seed: int) -> None:
    """After predict: convolutions fused, anchors are inference tensors, nothing requires grad."""
    picture = random_picture(seed, 90, 128)
    wrapper = wrapped(random_rtdetr(SMALL, seed))
    wrapper.overrides["imgsz"] = [96, 160]
    bgr = np.ascontiguousarray(picture[:, :, ::-1])
    result = wrapper.predict(bgr, conf=0.0, max_det=4, verbose=False)[0]
    fused = wrapper.predictor.model.model
    assert fused.model[-1].valid_mask.is_inference()
    before = fingerprint(fused)
    for source in (fused, wrapper):
        explainer = Explainer(source, imgsz=None if source is wrapper else 96, conf=0.0, max_det=4)
        assert isinstance(explainer.adapter, RtdetrAdapter)
        explanation = explainer(picture)
        assert all(bool(m.any()) for m in explanation.maps)
        if source is wrapper:
            assert explainer.adapter.size == (96, 160)
            assert_same_objects(explanation, result, box=1e-2)
    assert fingerprint(fused) == before


def test_wrappers_and_modules_are_told_from_yolo(detector: nn.Module) -> None:
    model = random_rtdetr(SMALL, 0)
    assert adapter_for(model) is adapter_for(wrapped(model)) is RtdetrAdapter
    assert not RtdetrAdapter.serves(detector)
    assert not RtdetrAdapter.serves(nn.Sequential(nn.Identity()))
