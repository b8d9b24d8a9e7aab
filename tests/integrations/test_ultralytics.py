"""Ultralytics' Results in: the boxes that predict returned, each with the map that a direct explanation gives it."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from support import fingerprint, predict, random_picture, random_yolo, wrapped
from torch import nn

import detcam
from detcam import Explainer, Explanation, InputError, explain_results

pytest.importorskip("ultralytics")


def bgr(picture: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(picture[:, :, ::-1])


def assert_of_result(explanation: Explanation, result: Any, names: dict[int, str] | None = None) -> None:
    """The same objects in the same order, bit for bit; and the candidates behind them have these boxes."""
    rows = result.boxes if result.boxes is not None else result.obb
    assert torch.equal(explanation.boxes, torch.as_tensor(rows.xyxy).float())
    assert torch.equal(explanation.scores, torch.as_tensor(rows.conf).float())
    assert explanation.labels == [result.names[int(c)] for c in rows.cls]
    assert np.array_equal(explanation.image[:, :, ::-1], result.orig_img)
    assert len(explanation.maps) == len(rows)
    height, width = result.orig_shape
    behind = explanation.geometry.to_source(explanation.objects.network_boxes)
    given = torch.minimum(explanation.boxes.clamp(min=0), torch.tensor([width, height] * 2))
    torch.testing.assert_close(behind, given, rtol=0, atol=0.05)


def assert_same_maps(explanation: Explanation, direct: Explanation) -> None:
    """Each object's map is that of the object with its anchor and class in `direct`."""
    places = {(int(i), int(c)): j for j, (i, c) in enumerate(zip(direct.objects.index, direct.class_ids, strict=True))}
    for i, key in enumerate(zip(explanation.objects.index.tolist(), explanation.class_ids.tolist(), strict=True)):
        torch.testing.assert_close(explanation.maps[i], direct.maps[places[key]], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "config", ["yolov8n.yaml", "yolov8n-seg.yaml", pytest.param("yolov10n.yaml", marks=pytest.mark.nightly)]
)
def test_results_get_the_maps_of_a_direct_explanation(config: str, seed: int, picture: np.ndarray) -> None:
    model = random_yolo(config, seed, picture, 160)
    wrapper = wrapped(model)
    (result,) = wrapper.predict(bgr(picture), imgsz=160, device="cpu", verbose=False)
    before = fingerprint(model)
    explanation = explain_results(result, wrapper)  # the size is that of the last call
    assert len(explanation) > 3
    assert_of_result(explanation, result)
    assert_same_maps(explanation, Explainer(model, imgsz=160)(picture))
    if result.masks is not None:
        assert explanation.masks is not None
        assert explanation.masks.shape == (len(result), *picture.shape[:2])
    assert fingerprint(model) == before


def test_candidates_that_are_alike_are_those_that_predict_kept(seed: int, picture: np.ndarray) -> None:
    """An untrained head gives all anchors of a level one score, and boxes that fill the picture once they are clipped."""
    from ultralytics import YOLO
    from ultralytics.utils.nms import non_max_suppression

    torch.manual_seed(seed)
    wrapper = YOLO("yolo11n.yaml")
    (result,) = wrapper.predict(bgr(picture), imgsz=160, conf=1e-6, max_det=8, device="cpu", verbose=False)
    predictor = wrapper.predictor
    with torch.no_grad():
        raw = predictor.model.model(predictor.preprocess([bgr(picture)]))
    (kept,) = non_max_suppression(raw, 1e-6, max_det=8, iou_thres=0.7, return_idxs=True)[1]
    assert len(result.boxes.xyxy.unique(dim=0)) < len(result), "these boxes can be told apart"
    assert explain_results(result, wrapper, layers="level").objects.index.tolist() == kept.flatten().tolist()


