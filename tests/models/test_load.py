"""Loading a model from a name or a path; everything else is refused in one line."""

import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import random_picture
from torch import nn

from detcam import Explainer, InputError, zoo
from detcam.errors import ModelError
from detcam.models.load import load_model


def refuse(source: str | Path, expected: str) -> None:
    with pytest.raises(ModelError, match=expected) as caught:
        load_model(source)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, InputError)


def test_paths_that_hold_no_model(tmp_path: Path) -> None:
    text, empty, plain = tmp_path / "text.pt", tmp_path / "empty.pt", tmp_path / "plain.pt"
    text.write_text("not a pickle")
    empty.write_bytes(b"")
    torch.save({"weights": torch.zeros(3)}, plain)
    folder = tmp_path / "folder.pt"
    folder.mkdir()
    refuse(tmp_path / "gone.pt", r"gone\.pt does not exist")
    refuse(text, r"text\.pt cannot be loaded")
    refuse(empty, r"empty\.pt cannot be loaded")
    refuse(plain, r"plain\.pt cannot be loaded")
    refuse(folder, r"is a folder without config\.json")
    refuse(tmp_path / "model.onnx", "not a .pt file")


def test_a_misspelt_demo_model_names_the_nearest() -> None:
    for name in zoo.names():
        refuse(name[:-1], f"did you mean '{name}'")
    refuse("something else entirely", "not a .pt file or demo model")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return open, (str(marker), "w")  # type: ignore[return-value]

    path = tmp_path / "evil.pt"
    torch.save({"model": Evil()}, path)
    refuse(path, r"evil\.pt cannot be loaded")
    bare = tmp_path / "bare.pt"
    bare.write_bytes(pickle.dumps(Evil()))
    refuse(bare, r"bare\.pt cannot be loaded")
    assert not marker.exists()


def test_other_networks_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "linear.pt"
    torch.save({"model": nn.Linear(2, 2)}, path)
    with pytest.raises(ModelError):
        Explainer(path)


@pytest.mark.parametrize("name", zoo.names())
def test_demo_models_by_name(name: str, seed: int) -> None:
    explainer = Explainer(name, conf=0.01)
    assert explainer.settings["model"] == name
    explanation = explainer(random_picture(seed, 100, 140))
    assert explanation.heatmaps.shape == (len(explanation), 100, 140)


def test_real_weights_explain_a_photograph(shared: Path) -> None:
    path = shared / "weights" / "yolov8n-seg.pt"
    explanation = Explainer(path)(sorted((shared / "data" / "coco64" / "images").glob("*.jpg"))[4])
    assert len(explanation) >= 1
    energy = explanation.heatmaps.sum(dim=(1, 2))
    for i, (x1, y1, x2, y2) in enumerate(explanation.boxes.round().int().tolist()):
        inside = explanation.heatmaps[i, max(y1, 0) : y2, max(x1, 0) : x2].sum()
        area = (x2 - x1) * (y2 - y1) / np.prod(explanation.geometry.source)
        assert float(inside / energy[i]) > float(area), "more heat in the box than a flat map has"


@pytest.mark.parametrize("trust", [False, True])
def test_a_file_of_a_repository_s_own_code_sends_nobody_to_an_index(trust: bool, tmp_path: Path) -> None:
    """As YOLOv5's files name `models.yolo.Model`: a package `models` of an index would be another's."""
    module: Any = type(sys)("models")
    module.Model = type("Model", (nn.Conv2d,), {"__module__": "models"})
    sys.modules["models"] = module
    path = tmp_path / "best.pt"
    try:
        torch.save({"model": module.Model(3, 8, 1)}, path)
    finally:
        del sys.modules["models"]
    with pytest.raises(InputError, match=r"a repository's own code \(models.*: load it inside that repository"):
        load_model(path, trust)
