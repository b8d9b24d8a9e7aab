from __future__ import annotations

import builtins
import pickle
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray
from support import NIGHTLY

from detcam import zoo
from detcam.scenes import CLASSES, HELD_OUT_SEED, Scene, draw_scene

pytest.importorskip("ultralytics")

FIRST = HELD_OUT_SEED + 5000  # seeds that neither training nor the published figures used


@pytest.fixture(scope="module")
def model() -> Any:
    return zoo.load("scenes-yolo")


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [draw_scene(seed) for seed in range(FIRST, FIRST + (12 if NIGHTLY else 2))]


@pytest.fixture(scope="module")
def results(model: Any, scenes: list[Scene]) -> list[Any]:
    pictures = [np.ascontiguousarray(scene.image[..., ::-1]) for scene in scenes]  # Ultralytics reads BGR
    return list(model.predict(pictures, verbose=False))


def box_iou(a: NDArray[np.floating], b: NDArray[np.floating]) -> NDArray[np.floating]:
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    both = np.clip(high - low, 0, None).prod(axis=2)
    area_a, area_b = (a[:, 2:] - a[:, :2]).prod(axis=1), (b[:, 2:] - b[:, :2]).prod(axis=1)
    return both / (area_a[:, None] + area_b - both)


def found(scene: Scene, result: Any) -> NDArray[np.bool_]:
    """Which objects of the scene have a detection of their class with IoU >= 0.5."""
    boxes, labels = result.boxes.xyxy.numpy(), result.boxes.cls.numpy().astype(int)
    hit = (box_iou(scene.boxes, boxes) >= 0.5) & (scene.class_ids[:, None] == labels[None])
    return hit.any(axis=1)


def test_names_lists_what_can_be_loaded() -> None:
    assert set(zoo.names()) >= {"scenes", "scenes-yolo", "scenes-detr", "scenes-semantic"}


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match="scenes-yolo"):
        zoo.load("nothing")


def test_the_model_is_ready_to_use(model: Any) -> None:
    assert model.task == "segment"
    assert model.names == dict(enumerate(CLASSES))
    assert not model.model.training
    assert {value.dtype for value in model.model.parameters()} == {torch.float32}
    assert model.model.args["imgsz"] == 320


def test_loading_uses_neither_pickle_nor_network_and_leaves_no_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("must not be used to load a demo model")

    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr(pickle, "load", refuse)
    monkeypatch.setattr(pickle, "loads", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.chdir(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in zoo.FOLDER.iterdir() if path.is_file()}
    zoo.load("scenes-yolo")
    assert not list(tmp_path.iterdir())
    assert before == {path: path.stat().st_mtime_ns for path in zoo.FOLDER.iterdir() if path.is_file()}


def test_two_loads_share_nothing(model: Any) -> None:
    other = zoo.load("scenes-yolo")
    for a, b in zip(model.model.parameters(), other.model.parameters(), strict=False):
        assert a.data_ptr() != b.data_ptr()


def test_a_fresh_load_has_the_weights_of_the_file() -> None:
    from safetensors.torch import load_file

    stored = load_file(zoo.FOLDER / "ultralytics" / "scenes-yolo.safetensors")
    loaded = zoo.load("scenes-yolo").model.state_dict()
    assert stored.keys() == loaded.keys()
    assert all(torch.equal(loaded[key], value.to(loaded[key].dtype)) for key, value in stored.items())


def test_predictions_find_the_objects_of_held_out_scenes(scenes: list[Scene], results: list[Any]) -> None:
    recall = np.concatenate([found(s, r) for s, r in zip(scenes, results, strict=True)]).mean()
    assert recall >= 0.85


@pytest.mark.nightly
def test_predictions_are_mostly_right(scenes: list[Scene], results: list[Any]) -> None:
    right = total = 0
    for scene, result in zip(scenes, results, strict=True):
        boxes, labels = result.boxes.xyxy.numpy(), result.boxes.cls.numpy().astype(int)
        hit = (box_iou(boxes, scene.boxes) >= 0.5) & (labels[:, None] == scene.class_ids[None])
        right, total = right + int(hit.any(axis=1).sum()), total + len(labels)
    assert right / total >= 0.85


@pytest.mark.nightly
def test_predicted_masks_cover_the_objects(scenes: list[Scene], results: list[Any]) -> None:
    best = []
    for scene, result in zip(scenes, results, strict=True):
        masks = torch.nn.functional.interpolate(result.masks.data[None].float(), (256, 320))[0].numpy() > 0.5
        masks = masks[:, 8:248].repeat(2, axis=1).repeat(2, axis=2)  # 480x640 in 256x320: 8 rows of padding
        for mask in scene.masks:
            best.append(max((m & mask).sum() / (m | mask).sum() for m in masks))
    assert np.median(best) >= 0.75


def test_results_carry_names_and_the_trained_picture_size(model: Any, results: list[Any]) -> None:
    assert results[0].names == dict(enumerate(CLASSES))
    assert max(model.predictor.imgsz) == 320


def test_files_are_small_and_describe_themselves() -> None:
    assert (zoo.FOLDER / "ultralytics" / "scenes-yolo.safetensors").stat().st_size <= 6_000_000
    description = yaml.safe_load((zoo.FOLDER / "ultralytics" / "scenes-yolo.yaml").read_text(encoding="utf-8"))
    assert tuple(description["names"]) == CLASSES
    assert description["nc"] == len(CLASSES)
    assert description["held_out"]["first_seed"] >= HELD_OUT_SEED
    assert description["held_out"]["box_map50"] >= 0.90
    assert description["training"]["scenes"] <= HELD_OUT_SEED


def test_without_ultralytics_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == "ultralytics":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ImportError, match=r'pip install "detcam\[ultralytics\]"'):
        zoo.load("scenes-yolo")
