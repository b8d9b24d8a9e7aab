"""RT-DETR of Ultralytics: the objects of its predict call, a sound map for each, exact gradients."""

from typing import Any

import numpy as np
import pytest
import torch
from detr_models import CLASSES, random_rtdetr
from finite_differences import slopes
from support import assert_same_objects, few, fingerprint, random_picture
from torch import nn

from detcam import Explainer
from detcam.adapters import adapter_for
from detcam.adapters.ultralytics.rtdetr import RtdetrAdapter
from detcam.engine import shadow

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


@pytest.mark.parametrize("preset", few(["level", "evidence"], "evidence"))
def test_gradients_match_finite_differences(preset: str, seed: int) -> None:
    picture = random_picture(seed, 90, 128)
    model = random_rtdetr(SMALL, seed).double()
    adapter = RtdetrAdapter(shadow(model), model, 96)
    pixels, geometry = adapter.prepare(picture)

    def second(outputs: Any) -> Any:
        return adapter.detect(outputs, [geometry], 0.0, 0.7, 300)[0].select(torch.tensor([1]))

    targets = ("class", "prob", "margin", "top", "right")
    compared = slopes(adapter, pixels, geometry, preset, second, targets, step=1e-8, complete=("class",))
    for target, (slope, difference) in compared.items():
        assert slope == pytest.approx(difference, rel=1e-3, abs=1e-4), target


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
