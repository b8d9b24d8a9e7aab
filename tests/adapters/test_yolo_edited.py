"""YOLO as people edit it: heads derived from Ultralytics' or made like them, other names, and what holds a model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from support import predict, random_yolo, wrapped
from torch import nn

from detcam import Explainer, InputError
from detcam.adapters import LogitsAdapter, adapter_for

pytest.importorskip("ultralytics")
IMGSZ = 160


def derived(model: nn.Module) -> nn.Module:
    """The model with a head of a class that derives from its head's."""
    head: Any = model.model[-1]
    head.__class__ = type("Head_Efficient", (type(head),), {})
    return model


class OwnHead(nn.Module):
    """A head made like Detect before Ultralytics 8.4: boxes and logits in one map for each level."""

    def __init__(self, detect: Any) -> None:
        super().__init__()
        self.cv2, self.cv3, self.dfl = detect.cv2, detect.cv3, detect.dfl
        self.nc, self.nl, self.reg_max, self.stride = detect.nc, detect.nl, detect.reg_max, detect.stride
        self.i, self.f, self.type, self.np = detect.i, detect.f, detect.type, detect.np

    def forward(self, x: list[torch.Tensor]) -> Any:
        from ultralytics.utils.tal import dist2bbox, make_anchors

        maps = [torch.cat([box(m), name(m)], dim=1) for box, name, m in zip(self.cv2, self.cv3, x, strict=True)]
        anchors, strides = (t.transpose(0, 1) for t in make_anchors(maps, self.stride, 0.5))
        self.strides = strides
        boxes, logits = torch.cat([m.flatten(2) for m in maps], 2).split((4 * self.reg_max, self.nc), dim=1)
        placed = dist2bbox(self.dfl(boxes), anchors[None], xywh=True, dim=1) * strides
        return torch.cat([placed, logits.sigmoid()], dim=1), maps


@pytest.mark.parametrize("config", ["yolov8n.yaml", "yolov8n-seg.yaml", "yolo26n.yaml"])
def test_a_derived_head_gives_the_maps_of_the_head(config: str, seed: int, picture: np.ndarray) -> None:
    model = random_yolo(config, seed, picture, IMGSZ)
    expected = Explainer(model, imgsz=IMGSZ, layers="level")(picture)
    edited = Explainer(derived(model), imgsz=IMGSZ, layers="level")(picture)
    assert len(expected) > 3
    assert torch.equal(edited.boxes, expected.boxes)
    assert torch.equal(edited.heatmaps, expected.heatmaps)


def test_a_head_made_like_detect_is_explained(seed: int, picture: np.ndarray) -> None:
    """The objects of predict; maps are gradient x activation of the logits, by autograd here."""
    model: Any = random_yolo("yolov8n.yaml", seed, picture, IMGSZ)
    model.model[-1] = OwnHead(model.model[-1])
    result = predict(model, picture, imgsz=IMGSZ)
    explainer = Explainer(model, imgsz=IMGSZ, layers=["model.9"], method="elementwise")
    explanation = explainer(picture)
    assert len(explanation) == len(result.boxes) > 3
    torch.testing.assert_close(explanation.boxes, result.boxes.xyxy, rtol=0, atol=1e-3)
    kept: list[torch.Tensor] = []
    hook = model.model[9].register_forward_hook(lambda module, args, output: kept.append(output.requires_grad_()))
    with torch.enable_grad():
        _, maps = model.requires_grad_(False)(explainer.adapter.prepare(picture)[0][None])
    hook.remove()
    logits = torch.cat([m.flatten(2) for m in maps], dim=2)[0, 4 * model.model[-1].reg_max :]
    for i, (c, a) in enumerate(zip(explanation.class_ids.tolist(), explanation.objects.index.tolist(), strict=True)):
        (gradient,) = torch.autograd.grad(logits[c, a], kept[0], retain_graph=True)
        expected = (gradient * kept[0]).relu().sum(dim=1)[0].detach()
        torch.testing.assert_close(explanation.maps[i], expected, rtol=1e-3, atol=1e-4 * float(expected.max()))


