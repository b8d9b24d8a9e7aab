"""Every detect and segment model that the installed Ultralytics ships: its predict call's objects, each with a map."""

from pathlib import Path

import pytest
import torch
from support import assert_same_objects, fingerprint, predict, random_picture, random_yolo

from detcam import Explainer

OTHER_TASKS = ("cls", "obb", "pose", "world", "rtdetr", "yoloe", "sem", "depth")  # no boxes, or another kind of head
SCALED = (
    "yolov5",
    "yolov6",
    "yolov8",
    "yolo11",
    "yolo12",
    "yolo26",
)  # their YAML holds sizes n to x: the smallest here


def _shipped() -> list[str]:
    ultralytics = pytest.importorskip("ultralytics")
    names = sorted(path.stem for path in (Path(ultralytics.__file__).parent / "cfg" / "models").rglob("*.yaml"))
    names = [name for name in names if not any(task in name for task in OTHER_TASKS)]
    for family in SCALED:
        names = [name.replace(family, f"{family}n", 1) if name.startswith(family) else name for name in names]
    return [f"{name}.yaml" for name in names]


def test_the_table_covers_every_family() -> None:
    shipped = {name.removesuffix(".yaml") for name in _shipped()}
    assert shipped >= {
        *("yolov3", "yolov3-spp", "yolov3-tiny", "yolov5n", "yolov5n-p6", "yolov6n"),
        *("yolov8n", "yolov8n-ghost", "yolov8n-p2", "yolov8n-p6", "yolov8n-seg", "yolov8n-seg-p6"),
        *("yolov9t", "yolov9c", "yolov9e", "yolov9c-seg", "yolov9e-seg", "yolov10n", "yolov10x"),
        *("yolo11n", "yolo11n-seg", "yolo12n", "yolo12n-seg", "yolo26n", "yolo26n-p2", "yolo26n-p6", "yolo26n-seg"),
    }  # fmt: skip


@pytest.mark.parametrize("config", _shipped())
def test_predicted_objects_each_get_a_map(config: str, seed: int) -> None:
    picture = random_picture(seed, 120, 200)
    imgsz = 192 if "p6" in config else 128  # a multiple of the largest stride
    model = random_yolo(config, seed, picture, imgsz)
    before = fingerprint(model)
    explanation = Explainer(model, imgsz=imgsz, layers="level")(picture)
    evidence = Explainer(model, imgsz=imgsz, layers="evidence", max_det=6)(picture)
    assert fingerprint(model) == before

    assert len(explanation) >= 3
    assert_same_objects(explanation, predict(model, picture, imgsz=imgsz))
    assert len(set(explanation.objects.level.tolist())) >= 2, "calibrated to find objects at every level"
    for each in (explanation, evidence):
        assert all(bool(m.isfinite().all()) and bool(m.any()) for m in each.maps)
        assert each.heatmaps.shape == (len(each), 120, 200)
    assert 1 <= len(evidence) <= 6
    torch.testing.assert_close(evidence.boxes, explanation.boxes[: len(evidence)])
