"""The explained objects are those of Ultralytics' predict call, whatever the settings and wherever the model is from."""

import copy
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import assert_same_objects, few, few_rows, fingerprint, predict, random_picture, random_yolo, wrapped
from torch import nn

from detcam import Explainer, InputError
from detcam.errors import ModelError

SETTINGS: list[dict[str, Any]] = [
    {"conf": 0.1},
    {"conf": 0.25, "iou": 0.3},
    {"conf": 0.01, "iou": 0.05},
    {"conf": 0.01, "iou": 1.0, "max_det": 40},
    {"conf": 0.25, "max_det": 1},
    {"conf": 0.0, "max_det": 7},
    {"conf": 0.9999},
]


def pickled(module: nn.Module, path: Path) -> Path:
    """A checkpoint in Ultralytics' format, written by its own save."""
    wrapper = wrapped(copy.deepcopy(module))
    wrapper.ckpt = {"train_args": {"task": wrapper.task, "imgsz": 160}}
    wrapper.save(path)
    return path


@pytest.mark.parametrize(
    ("config", "settings"),
    few_rows(
        product(["yolov8n.yaml", "yolo11n-seg.yaml", "yolov10n.yaml"], SETTINGS),
        *(("yolov8n.yaml", SETTINGS[2]), ("yolo11n-seg.yaml", SETTINGS[5])),
    ),
    ids=str,
)
def test_settings_mean_what_they_mean_in_predict(config: str, settings: dict[str, Any], seed: int) -> None:
    picture = random_picture(seed, 90, 128)
    model = random_yolo(config, seed, picture, 128)
    explanation = Explainer(model, imgsz=128, **settings)(picture)
    assert_same_objects(explanation, predict(model, picture, imgsz=128, **settings))


@pytest.mark.parametrize(
    ("config", "max_det"),
    few_rows(product(["yolov10n.yaml", "yolo26n.yaml", "yolo26n-seg.yaml"], [300, 4]), ("yolo26n.yaml", 300)),
)
def test_heads_without_non_maximum_suppression(config: str, max_det: int, seed: int) -> None:
    """`predict(nms=False)` reads the one-to-one head; so does the explainer on a model that is set to it."""
    picture = random_picture(seed, 120, 200)
    model = random_yolo(config, seed, picture, 160)
    dense = Explainer(model, imgsz=160)(picture)
    model.end2end = True
    explanation = Explainer(model, imgsz=160, max_det=max_det)(picture)
    assert_same_objects(explanation, predict(model, picture, imgsz=160, nms=False, max_det=max_det))
    assert explanation.boxes.shape != dense.boxes.shape or not torch.equal(explanation.boxes, dense.boxes)
    assert all(bool(m.any()) for m in explanation.maps)


@pytest.mark.parametrize(
    "shape", few([(41, 333), (333, 41), (5, 3), (1, 1), (160, 160), (1, 400), (317, 211)], (333, 41), (1, 1), (1, 400))
)
def test_pictures_of_any_shape(shape: tuple[int, int], seed: int) -> None:
    picture = random_picture(seed, *shape)
    model = random_yolo("yolov8n.yaml", seed, picture, 160)
    explanation = Explainer(model, imgsz=160)(picture)
    assert len(explanation) >= 3
    assert_same_objects(explanation, predict(model, picture, imgsz=160))
    assert explanation.heatmaps.shape == (len(explanation), *shape)
    assert explanation.overlay(0).shape == (*shape, 3)


@pytest.mark.parametrize("imgsz", few([[96, 224], 100, [64]], [96, 224]))
def test_input_size_from_the_wrapper(imgsz: Any, detector: nn.Module, picture: np.ndarray) -> None:
    wrapper = wrapped(detector)
    wrapper.overrides["imgsz"] = imgsz
    explanation = Explainer(wrapper, conf=0.01)(picture)
    assert_same_objects(explanation, predict(detector, picture, imgsz=imgsz, conf=0.01))


