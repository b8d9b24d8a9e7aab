"""Whoever holds the model in a wrapper gets it opened, or is told the attribute that holds it."""

from __future__ import annotations

import re
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from semantic_models import processor_for, random_segmenter
from support import random_picture
from torch import Tensor, nn

from detcam import Explainer
from detcam.adapters import unwrapped
from detcam.errors import ModelError


class Holder(nn.Module):
    """As a Lightning module: its training step runs the model, and it has no forward of its own."""

    def __init__(self, **models: nn.Module) -> None:
        super().__init__()
        for name, model in models.items():
            setattr(self, name, model)


class Normalising(Holder):
    def forward(self, x: Tensor) -> Tensor:
        return self.net((x - 0.5) / 0.2)


class Pipeline:
    """As a pipeline or trainer of transformers."""

    def __init__(self, model: nn.Module, **parts: Any) -> None:
        self.model, self.task = model, "image-segmentation"
        vars(self).update(parts)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return random_segmenter("segformer", 0)


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return random_picture(0, 48, 64)


OPENED: dict[str, Callable[[nn.Module], Any]] = {
    "lightning": lambda m: Holder(model=m, loss=nn.CrossEntropyLoss()),
    "another name": lambda m: Holder(detector=m),
    "nested": lambda m: Holder(wrapped=Holder(net=m)),
    "averaged": torch.optim.swa_utils.AveragedModel,
    "parallel": nn.DataParallel,
    "parallel in lightning": lambda m: Holder(model=nn.DataParallel(m)),
    "pipeline": Pipeline,
    "checkpoint": lambda m: {"epoch": 3, "model": m, "optimizer": {}},
    "checkpoint of a lightning module": lambda m: {"state": Holder(net=m), "epoch": 3},
    "checkpoint with an average": lambda m: {
        "model": Holder(net=random_segmenter("segformer", 1)),
        "ema": Holder(net=m),
    },
    "half checkpoint": lambda m: {"ema": m, "model": None, "train_args": {"imgsz": 64}},
}


@pytest.mark.parametrize("kind", OPENED)
def test_a_wrapper_explains_the_model_inside(kind: str, model: nn.Module, picture: np.ndarray) -> None:
    processor, before = processor_for("segformer"), {name: t.clone() for name, t in model.state_dict().items()}
    own = Explainer(model, processor=processor, conf=0, layers="level")(picture)
    explained = Explainer(OPENED[kind](model), processor=processor, conf=0, layers="level")(picture)
    assert explained.labels == own.labels
    torch.testing.assert_close(explained.scores, own.scores)
    for ours, theirs in zip(explained.maps, own.maps, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", ["image_processor", "processing_class", "processor"])
def test_a_pipeline_brings_its_processor(name: str, model: nn.Module) -> None:
    processor = processor_for("segformer")
    assert Explainer(Pipeline(model, **{name: processor})).adapter.processor is processor  # type: ignore[attr-defined]
    other = processor_for("segformer")
    given = Explainer(Pipeline(model, **{name: processor}), processor=other).adapter
    assert given.processor is other  # type: ignore[attr-defined]


def test_peft_is_opened(model: nn.Module) -> None:
    class Peft(nn.Module):
        def get_base_model(self) -> nn.Module:
            return model

    Peft.__module__ = "peft.peft_model"
    assert unwrapped(Peft()) is model


@pytest.mark.parametrize(
    ("wrap", "words"),
    [
        (lambda m: Normalising(net=m), r"Normalising wraps a model: give model\.net \(Segformer\w+\)"),
        (lambda m: nn.Sequential(m, nn.Sigmoid()), r"give model\.0 \(Segformer"),
        (lambda m: Holder(student=m, teacher=random_segmenter("segformer", 1)), r"model\.student .* or model\.teacher"),
        (
            lambda m: {"student": m, "teacher": random_segmenter("segformer", 1)},
            r"model\['student'\] .* model\['teacher'\]",
        ),
        (lambda m: [m], r"list wraps a model: give model\[0\] \(Segformer"),
        (lambda m: (m, "processor"), r"tuple wraps a model: give model\[0\]"),
        (lambda m: type(m), "is not a network that detcam knows.*: give the model itself"),
        (lambda m: None, "NoneType is not a network"),
        (lambda m: m.state_dict(), "weights is not a network: build the network"),
        (lambda m: {"state_dict": m.state_dict(), "epoch": 3}, "weights is not a network"),
        (lambda m: torch.jit.trace(nn.Conv2d(3, 1, 1), torch.rand(1, 3, 8, 8)), "TorchScript has no layers.*black box"),
        (
            lambda m: types.SimpleNamespace(a=1),
            "SimpleNamespace is not a network that detcam knows, and holds none: give the model itself",
        ),
    ],
    ids=[
        "forward",
        "sequence",
        "two",
        "two in a dict",
        "list",
        "tuple",
        "class",
        "none",
        "weights",
        "checkpoint of weights",
        "torchscript",
        "nothing",
    ],
)
def test_what_is_not_opened_names_the_next_step(wrap: Callable[[nn.Module], Any], words: str, model: nn.Module) -> None:
    with pytest.raises(ModelError) as caught:
        Explainer(wrap(model))
    assert re.search(words, str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_part_of_the_user_s_own_detector_is_not_taken_for_the_model() -> None:
    timm = pytest.importorskip("timm")
    backbone = timm.create_model("resnet10t")
    with pytest.raises(ModelError, match="is not a detector"):
        Explainer(Normalising(net=nn.Conv2d(3, 3, 1), small=backbone, large=nn.Linear(3000, 3000)))
    with pytest.raises(ModelError, match=r"no class logits.*features_only"):
        Explainer(timm.create_model("resnet10t", features_only=True))
