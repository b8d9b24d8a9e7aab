"""Pose, turned boxes, YOLO-World and YOLOE: every model that the installed Ultralytics ships, at its smallest size."""

from functools import partial
from typing import Any

import pytest
import torch
from support import CONF, few, random_picture
from torch import Tensor, nn
from yolo_models import CLASSES, SIZE, predicted, random_task, size_of

from detcam import Explainer
from detcam.adapters import YoloAdapter
from detcam.engine import Capture, shadow
from detcam.errors import ModelError

HEADS = ["yolov8n-pose.yaml", "yolov8n-obb.yaml", "yolov8n-worldv2.yaml", "yolov8n-world.yaml", "yoloe-26n-seg.yaml"]


def _named(score: Any, target: str, outputs: Any, objects: Any) -> Tensor:
    return score(outputs, objects, target)


@pytest.mark.parametrize("config", few(HEADS, "yolov8n-obb.yaml", "yoloe-26n-seg.yaml"))
def test_readouts_lead_to_the_same_maps_as_the_plain_scalar(config: str, seed: int) -> None:
    """A target given as a callable has no readout, so each object takes its own backward from `score`."""
    picture, imgsz = random_picture(seed, 120, 200), size_of(config)
    model = random_task(config, seed, picture, imgsz)
    targets = ["margin", "left"] + (["mask"] if "seg" in config else [])
    for target in targets:
        explainer = Explainer(model, imgsz=imgsz, target=target, max_det=6)
        fast = explainer(picture)
        scalar = partial(_named, explainer.adapter.score, target)
        plain = Explainer(model, imgsz=imgsz, target=scalar, max_det=6)(picture)
        assert len(fast) >= 2
        for one, slow in zip(fast.maps, plain.maps, strict=True):
            torch.testing.assert_close(one, slow, rtol=1e-3, atol=float(slow.abs().amax()) * 1e-4 + 1e-9)


@pytest.mark.parametrize(
    "config",
    few(
        ["yolo26n-pose.yaml", "yolo11n-obb.yaml", "yolov8n-worldv2.yaml", "yoloe-11n.yaml"],
        "yolo26n-pose.yaml",
        "yoloe-11n.yaml",
    ),
)
def test_class_scores_are_those_of_the_head_at_the_kept_anchor(config: str, seed: int) -> None:
    picture, imgsz = random_picture(seed, 120, 200), size_of(config)
    model = random_task(config, seed, picture, imgsz)
    adapter = YoloAdapter(shadow(model), model, imgsz)
    pixels, geometry = adapter.prepare(picture)
    outputs = adapter.forward(pixels[None], 300)
    objects = adapter.detect(outputs, [geometry], CONF, 0.7, 300)
    with torch.no_grad():
        _, predictions = model(pixels[None])
    logits = predictions.get("one2many", predictions)["scores"][0]
    own = logits[objects[0].class_ids, objects[0].index]
    torch.testing.assert_close(adapter.score(outputs, objects, "class"), own)
    torch.testing.assert_close(adapter.score(outputs, objects, "prob"), objects[0].scores)
    rest = logits.clone()
    rest[objects[0].class_ids, objects[0].index] = -torch.inf
    torch.testing.assert_close(adapter.score(outputs, objects, "margin"), own - rest[:, objects[0].index].amax(dim=0))


@pytest.mark.parametrize(
    "config", few(["yolo26n-obb.yaml", "yolo26n-pose.yaml", "yoloe-26n-seg.yaml"], "yolo26n-obb.yaml")
)
def test_heads_without_non_maximum_suppression(config: str, seed: int) -> None:
    picture = random_picture(seed, 120, 200)
    model: Any = random_task(config, seed, picture, SIZE)
    model.end2end = True
    explanation = Explainer(model, imgsz=SIZE)(picture)
    _, boxes, scores, classes = predicted(config, model, picture, imgsz=SIZE, nms=False)
    assert len(explanation) == len(boxes) >= 3
    torch.testing.assert_close(explanation.scores, scores, rtol=0, atol=1e-4)
    order = explanation.boxes.sum(dim=1).argsort(), boxes.sum(dim=1).argsort()
    torch.testing.assert_close(explanation.boxes[order[0]], boxes[order[1]], rtol=0, atol=1e-2)
    assert explanation.class_ids[order[0]].tolist() == classes[order[1]].tolist()
    assert all(bool(m.any()) for m in explanation.maps)