def test_whatever_settings_and_filters_made_them(detector: nn.Module, picture: np.ndarray) -> None:
    result = predict(detector, picture, imgsz=160, conf=0.2, iou=0.95, max_det=40, agnostic_nms=True)
    kept = result[(result.boxes.cls != result.boxes.cls[0])]
    backwards = result[list(range(len(result)))[::-1]].numpy()
    explanations = explain_results([result, kept, backwards], detector, imgsz=160)
    for explanation, each in zip(explanations, (result, kept, backwards), strict=True):
        assert_of_result(explanation, each)
    direct = Explainer(detector, imgsz=160, conf=0.2, iou=0.999, max_det=1000)(picture)
    assert_same_maps(explanations[0], direct)
    assert torch.equal(explanations[2].objects.index, explanations[0].objects.index.flip(0))


def test_options_are_those_of_the_explainer(detector: nn.Module, picture: np.ndarray) -> None:
    result = predict(detector, picture, imgsz=160)
    explanation = explain_results(result, detector, imgsz=160, method="gradcam", layers="model.9", target="prob")
    assert (explanation.settings["method"], explanation.settings["layers"]) == ("gradcam", ["model.9"])
    direct = Explainer(detector, imgsz=160, method="gradcam", layers="model.9", target="prob")(picture)
    assert_same_maps(explanation, direct)


def test_classes_leave_others_out(detector: nn.Module, picture: np.ndarray) -> None:
    result = predict(detector, picture, imgsz=160)
    first = int(result.boxes.cls[0])
    chosen = explain_results(result, detector, imgsz=160, layers="level", classes=first)
    assert chosen.class_ids.tolist() == [c for c in result.boxes.cls.int().tolist() if c == first]


def test_pictures_of_several_sizes_in_one_call(detector: nn.Module, seed: int, picture: np.ndarray) -> None:
    """Predict pads each of them to a square, which moves its boxes: one by one they come out differently."""
    wrapper = wrapped(detector)
    pictures = [picture, random_picture(seed + 1, 150, 90), picture[:64]]
    results = wrapper.predict([bgr(p) for p in pictures], imgsz=160, conf=0.05, max_det=20, device="cpu", verbose=False)
    for explanation, result in zip(explain_results(results, wrapper), results, strict=True):
        assert_of_result(explanation, result)
        assert explanation.geometry.network == (160, 160)
    assert explain_results(predict(detector, picture, imgsz=160), wrapper).geometry.network == (96, 160)


@pytest.mark.parametrize(
    "imgsz",
    [(96, 160), pytest.param([160, 160], marks=pytest.mark.nightly), pytest.param(170, marks=pytest.mark.nightly)],
)
def test_the_size_of_the_last_call(imgsz: Any, detector: nn.Module, picture: np.ndarray) -> None:
    wrapper = wrapped(detector)
    (result,) = wrapper.predict(bgr(picture), imgsz=imgsz, conf=0.05, max_det=9, device="cpu", verbose=False)
    assert len(result)
    assert_of_result(explain_results(result, wrapper), result)


def test_a_stream_and_an_empty_result(detector: nn.Module, picture: np.ndarray) -> None:
    wrapper = wrapped(detector)
    stream = wrapper.predict([bgr(picture)] * 2, imgsz=160, device="cpu", verbose=False, stream=True)
    next(stream)
    explanations = explain_results(stream, wrapper)
    assert [len(e) > 0 for e in explanations] == [True]
    untouched = wrapped(detector)  # it has no settings before the first result
    stream = untouched.predict([bgr(picture)] * 2, imgsz=160, device="cpu", verbose=False, stream=True)
    assert [len(e) for e in explain_results(stream, untouched)] == [len(explanations[0])] * 2
    (empty,) = wrapper.predict(bgr(picture), imgsz=160, conf=1.0, device="cpu", verbose=False)
    explanation = explain_results(empty, wrapper)
    assert len(explanation) == 0
    assert explanation.heatmaps.shape == (0, 120, 200)
    assert explain_results([], wrapper) == []