def test_a_head_that_keeps_no_strides_and_a_head_that_returns_boxes_alone(detector: Any, picture: np.ndarray) -> None:
    class Forgets(OwnHead):
        def forward(self, x: list[torch.Tensor]) -> Any:
            outputs = super().forward(x)
            del self.strides
            return outputs

    expected = Explainer(detector, imgsz=IMGSZ, layers="level")(picture)
    detector.model[-1] = Forgets(detector.model[-1])
    assert torch.equal(Explainer(detector, imgsz=IMGSZ, layers="level")(picture).class_ids, expected.class_ids)
    detector.model[-1].__class__ = type("Alone", (OwnHead,), {"forward": lambda self, x: OwnHead.forward(self, x)[0]})
    with pytest.raises(InputError, match="head Alone returns Tensor alone"):
        Explainer(detector, imgsz=IMGSZ)(picture)


@pytest.mark.parametrize("part", ["reg_max", "dfl"])
def test_a_head_without_the_parts_is_refused_by_their_name(part: str, detector: Any) -> None:
    head = OwnHead(detector.model[-1])
    delattr(head, part)
    detector.model[-1] = head
    with pytest.raises(InputError, match=f"head OwnHead has no {part}, by which objects are read: derive the head"):
        Explainer(detector)


def test_a_semantic_model_is_explained_as_its_error_says(picture: np.ndarray) -> None:
    from ultralytics import YOLO

    model = YOLO("yolo26n-sem.yaml").model.eval()
    with pytest.raises(InputError, match=r"SemanticSegment classifies pixels: give its module .*LogitsAdapter\(\)"):
        Explainer(model)
    assert len(Explainer(model, adapter=LogitsAdapter(), conf=0.0, imgsz=IMGSZ)(picture)) >= 1


def test_what_holds_a_model_is_opened(detector: nn.Module, picture: np.ndarray) -> None:
    from ultralytics.utils.torch_utils import ModelEMA

    expected = Explainer(detector, imgsz=IMGSZ, layers="level")(picture)
    wrapper = wrapped(detector)
    wrapper.predict(picture, imgsz=IMGSZ, device="cpu", verbose=False)
    trainer = type("Trainer", (), {"__module__": "ultralytics.engine.trainer", "model": None})()
    trainer.ema, trainer.model = ModelEMA(detector), nn.Identity()
    for holder in (ModelEMA(detector), wrapper.predictor, wrapper.predictor.model, trainer):
        explanation = Explainer(holder, imgsz=IMGSZ, layers="level")(picture)
        torch.testing.assert_close(explanation.boxes, expected.boxes, rtol=0, atol=0.05)  # predict fuses its copy
        torch.testing.assert_close(explanation.heatmaps, expected.heatmaps, rtol=0, atol=1e-2)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({0: "cat"}, ["cat", *(f"class {i}" for i in range(1, 7))]),
        (["cat", "dog"], ["cat", "dog", *(f"class {i}" for i in range(2, 7))]),
        ({str(i): f"kind {i}" for i in range(7)}, [f"kind {i}" for i in range(7)]),
        ({i: 10 * i for i in range(7)}, [str(10 * i) for i in range(7)]),
        (None, [f"class {i}" for i in range(7)]),
    ],
)
def test_names_that_do_not_fit_the_classes(names: Any, expected: list[str], detector: Any, picture: np.ndarray) -> None:
    detector.names = names
    explanation = Explainer(detector, imgsz=IMGSZ, layers="level")(picture)
    assert explanation.labels == [expected[c] for c in explanation.class_ids.tolist()]
    assert len(explanation) > 3


def test_adapters_are_found_by_the_class_that_a_head_derives_from() -> None:
    from ultralytics import RTDETR, YOLO

    for model, name in ((RTDETR("rtdetr-resnet50.yaml"), "RtdetrAdapter"), (YOLO("yolov8n-cls.yaml"), "Ultralytics")):
        assert adapter_for(derived(model.model)).__name__.startswith(name)


def test_a_classifier_that_returns_probabilities_alone(picture: np.ndarray) -> None:
    """As Ultralytics' do before 8.4; the logits are the same."""
    from ultralytics.nn.modules.head import Classify
    from ultralytics.nn.tasks import ClassificationModel

    class Old(Classify):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            outputs = super().forward(x)
            return outputs[0] if isinstance(outputs, tuple) else outputs

    model: Any = ClassificationModel("yolov8n-cls.yaml", verbose=False).eval()
    expected = Explainer(model, imgsz=64)(picture)
    model.model[-1].__class__ = Old
    edited = Explainer(model, imgsz=64)(picture)
    assert edited.labels == expected.labels
    assert torch.equal(edited.heatmaps, expected.heatmaps)
