"""The predict callback, inside real predict and track calls of Ultralytics."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from support import fingerprint, random_picture, wrapped
from torch import nn

from detcam import Explainer, InputError, ultralytics_callback

pytest.importorskip("ultralytics")


def bgr(picture: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(picture[:, :, ::-1])


def test_each_result_gets_its_explanation(segmenter: nn.Module, picture: np.ndarray) -> None:
    model = wrapped(segmenter)
    plain = model.predict(bgr(picture), imgsz=160, device="cpu", verbose=False)[0]
    before = fingerprint(segmenter)
    model.add_callback("on_predict_batch_end", ultralytics_callback(method="odam"))
    (result,) = model.predict(bgr(picture), imgsz=160, device="cpu", verbose=False)
    assert torch.equal(result.boxes.data, plain.boxes.data), "the callback changed what predict finds"
    e = result.explanation
    assert torch.equal(e.boxes, result.boxes.xyxy)
    assert torch.equal(e.scores, result.boxes.conf)
    assert not e.boxes.is_inference()
    assert e.heatmaps.shape == (len(result), 120, 200)
    assert fingerprint(segmenter) == before
    # The predictor's model is fused: the same maps but for rounding.
    direct = Explainer(segmenter, "odam", imgsz=160)(picture)
    by_anchor = dict(zip(direct.objects.index.tolist(), direct.maps, strict=True))
    for anchor, raw in zip(e.objects.index.tolist(), e.maps, strict=True):
        torch.testing.assert_close(raw, by_anchor[anchor], rtol=1e-2, atol=1e-3 * float(raw.abs().max()))
    again = model.predict(bgr(picture), imgsz=160, device="cpu", verbose=False)[0]
    assert torch.equal(again.boxes.data, plain.boxes.data)


def test_folders_batches_and_other_arguments(detector: nn.Module, seed: int, tmp_path: Path) -> None:
    """Two files of one name and one of another size, batched; then other arguments, and the same folder goes on."""
    (tmp_path / "b").mkdir()
    pictures = [random_picture(seed, 120, 200), random_picture(seed + 1, 120, 200), random_picture(seed + 2, 90, 110)]
    paths = [tmp_path / "a.png", tmp_path / "b" / "a.png", tmp_path / "b" / "سيارة <i>.png"]
    for path, picture in zip(paths, pictures, strict=True):
        path.write_bytes(cv2.imencode(".png", bgr(picture))[1].tobytes())
    model = wrapped(detector)
    model.add_callback("on_predict_batch_end", ultralytics_callback(tmp_path / "out", layers="level"))
    results = model.predict(
        [str(p) for p in paths], imgsz=160, conf=0.1, max_det=4, batch=3, device="cpu", verbose=False
    )
    results += model.predict(str(paths[0]), imgsz=96, conf=0.05, max_det=2, device="cpu", verbose=False)
    assert len(results) == 4
    folders = sorted((tmp_path / "out").iterdir())
    assert [f.name for f in folders] == ["000000_a", "000001_a", "000002_سيارة <i>", "000003_a"]
    for folder, result, path in zip(folders, results, [*paths, paths[0]], strict=True):
        assert torch.equal(result.explanation.boxes, result.boxes.xyxy)
        document = json.loads((folder / "explanation.json").read_text(encoding="utf-8"))
        assert document["source"] == str(path)
        assert [o["label"] for o in document["objects"]] == [result.names[int(c)] for c in result.boxes.cls]
        assert len(list(folder.glob("overlay_*.png"))) == len(result)
    assert [r.explanation.settings["max_det"] for r in results] == [4, 4, 4, 2]


def test_a_tracker_keeps_the_explanations(tmp_path: Path) -> None:
    pytest.importorskip("lap")
    from detcam import zoo
    from detcam.scenes import HELD_OUT_SEED, draw_scene

    scene = draw_scene(HELD_OUT_SEED + 4).image
    model: Any = zoo.load("scenes-yolo")
    model.add_callback("on_predict_batch_end", ultralytics_callback(layers="level"))
    for shift in (0, 8, 24):
        frame = bgr(scene[:, shift : shift + 560])
        (result,) = model.track(frame, persist=True, device="cpu", verbose=False, tracker="bytetrack.yaml")
        assert result.boxes.is_track
        assert len(result) > 2
        assert torch.equal(result.explanation.boxes, result.boxes.xyxy.float())
        assert all(share is None or share > 0.3 for share in result.explanation.energy_in_box)


def test_what_is_predicts_is_refused() -> None:
    for name in ("conf", "imgsz", "device", "model"):
        with pytest.raises(InputError, match=f"give {name} to predict"):
            ultralytics_callback(**{name: 1})


def test_a_wrong_option_is_a_warning_and_predict_goes_on(detector: nn.Module, picture: np.ndarray) -> None:
    model = wrapped(detector)
    plain = model.predict(bgr(picture), imgsz=160, device="cpu", verbose=False)[0]
    model.add_callback("on_predict_batch_end", ultralytics_callback(method="odem"))
    with pytest.warns(UserWarning, match="no explanation: .*odam"):
        (result,) = model.predict(bgr(picture), imgsz=160, device="cpu", verbose=False)
    assert result.explanation is None
    assert torch.equal(result.boxes.data, plain.boxes.data)


@pytest.mark.nightly
def test_real_weights_and_a_video(shared: Path) -> None:
    from ultralytics import YOLO

    model = YOLO(str(shared / "weights" / "yolov8n.pt"))
    model.add_callback("on_predict_batch_end", ultralytics_callback(layers="level"))
    stream = model.predict(
        str(shared / "data" / "video" / "vtest.avi"), imgsz=320, device="cpu", verbose=False, stream=True
    )
    result = next(stream)
    stream.close()
    assert len(result.explanation) == len(result) > 0
    shares = [share for share in result.explanation.energy_in_box if share is not None]
    assert np.mean(shares) > 0.5