def test_wrapper_module_and_weights_path_agree(segmenter: nn.Module, picture: np.ndarray, tmp_path: Path) -> None:
    from ultralytics import YOLO

    path = pickled(segmenter, tmp_path / "random.pt")
    wrapper = YOLO(path)
    result = wrapper.predict(np.ascontiguousarray(picture[:, :, ::-1]), verbose=False)[0]
    explanations = [Explainer(m)(picture) for m in (path, str(path), wrapper, wrapper.model)]
    first = explanations[0]
    assert len(first) >= 3
    assert_same_objects(first, result)
    for other in explanations[1:]:
        assert torch.equal(other.boxes, first.boxes)
        assert torch.equal(other.heatmaps, first.heatmaps)
        assert other.labels == first.labels
        assert {**other.settings, "model": ""} == {**first.settings, "model": ""}


@pytest.mark.parametrize(
    ("config", "nms"),
    few_rows(
        product(["yolov8n-seg.yaml", "yolov9t.yaml", "yolov10n.yaml", "yolo26n.yaml"], [None, False]),
        *(("yolo26n.yaml", False),),
    ),
)
def test_a_model_that_predict_has_fused_and_frozen(config: str, nms: bool | None, seed: int) -> None:
    """After predict: convolutions fused, one head deleted, anchors are inference tensors, nothing requires grad."""
    picture = random_picture(seed, 120, 200)
    model = random_yolo(config, seed, picture, 160)
    wrapper = wrapped(model)
    result = wrapper.predict(np.ascontiguousarray(picture[:, :, ::-1]), imgsz=160, nms=nms, verbose=False)[0]
    fused = wrapper.predictor.model.model
    assert fused.is_fused()
    assert fused.model[-1].anchors.is_inference()
    before = fingerprint(fused)
    for source in (fused, wrapper):
        if source is wrapper:
            wrapper.model.end2end = nms is False
        explanation = Explainer(source, imgsz=160)(picture)
        assert_same_objects(explanation, result)
        assert all(bool(m.any()) for m in explanation.maps)
    assert fingerprint(fused) == before


def test_a_model_in_training(detector: nn.Module, picture: np.ndarray) -> None:
    expected = Explainer(detector, imgsz=160)(picture)
    detector.train()
    sum(p.sum() for p in detector.parameters()).backward()
    before = fingerprint(detector)
    explanation = Explainer(detector, imgsz=160)(picture)
    assert fingerprint(detector) == before
    assert torch.equal(explanation.boxes, expected.boxes)
    assert torch.equal(explanation.heatmaps, expected.heatmaps)


def test_objects_with_an_empty_mask_are_dropped_as_predict_drops_them(
    segmenter: nn.Module, picture: np.ndarray
) -> None:
    head: Any = segmenter.model[-1]
    with torch.no_grad():  # prototypes of nearly one value: the sign of a mask is that of its coefficients' sum
        head.proto.cv3.bn.weight.fill_(0.01)
        head.proto.cv3.bn.bias.fill_(0.5)
        for branch in head.cv4:
            branch[-1].bias -= 0.05
    explanation = Explainer(segmenter, imgsz=160, conf=0.1)(picture)
    kept = predict(segmenter, picture, imgsz=160, conf=0.1)
    assert_same_objects(explanation, kept)
    head.proto.cv3.bn.bias.data.fill_(5.0)
    for branch in head.cv4:
        nn.init.constant_(branch[-1].weight, 0.0)
        nn.init.constant_(branch[-1].bias, 1.0)
    assert len(Explainer(segmenter, imgsz=160, conf=0.1)(picture)) > len(explanation), "some masks were empty"


