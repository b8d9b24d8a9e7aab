"""`imgsz` as a side or as (height, width); `classes` and `names`: in Python, in presets and on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from support import random_picture
from torch import nn

from detcam import Explainer, cli
from detcam.config import Preset
from detcam.errors import InputError
from detcam.geometry import Geometry

LANDSCAPE = np.zeros((480, 640, 3), np.uint8)
DETR_SIZES: list[tuple[dict[str, Any], Any, tuple[int, int], tuple[int, int]]] = [
    (
        {"size": {"max_height": 640, "max_width": 640}, "pad_size": {"height": 640, "width": 640}},
        320,
        (240, 320),
        (320,) * 2,
    ),
    ({"size": {"max_height": 640, "max_width": 320}, "do_pad": False}, 320, (120, 160), (120, 160)),
    (
        {"size": {"max_height": 640, "max_width": 640}, "pad_size": {"height": 640, "width": 640}},
        (192, 320),
        (192, 256),
        (192, 320),
    ),
    ({"size": {"height": 192, "width": 480}, "do_pad": False}, 320, (128, 320), (128, 320)),
    ({"size": {"height": 480, "width": 192}, "do_pad": False}, 320, (320, 128), (320, 128)),
    ({"size": {"height": 192, "width": 480}, "do_pad": False}, (160, 224), (160, 224), (160, 224)),
    ({"size": {"height": 100, "width": 100}, "do_pad": False}, 50, (64, 64), (64, 64)),
    ({"size": {"shortest_edge": 200, "longest_edge": 300}, "do_pad": False}, 320, (240, 320), (240, 320)),
]


@pytest.mark.parametrize(("settings", "imgsz", "resized", "network"), DETR_SIZES, ids=str)
def test_a_processors_aspect_is_kept(settings: Any, imgsz: Any, resized: Any, network: Any) -> None:
    transformers = pytest.importorskip("transformers")
    from detcam.adapters.transformers.base import longest_side

    processor = transformers.DetrImageProcessor(**settings)
    pixels = processor(images=LANDSCAPE, return_tensors="pt", **longest_side(processor, imgsz))
    assert tuple(pixels["pixel_values"].shape[2:]) == network
    if "pixel_mask" in pixels:
        mask = pixels["pixel_mask"][0]
        assert (int(mask[:, 0].sum()), int(mask[0].sum())) == resized


def test_a_segmenters_aspect_is_kept() -> None:
    transformers = pytest.importorskip("transformers")
    from detcam.adapters.transformers.base import sized

    wide = transformers.SegformerImageProcessor(size={"height": 64, "width": 128})
    for imgsz, expected in ((256, (128, 256)), ((96, 64), (96, 64)), (250, (128, 256))):
        pixels = wide(images=LANDSCAPE, return_tensors="pt", **sized(wide, imgsz, 32))["pixel_values"]
        assert tuple(pixels.shape[2:]) == expected
    cropping = transformers.ViTImageProcessor(size={"height": 64, "width": 64})
    assert sized(cropping, 48) == {"size": {"height": 48, "width": 48}}


def faster_rcnn(seed: int) -> nn.Module:
    from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

    torch.manual_seed(seed)
    return fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None, num_classes=4).eval()


def test_height_and_width_of_other_families(seed: int, detector: nn.Module) -> None:
    torchvision = pytest.importorskip("torchvision")
    picture = random_picture(seed, 96, 128)
    yolo = Explainer(detector, imgsz=(64, 160)).adapter.prepare(picture)[1]
    assert (yolo.resized, yolo.network) == ((64, 85), (64, 96))
    rcnn = Explainer(faster_rcnn(seed), imgsz=(64, 160)).adapter.prepare(picture)[1]
    assert rcnn == Geometry((96, 128), (64, 85), (0, 0), (64, 96))
    resnet = Explainer(torchvision.models.resnet18().eval(), imgsz=[64, 96], layers="level")
    assert resnet.adapter.prepare(picture)[0].shape == (3, 64, 96)
    assert resnet.settings["imgsz"] == (64, 96)
    smp = pytest.importorskip("segmentation_models_pytorch")
    unet = Explainer(smp.Unet("resnet18", encoder_weights=None, classes=2).eval(), imgsz=(64, 160), layers="level")
    assert unet.adapter.prepare(picture)[1] == Geometry((96, 128), (64, 85), (0, 0), (64, 160))


@pytest.mark.parametrize("imgsz", [(64, 31), (64,), (64, 64, 64), (64.0, 64), "64", {64, 96}], ids=str)
def test_other_sizes_are_refused(imgsz: Any, detector: nn.Module) -> None:
    with pytest.raises(InputError, match=r"imgsz: expected pixels, at least 32, or \(height, width\)"):
        Explainer(detector, imgsz=imgsz)


def test_classes_are_chosen_before_the_limit(detector: nn.Module, picture: np.ndarray) -> None:
    everything = Explainer(detector, imgsz=160)(picture)
    number = int(everything.class_ids[-1])
    expected = [i for i, c in enumerate(everything.class_ids.tolist()) if c == number]
    name = everything.labels[-1]
    for classes in ([number], [name], name, number, [number, number]):
        found = Explainer(detector, imgsz=160, classes=classes)(picture)
        torch.testing.assert_close(found.scores, everything.scores[expected])
    limited = Explainer(detector, imgsz=160, classes=[number], max_det=1)(picture)
    assert limited.objects.index.tolist() == everything.objects.index[expected[:1]].tolist()
    assert len(Explainer(detector, imgsz=160, classes=[])(picture)) == 0


def test_classes_agree_with_predict(detector: nn.Module, picture: np.ndarray) -> None:
    from support import predict

    kinds = Explainer(detector, imgsz=160)(picture).class_ids.unique().tolist()[:2]
    boxes = predict(detector, picture, imgsz=160, classes=kinds, max_det=3).boxes
    found = Explainer(detector, imgsz=160, classes=kinds, max_det=3)(picture)
    assert found.class_ids.tolist() == boxes.cls.int().tolist()
    torch.testing.assert_close(found.scores, boxes.conf, rtol=1e-4, atol=1e-5)


def test_a_classifier_has_classes_of_its_own(seed: int) -> None:
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(seed)
    model, picture = torchvision.models.resnet18(num_classes=5).eval(), random_picture(seed, 64, 64)
    best = Explainer(model, imgsz=64, layers="level")(picture).class_ids.tolist()
    assert len(best) == 1
    assert Explainer(model, imgsz=64, layers="level", classes=best)(picture).class_ids.tolist() == best
    assert len(Explainer(model, imgsz=64, layers="level", classes=[best[0] ^ 1])(picture)) == 0


def test_numbers_of_numpy(detector: nn.Module, picture: np.ndarray, tmp_path: Path) -> None:
    options: dict[str, Any] = {"max_det": np.int64(2), "conf": np.float32(0.25), "layers": "level"}
    given = [Explainer(detector, imgsz=side, **options) for side in (np.int64(64), [np.int32(64), np.int32(96)])]
    assert [explainer.settings["imgsz"] for explainer in given] == [64, (64, 96)]
    given[1](picture).save(tmp_path)
    assert json.loads((tmp_path / "explanation.json").read_text())["settings"]["max_det"] == 2


def test_unknown_classes_are_refused(seed: int, detector: nn.Module) -> None:
    with pytest.raises(InputError, match="classes: 'thing_3' is not a class of the model: did you mean 'thing 3'"):
        Explainer(detector, classes=["thing_3"])
    with pytest.raises(InputError, match="classes: 80 is not a class of the model"):
        Explainer(detector, classes=[80])
    for wrong in (1.5, [2.5]):
        with pytest.raises(InputError, match="is not a class of the model"):
            Explainer(detector, classes=wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="classes: 'car' is not a class of the model: give numbers, or names="):
        Explainer(faster_rcnn(seed), classes=["car"])


def test_names_name_the_classes_of_any_model(seed: int, detector: nn.Module, picture: np.ndarray) -> None:
    given = Explainer(detector, imgsz=160, names=[f"kind {i}" for i in range(80)])(picture)
    assert given.labels == [f"kind {c}" for c in given.class_ids.tolist()]
    model = faster_rcnn(seed)
    explainer = Explainer(model, conf=0.0, imgsz=64, max_det=3, names={1: "car", 2: "van", 3: "bus"}, classes=["van"])
    assert set(explainer(random_picture(seed, 48, 64)).labels) <= {"van"}
    assert explainer.adapter.chosen_classes == (2,)
    for wrong in ("car", [1, 2], {"a": "b"}, 3):
        with pytest.raises(InputError, match="names: expected class names by number"):
            Explainer(model, names=wrong)  # type: ignore[arg-type]


def test_presets_and_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    preset = Preset(imgsz=[96, 64], classes=[0, "kite"], names=["a", "b"])
    assert {name: preset.options()[name] for name in ("imgsz", "classes", "names")} == {
        "imgsz": [96, 64], "classes": [0, "kite"], "names": ["a", "b"],
    }  # fmt: skip
    flags = ["--imgsz", "96,64", "--classes", "0,kite", "--names", "a", "--names", "b"]
    assert cli.run(["explain", *flags, "--print-config"]) == 0
    (tmp_path / "p.yaml").write_text(capsys.readouterr().out)
    assert cli.run(["explain", "--config", str(tmp_path / "p.yaml"), "--print-config"]) == 0
    assert "imgsz:\n- 96\n- 64\n" in capsys.readouterr().out
    cv2.imwrite(str(tmp_path / "a.png"), random_picture(0, 48, 64))
    command = ["explain", str(tmp_path / "a.png"), "--model", "scenes", "--conf", "0", "--out", str(tmp_path / "o")]
    assert cli.run([*command, "--imgsz", "64,96", "--classes", "1, 2", "--max-det", "2"]) == 0
    document = json.loads((tmp_path / "o" / "explanation.json").read_text())
    assert {o["class_id"] for o in document["objects"]} <= {1, 2}