@pytest.mark.parametrize("task", ["obb", pytest.param("pose", marks=pytest.mark.nightly)])
def test_rotated_boxes_and_poses(task: str, seed: int, picture: np.ndarray) -> None:
    from ultralytics import YOLO

    torch.manual_seed(seed)
    wrapper = YOLO(f"yolov8n-{task}.yaml")
    (result,) = wrapper.predict(bgr(picture), imgsz=160, conf=1e-6, max_det=6, device="cpu", verbose=False)
    assert len(result) == 6
    explanation = explain_results(result, wrapper)
    assert_of_result(explanation, result)


def test_a_classifier(seed: int, picture: np.ndarray) -> None:
    from ultralytics import YOLO

    torch.manual_seed(seed)
    wrapper = YOLO("yolov8n-cls.yaml")
    (result,) = wrapper.predict(bgr(picture), imgsz=64, device="cpu", verbose=False)
    explanation = explain_results(result, wrapper)
    assert explanation.class_ids.tolist() == [result.probs.top1]
    assert float(explanation.scores[0]) == pytest.approx(float(result.probs.top1conf), abs=1e-4)
    other = result.new()
    other.update(probs=-result.probs.data)
    with pytest.raises(InputError, match="this model says"):
        explain_results(other, wrapper)


def test_rtdetr(seed: int, picture: np.ndarray) -> None:
    from ultralytics import RTDETR

    torch.manual_seed(seed)
    wrapper = RTDETR("yolov8n-rtdetr.yaml")
    (result,) = wrapper.predict(bgr(picture), imgsz=96, conf=0.0, max_det=5, device="cpu", verbose=False)
    assert len(result) == 5
    explanation = explain_results([result], wrapper)[0]
    assert torch.equal(explanation.boxes, result.boxes.xyxy)
    assert torch.equal(explanation.scores, result.boxes.conf)


def test_boxes_that_a_tracker_moved(detector: nn.Module, picture: np.ndarray) -> None:
    """As a tracker leaves them: moved by some pixels, a column more, scores as they were."""
    result = predict(detector, picture, imgsz=160)
    untouched = explain_results(result, detector, imgsz=160)
    rows, count = result.boxes.data, len(result)
    sides = (rows[:, 2:4] - rows[:, :2]).repeat(1, 2)
    moved = rows[:, :4] + 0.15 * sides * torch.tensor([1, -1, 1, -1])
    result.update(boxes=torch.cat([moved, torch.arange(count)[:, None] + 1, rows[:, 4:]], dim=1))
    assert result.boxes.is_track
    explanation = explain_results(result, detector, imgsz=160)
    assert torch.equal(explanation.boxes, result.boxes.xyxy)
    assert torch.equal(explanation.objects.index, untouched.objects.index)
    torch.testing.assert_close(explanation.maps, untouched.maps, rtol=1e-5, atol=1e-6)


@pytest.mark.nightly
def test_a_real_tracker(tracked: list[Any], track_model: Any) -> None:
    assert sum(len(result) for result in tracked) >= 6
    explanations = explain_results(tracked, track_model)
    moved = 0.0
    for explanation, result in zip(explanations, tracked, strict=True):
        assert torch.equal(explanation.boxes, result.boxes.xyxy.float())
        beneath = Explainer(track_model, conf=0.1)(result.orig_img[:, :, ::-1])
        assert_same_maps(explanation, beneath)
        behind = explanation.geometry.to_source(explanation.objects.network_boxes)
        moved = max(moved, float((behind - explanation.boxes).abs().max()) if len(result) else 0.0)
    assert moved > 1, "the tracker moved nothing, so nothing was tested"


@pytest.fixture
def track_model() -> Any:
    from detcam import zoo

    return zoo.load("scenes-yolo")


@pytest.fixture
def tracked(track_model: Any) -> list[Any]:
    """Four frames in which the camera moves over a scene, faster and faster, tracked."""
    pytest.importorskip("lap")
    from detcam.scenes import HELD_OUT_SEED, draw_scene

    scene = draw_scene(HELD_OUT_SEED + 4).image
    frames = [bgr(scene[:, shift : shift + 560]) for shift in (0, 6, 24, 60)]
    return [
        track_model.track(f, persist=True, device="cpu", verbose=False, tracker="bytetrack.yaml")[0] for f in frames
    ]


