"""Loading a model from a name or a path; everything else is refused in one line."""

import pickle
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from support import random_picture
from torch import nn

from detcam import Explainer, InputError, zoo
from detcam.errors import ModelError
from detcam.models.checkpoint import SOURCE
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
    for suffix in (".onnx", ".engine", ".torchscript"):
        refuse(tmp_path / f"model{suffix}", "exported network.*black box: CallableAdapter")


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


@pytest.mark.parametrize("place", ["ultralytics.nn.modules.block", "ultralytics.nn.extra", "someones.layers"])
def test_code_of_a_fork_or_package_is_asked_for_instead_of_another_copy(place: str, tmp_path: Path) -> None:
    pytest.importorskip("ultralytics.nn.tasks")
    layer = type("EditedLayer", (nn.Module,), {"__module__": place})
    packages = [place[:i] for i, letter in enumerate(place) if letter == "."] + [place]
    absent = [name for name in packages if name not in sys.modules]
    path = tmp_path / "edited.pt"
    with pytest.MonkeyPatch.context() as patch:
        for name in absent:
            patch.setitem(sys.modules, name, ModuleType(name))
        patch.setattr(sys.modules[place], "EditedLayer", layer, raising=False)
        torch.save({"model": layer()}, path)
    refuse(path, rf"holds {place}\.EditedLayer.* --trust-checkpoint")
    with pytest.raises(ModelError) as caught:
        load_model(path, trust_checkpoint=True)
    text = str(caught.value)
    assert "needs code that is not here" in text
    assert text.endswith(SOURCE)
    assert "complete copy" not in text
    assert "\n" not in text


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
