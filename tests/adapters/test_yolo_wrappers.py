"""Trainers that hold a model, and names that do not cover its classes."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support import predict
from torch import nn

from detcam import Explainer
from detcam.errors import ModelError

trainers = pytest.importorskip("ultralytics.engine.trainer")


def trainer(model: Any, ema: Any = None) -> Any:
    """An Ultralytics trainer with these attributes; its constructor would read a data set."""
    made = trainers.BaseTrainer.__new__(trainers.BaseTrainer)
    vars(made).update(model=model, ema=ema, args=SimpleNamespace(imgsz=160))
    return made


def test_a_trainer_is_explained_as_its_model(detector: nn.Module, picture: np.ndarray) -> None:
    other = nn.Identity()  # not explained while there is an average of the weights
    averaged = SimpleNamespace(ema=detector)
    given = {"imgsz": 160, "layers": "level", "method": "odam"}
    expected = Explainer(detector, **given)(picture)
    assert len(expected) > 0
    for made in (trainer(detector), trainer(nn.DataParallel(detector)), trainer(other, averaged)):
        e = Explainer(made, **given)(picture)
        assert torch.equal(e.boxes, expected.boxes)
        assert all(torch.equal(a, b) for a, b in zip(e.maps, expected.maps, strict=True))


@pytest.mark.parametrize("name", ["yolov8n.pt", "yolo11n-seg.yaml"])
def test_a_trainer_that_has_not_begun_is_no_exported_model(name: str) -> None:
    with pytest.raises(ModelError) as caught:
        Explainer(trainer(name))
    assert str(caught.value) == f"BaseTrainer has not loaded {name} yet: give YOLO({name!r})"


@pytest.mark.parametrize("names", [{"a": "car", "b": "bus"}, {0: "car"}, {"0": "car"}, ["car"], {}, None])
def test_classes_without_a_name_are_numbered(names: Any, detector: nn.Module, picture: np.ndarray) -> None:
    result = predict(detector, picture, imgsz=160)
    detector.names = names
    e = Explainer(detector, imgsz=160, layers="level", method="odam")(picture)
    first = "car" if names and "a" not in names else "class 0"
    assert e.labels == [f"class {i}" if i else first for i in result.boxes.cls.long().tolist()]
