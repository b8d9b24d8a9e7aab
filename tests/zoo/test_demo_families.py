"""The demo models of other families: what they find on held-out scenes, and heat that lies on what they found."""

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
from support import NIGHTLY

from detcam import Explainer, Explanation, zoo
from detcam.errors import ModelError
from detcam.scenes import CLASSES, HELD_OUT_SEED, Scene, draw_scene

LIBRARIES = {"scenes-detr": "ultralytics", "scenes": "torchvision", "scenes-semantic": "transformers"}
FIRST = HELD_OUT_SEED + 6000  # seeds that neither training nor the published figures used
SCENES = 4 if NIGHTLY else 2
TIMES_AREA = 3  # of the share of the picture that a box or mask takes up: the least energy in it


@pytest.fixture(scope="module", params=LIBRARIES)
def name(request: pytest.FixtureRequest) -> str:
    pytest.importorskip(LIBRARIES[request.param])
    return str(request.param)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [draw_scene(seed) for seed in range(FIRST, FIRST + SCENES)]


def explained(name: str, scenes: list[Scene], layers: str = "auto") -> list[Explanation]:
    explainer = Explainer(name, layers=layers, segments="component" if name == "scenes-semantic" else "class")
    return explainer([scene.image for scene in scenes])


def weights(name: str) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(next(path for path in zoo.files(name) if path.suffix == ".safetensors"))


@pytest.mark.parametrize(
    "layers", ["level", *(pytest.param(layers, marks=pytest.mark.nightly) for layers in ("auto", "evidence"))]
)
def test_heat_lies_on_the_object(name: str, layers: str, scenes: list[Scene]) -> None:
    """By the box of a detection, or the mask of a segmenter's region that is no background."""
    energies, areas = [], []
    for explanation in explained(name, scenes, layers):
        for i, label in enumerate(explanation.labels):
            if label == "background":
                continue
            if explanation.masks is not None:
                region = explanation.masks[i]
            else:
                x1, y1, x2, y2 = explanation.boxes[i].round().long().tolist()
                region = torch.zeros(explanation.image.shape[:2], dtype=torch.bool)
                region[y1:y2, x1:x2] = True
            heat = explanation.heatmaps[i]
            assert explanation.notes[i] is None or heat.any()
            energies.append(float(heat[region].sum() / heat.sum().clamp(min=1e-9)))
            areas.append(float(region.float().mean()))
    assert len(energies) >= 3 * SCENES
    assert np.mean(energies) >= TIMES_AREA * np.mean(areas), (np.mean(energies), np.mean(areas))


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["scenes-detr", "scenes"])
def test_the_detector_finds_the_objects(name: str, scenes: list[Scene]) -> None:
    pytest.importorskip(LIBRARIES[name])
    ops = pytest.importorskip("torchvision.ops")
    found = wanted = right = given = 0
    for scene, explanation in zip(scenes, explained(name, scenes), strict=True):
        hits = ops.box_iou(torch.from_numpy(scene.boxes), explanation.boxes) >= 0.5
        hits &= torch.tensor([[CLASSES[i] == label for label in explanation.labels] for i in scene.class_ids])
        found, wanted = found + int(hits.any(dim=1).sum()), wanted + len(scene.boxes)
        right, given = right + int(hits.any(dim=0).sum()), given + len(explanation)
    assert found / wanted >= 0.75
    assert right / given >= 0.6


@pytest.mark.nightly
def test_the_segmenter_labels_the_pixels(scenes: list[Scene]) -> None:
    pytest.importorskip("transformers")
    objects, right = 0, 0
    for scene, explanation in zip(scenes, explained("scenes-semantic", scenes), strict=True):
        assert explanation.masks is not None
        label_map = torch.zeros(scene.image.shape[:2], dtype=torch.int64)
        for class_id, mask in zip(explanation.class_ids.tolist(), explanation.masks, strict=True):
            label_map[mask] = class_id
        for class_id, pixels in zip(scene.class_ids, torch.from_numpy(scene.masks), strict=True):
            objects, right = objects + int(pixels.sum()), right + int((label_map[pixels] == class_id + 1).sum())
    assert right / objects >= 0.6


def test_labels_are_the_classes(name: str, scenes: list[Scene]) -> None:
    labels = {label for explanation in explained(name, scenes[:2]) for label in explanation.labels}
    assert labels <= {"background", *CLASSES}
    assert labels & set(CLASSES)


def test_loading_uses_neither_pickle_nor_network(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("must not be used to load a demo model")

    for module, attribute in ((torch, "load"), (pickle, "load"), (pickle, "loads"), (socket.socket, "connect")):
        monkeypatch.setattr(module, attribute, refuse)
    model: Any = zoo.load(name)
    network = getattr(model, "model", model) if LIBRARIES[name] == "ultralytics" else model
    stored, loaded = weights(name), network.state_dict()
    assert stored.keys() == loaded.keys()
    assert all(torch.equal(loaded[key], value.to(loaded[key].dtype)) for key, value in stored.items())
    assert {value.dtype for value in network.parameters()} == {torch.float32}
    assert not network.training
    assert Explainer(model).adapter.prepare(np.zeros((480, 640, 3), np.uint8))[1].network in {(256, 320), (128, 160)}


def test_the_default_is_small_accurate_and_describes_itself() -> None:
    description = yaml.safe_load((zoo.FOLDER / "scenes.yaml").read_text(encoding="utf-8"))
    assert tuple(description["names"]) == CLASSES
    assert description["held_out"]["first_seed"] >= HELD_OUT_SEED
    assert description["held_out"]["box_map50"] >= 0.90
    assert description["held_out"]["mask_map50"] >= 0.85
    assert (zoo.FOLDER / "scenes.safetensors").stat().st_size <= 4_000_000


def test_the_demo_models_of_the_scenes_are_small_together() -> None:
    models = ("scenes", "scenes-yolo", "scenes-detr", "scenes-semantic")
    files = [path for model in models for path in zoo.files(model)]
    assert len(files) == 10
    assert {path.suffix for path in files} <= {".yaml", ".safetensors", ".json"}
    assert sum(path.stat().st_size for path in files) <= 13_000_000


def test_a_folder_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a wheel finds the models that it does not ship."""
    for path in zoo.files("scenes-semantic"):
        target = tmp_path / ("mine" + path.suffix if path.suffix == ".yaml" else f"mine/{path.name}")
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(path.read_bytes())
    assert "mine" not in zoo.names()
    with pytest.raises(ModelError, match="no demo model 'mine'"):
        zoo.load("mine")
    monkeypatch.setenv("DETCAM_ZOO", str(tmp_path))
    assert "mine" in zoo.names()
    expected, actual = zoo.load("scenes-semantic").state_dict(), zoo.load("mine").state_dict()
    assert all(torch.equal(actual[name], value) for name, value in expected.items())


def test_without_the_library_the_error_names_the_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real, library = builtins.__import__, LIBRARIES[name]

    def missing(module: str, *args: Any, **kwargs: Any) -> Any:
        if module.split(".")[0] == library:
            raise ImportError(module)
        return real(module, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ImportError, match=rf'pip install "detcam\[{library}\]"'):
        zoo.load(name)
