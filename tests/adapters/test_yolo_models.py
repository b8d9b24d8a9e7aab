"""Every model with boxes that the installed Ultralytics ships: its predict call's objects, each with a map."""

import pytest
import torch
from support import few, fingerprint, random_picture
from yolo_models import TASKS, predicted, random_model, shipped, size_of

from detcam import Explainer


def test_the_table_covers_every_family_and_task() -> None:
    names = {name.removesuffix(".yaml") for name in shipped()}
    assert names >= {
        *("yolov3", "yolov3-spp", "yolov3-tiny", "yolov5n", "yolov5n-p6", "yolov6n"),
        *("yolov8n", "yolov8n-ghost", "yolov8n-p2", "yolov8n-p6", "yolov8n-seg", "yolov8n-seg-p6"),
        *("yolov9t", "yolov9c", "yolov9e", "yolov9c-seg", "yolov9e-seg", "yolov10n", "yolov10x"),
        *("yolo11n", "yolo11n-seg", "yolo12n", "yolo12n-seg", "yolo26n", "yolo26n-p2", "yolo26n-p6", "yolo26n-seg"),
        *("yolov8n-pose", "yolov8n-pose-p6", "yolo11n-pose", "yolo12n-pose", "yolo26n-pose"),
        *("yolov8n-obb", "yolo11n-obb", "yolo12n-obb", "yolo26n-obb", "yolov8n-world", "yolov8n-worldv2"),
        *("yoloe-v8n", "yoloe-11n", "yoloe-26n", "yoloe-v8n-seg", "yoloe-11n-seg", "yoloe-26n-seg"),
    }  # fmt: skip


@pytest.mark.parametrize("config", few(shipped(), "yolov8n-pose.yaml", "yoloe-11n.yaml"))
def test_predicted_objects_each_get_a_map(config: str, seed: int) -> None:
    picture, imgsz = random_picture(seed, 120, 200), size_of(config)
    model = random_model(config, seed, picture, imgsz)
    before = fingerprint(model)
    explanation = Explainer(model, imgsz=imgsz, layers="level")(picture)
    evidence = Explainer(model, imgsz=imgsz, layers="evidence", max_det=4)(picture)
    assert fingerprint(model) == before

    assert len(explanation) >= 3
    result, boxes, scores, classes = predicted(config, model, picture, imgsz=imgsz)
    assert len(explanation) == len(boxes)
    torch.testing.assert_close(explanation.scores, scores, rtol=0, atol=1e-4)
    pixels = 1e-2 if any(task in config for task in TASKS) else 1e-3
    for i in range(len(explanation)):
        close = (boxes - explanation.boxes[i]).abs().amax(dim=1) <= pixels
        same = close & ((scores - explanation.scores[i]).abs() <= 1e-4) & (classes == explanation.class_ids[i])
        assert bool(same.any()), f"object {i}: {explanation.boxes[i].tolist()} is not where predict has it"
    assert explanation.labels[0] == model.names[int(explanation.class_ids[0])]
    assert (explanation.masks is None) == (result.masks is None)
    assert len(set(explanation.objects.level.tolist())) >= 2, "calibrated to find objects at every level"
    for each in (explanation, evidence):
        assert all(bool(m.isfinite().all()) and bool(m.any()) for m in each.maps)
        assert each.heatmaps.shape == (len(each), 120, 200)
    torch.testing.assert_close(evidence.boxes, explanation.boxes[: len(evidence)])