def test_what_are_no_results(detector: nn.Module, picture: np.ndarray) -> None:
    result = predict(detector, picture, imgsz=160)
    with pytest.raises(InputError, match=r"results\[1\]: expected Ultralytics' Results, got a int"):
        explain_results([result, 3], detector, imgsz=160)
    with pytest.raises(InputError, match="results: expected Ultralytics' Results or a list of them, got a int"):
        explain_results(3, detector, imgsz=160)
    result.boxes = None
    with pytest.raises(InputError, match="results: expected Results with boxes"):
        explain_results(result, detector, imgsz=160)


def test_another_model_or_size_is_one_clear_error(detector: nn.Module, seed: int, picture: np.ndarray) -> None:
    result = predict(detector, picture, imgsz=160)
    expected = r"^results: box (\d+) \((thing \d [\d.]+) at [\d, -]+\) is not among.*imgsz"
    with pytest.raises(InputError, match=expected) as caught:
        explain_results(result, random_yolo("yolov8n.yaml", seed + 1, picture, 160), imgsz=160)
    number, facts = re.match(expected, str(caught.value)).groups()  # a few boxes may be like one of the other model's
    row = result.boxes[int(number)]
    assert facts == f"{result.names[int(row.cls)]} {float(row.conf):.2f}"
    with pytest.raises(InputError, match=r"^results\[1\]: box"):
        explain_results([result[:0], result], detector, imgsz=96)


@pytest.mark.nightly
def test_real_weights(shared: Any) -> None:
    from ultralytics import YOLO

    model = YOLO(str(shared / "weights" / "yolov8n.pt"))
    paths = sorted((shared / "data" / "coco64" / "images").glob("*.jpg"))[:2]
    results = model.predict([str(p) for p in paths], imgsz=320, device="cpu", verbose=False)
    explanations = explain_results(results, model, layers="level")
    for explanation, result in zip(explanations, results, strict=True):
        assert_of_result(explanation, result)
    inside = [share for e in explanations for share in e.energy_in_box if share is not None]
    assert np.mean(inside) > 0.5, "BGR for RGB, or maps beside their objects"


def test_names_are_public() -> None:
    assert {"explain_results", "ultralytics_callback"} <= set(detcam.__all__)


def test_the_head_that_predict_used_is_explained(seed: int, picture: np.ndarray) -> None:
    """With `nms=False` predict takes the one-to-one head in its copy of the model; with `nms=True` the other."""
    wrapper = wrapped(random_yolo("yolo26n.yaml", seed, picture, 160))
    for nms in (False, True):
        (result,) = wrapper.predict(bgr(picture), imgsz=160, conf=1e-3, max_det=8, nms=nms, verbose=False)
        assert len(result) > 3
        assert_of_result(explain_results(result, wrapper, layers="level"), result)


@pytest.mark.parametrize("size", [(128, 96), (256, 320)])
def test_results_of_a_tensor_that_predict_took_as_it_was(detector: nn.Module, size: tuple[int, int]) -> None:
    wrapper = wrapped(detector)
    pixels = torch.from_numpy(random_picture(1, *size)).permute(2, 0, 1)[None] / 255
    (result,) = wrapper.predict(pixels, imgsz=160, conf=1e-3, max_det=8, verbose=False)
    assert len(result) > 3
    assert_of_result(explain_results(result, wrapper, layers="level"), result)


def test_a_callback_never_ends_predict(detector: nn.Module, picture: np.ndarray) -> None:
    wrapper = wrapped(detector)
    wrapper.add_callback("on_predict_batch_end", detcam.ultralytics_callback(layers=["model.99"]))
    with pytest.warns(UserWarning, match=r"no explanation: .*model\.99"):
        (result,) = wrapper.predict(bgr(picture), imgsz=160, device="cpu", verbose=False)
    assert len(result) > 3
    assert result.explanation is None