def test_the_texts_decide_what_a_world_model_explains(seed: int) -> None:
    """With the texts of two classes exchanged, the map of one is what that of the other was."""
    picture = random_picture(seed, 120, 200)
    model: Any = random_task("yolov8n-worldv2.yaml", seed, picture, SIZE)

    def map_of(number: int) -> Tensor:
        def scalar(outputs: Any, objects: Any) -> Tensor:
            return outputs.logits[0, number, objects[0].index]

        return Explainer(model, imgsz=SIZE, max_det=1, target=scalar)(picture).maps[0]

    first, second = map_of(0), map_of(1)
    assert not torch.allclose(first, second, rtol=1e-2)
    model.txt_feats = model.txt_feats[:, [1, 0, *range(2, CLASSES)]]
    model.names[0], model.names[1] = model.names[1], model.names[0]
    tolerance = float(first.abs().amax()) * 1e-3
    torch.testing.assert_close(map_of(1), first, rtol=1e-3, atol=tolerance)
    torch.testing.assert_close(map_of(0), second, rtol=1e-3, atol=tolerance)


def test_masks_of_yoloe26_are_explained_through_their_prototypes_too(seed: int) -> None:
    """Its head detaches what the prototypes are made of; the gradient must agree with a finite difference."""
    picture = random_picture(seed, 120, 200)
    model = random_task("yoloe-26n-seg.yaml", seed, picture, SIZE).double()
    adapter = YoloAdapter(shadow(model), model, SIZE)
    pixels, geometry = adapter.prepare(picture)
    name = adapter.layers("level").names[0]
    layer = adapter.module.get_submodule(name)
    with Capture({name: layer}, cut_all=True) as capture:
        outputs = adapter.forward(pixels[None], 300)
    objects = adapter.detect(outputs, [geometry], 0.01, 0.7, 300)  # those with a mask
    assert len(objects[0]) >= 1
    at = capture.captured[0].tensor
    along = torch.randn_like(at)
    (gradient,) = torch.autograd.grad(adapter.score(outputs, objects, "mask").sum(), at)
    values = []
    for step in (1e-6, -1e-6):
        handle = layer.register_forward_hook(lambda m, a, out, step=step: at.detach() + step * along)
        with torch.no_grad():
            values.append(adapter.score(adapter.forward(pixels[None], 300), objects, "mask").sum().item())
        handle.remove()
    assert (gradient * along).sum().item() == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-4)


def test_a_prompt_free_model_is_refused(seed: int) -> None:
    model: Any = random_task("yoloe-11n.yaml", seed, random_picture(seed, 60, 60), 64)
    model.model[-1].lrpc = nn.ModuleList()
    with pytest.raises(ModelError, match="prompt-free"):
        Explainer(model)


def test_yoloe_suppresses_across_classes_as_its_predict_call_does() -> None:
    picture = random_picture(5, 120, 200)  # a number whose model meets the conditions below soon
    model: Any = random_task("yoloe-11n.yaml", 5, picture, SIZE)
    options: dict[str, Any] = {"imgsz": SIZE, "iou": 0.1}
    texts = model.pe
    while True:  # until neighbours differ in class, and scores by more than the rounding of predict's fused layers
        model.pe = texts[:, :1] + 0.01 * torch.randn_like(texts)  # nearly one text
        strongest = Explainer(model, "odam", imgsz=SIZE, conf=0.01, iou=1.0, max_det=17)(picture).scores
        options["conf"] = float(strongest[15:].mean())  # 16 candidates
        _, boxes, scores, _ = predicted("yoloe-11n.yaml", model, picture, **options)
        within_classes = predicted("yoloe-11n.yaml", model, picture, **options, agnostic_nms=False)[1]
        if len(boxes) < len(within_classes) and float(strongest.diff().amax()) < -1e-5:
            break
    explanation = Explainer(model, "odam", **options)(picture)
    assert len(explanation) == len(boxes) < len(within_classes)
    torch.testing.assert_close(explanation.scores, scores, rtol=0, atol=1e-4)