def test_anchors_cached_on_another_device(detector: nn.Module, picture: np.ndarray) -> None:
    """They are no buffers: `model.to(device)` leaves them behind."""
    expected = Explainer(detector, imgsz=160)(picture)
    head: Any = detector.model[-1]
    with torch.no_grad():
        detector(torch.zeros(1, 3, 96, 160))
    assert head.anchors.shape == (2, 12 * 20 + 6 * 10 + 3 * 5)
    head.anchors, head.strides = head.anchors.to("meta"), head.strides.to("meta")
    explanation = Explainer(detector, imgsz=160)(picture)
    assert torch.equal(explanation.boxes, expected.boxes)
    assert head.anchors.device.type == "meta"


def test_class_names_as_a_list(detector: nn.Module, picture: np.ndarray) -> None:
    expected = Explainer(detector, imgsz=160)(picture).labels
    detector.names = list(detector.names.values())
    assert Explainer(detector, imgsz=160)(picture).labels == expected


def test_a_class_derived_from_ultralytics_own(picture: np.ndarray, detector: nn.Module) -> None:
    derived = copy.copy(detector)
    derived.__class__ = type("MyDetector", (type(detector),), {"__module__": "my_project"})
    explanation = Explainer(derived, imgsz=160)(picture)
    assert torch.equal(explanation.boxes, Explainer(detector, imgsz=160)(picture).boxes)


def test_agnostic_suppression_of_an_earlier_predict_call_does_not_stick(seed: int) -> None:
    picture = random_picture(seed, 120, 200)
    model = random_yolo("yolo26n.yaml", seed, picture, 160)
    model.end2end = True
    with torch.no_grad():  # an anchor that is of class 0 is of class 1, too
        for branch in model.model[-1].one2one_cv3:
            branch[-1].weight[1], branch[-1].bias[1] = branch[-1].weight[0], branch[-1].bias[0] - 0.1
    expected = predict(model, picture, imgsz=160, nms=False, conf=0.1)
    agnostic = predict(model, picture, imgsz=160, nms=False, conf=0.1, agnostic_nms=True)
    assert not torch.equal(agnostic.boxes.data, expected.boxes.data)
    model.set_head_attr(agnostic_nms=True)
    assert_same_objects(Explainer(model, imgsz=160, conf=0.1)(picture), expected)


EXCLUDED = {
    "yolo26n-sem.yaml": ("SemanticSegment", "SemanticSegmentationModel"),
    "yolo26n-depth.yaml": ("Depth", "DepthModel"),
}


@pytest.mark.parametrize("config", few(EXCLUDED, "yolo26n-depth.yaml"))
def test_other_tasks_are_refused_by_the_name_of_their_head(config: str, seed: int) -> None:
    from ultralytics.nn import tasks

    head, kind = EXCLUDED[config]
    model = getattr(tasks, kind)(config, verbose=False)
    assert type(model.model[-1]).__name__ == head
    with pytest.raises(ModelError, match=head) as caught:
        Explainer(model)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, InputError)


def test_exported_models_are_refused(tmp_path: Path) -> None:
    from ultralytics import YOLO

    exported = tmp_path / "small.onnx"
    exported.write_bytes(b"")
    with pytest.raises(ModelError, match=r"small\.onnx: an exported model has no gradients"):
        Explainer(YOLO(exported, task="detect"))


@pytest.mark.parametrize("name", few(["yolov8n.pt", "yolov8n-seg.pt"], "yolov8n-seg.pt"))
def test_real_weights_on_photographs(name: str, shared: Path) -> None:
    from ultralytics import YOLO

    photographs = sorted((shared / "data" / "coco64" / "images").glob("*.jpg"))[:3]
    explainer = Explainer(shared / "weights" / name)
    wrapper = YOLO(shared / "weights" / name)
    for path in photographs:
        explanation = explainer(path)
        result = wrapper.predict(path, verbose=False)[0]
        assert_same_objects(explanation, result, box=1e-2)
        assert [wrapper.names[int(c)] for c in result.boxes.cls] == explanation.labels
