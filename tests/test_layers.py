"""The listed layers have the shapes that hooks see, and the share of objects that plain backwards find."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from support import fingerprint, random_picture, random_yolo
from torch import Tensor, nn

from detcam import Explainer
from detcam.errors import ImageError
from detcam.layers import candidate_layers


def plain_shares(model: nn.Module, explainer: Explainer, picture: np.ndarray, names: list[str]) -> dict[str, float]:
    """For each module the share of the explained objects with a gradient there, with no code of detcam's engine."""
    explanation = explainer(picture)
    twin: Any = copy.deepcopy(model).eval()
    for module in twin.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
    seen: dict[str, Tensor] = {}
    for name in names:
        twin.get_submodule(name).register_forward_hook(lambda m, a, out, n=name: seen.update({n: out}))
    pixels = explainer.adapter.prepare(picture)[0][None].requires_grad_()
    _, predictions = twin(pixels)
    logits = predictions.get("one2many", predictions)["scores"][0]
    flags: dict[str, list[bool]] = {name: [] for name in names}
    objects = explanation.objects
    for index, number in zip(objects.index.tolist(), objects.class_ids.tolist(), strict=True):
        outputs = [seen[name] for name in names]
        found = torch.autograd.grad(logits[number, index], outputs, retain_graph=True, allow_unused=True)
        for name, gradient in zip(names, found, strict=True):
            flags[name].append(gradient is not None and bool(gradient.any()))
    return {name: sum(values) / len(values) for name, values in flags.items()}


@pytest.mark.parametrize("config", ["yolov8n.yaml", "yolo26n.yaml"])
def test_shapes_strides_and_shares(config: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detcam.layers.OBJECTS", 300)  # all of them, so that every level has some
    picture = random_picture(seed, 120, 200)
    model = random_yolo(config, seed, picture, 160)
    explainer = Explainer(model, imgsz=160)
    before = fingerprint(model)
    rows = candidate_layers(explainer, picture)
    assert fingerprint(model) == before
    shapes: dict[str, tuple[int, ...]] = {}
    twin = copy.deepcopy(model)
    for name, module in twin.named_modules():
        module.register_forward_hook(
            lambda m, a, out, n=name: shapes.update({n: tuple(out.shape)} if isinstance(out, Tensor) else {})
        )
    pixels = explainer.adapter.prepare(picture)[0][None]
    with torch.no_grad():
        twin(pixels)
    head = explainer.adapter.layers("level").names
    assert [row.name for row in rows] == [f"model.{i}" for i in range(int(head[-1].split(".")[1]) + 1)]
    for row in rows:
        assert (1, row.channels, row.height, row.width) == shapes[row.name]
        assert row.stride * row.height == pixels.shape[2]
        assert row.output == ""
        for preset in ("level", "evidence"):
            assert (preset in row.presets) == (row.name in explainer.adapter.layers(preset).names)
    expected = plain_shares(model, explainer, picture, [row.name for row in rows])
    assert {row.name: row.gradient for row in rows} == pytest.approx(expected)
    assert {0 < row.gradient < 1 for row in rows if row.gradient is not None} == {True, False}, "some levels, not all"


def test_a_picture_without_objects_follows_what_scores_best(detector: nn.Module, picture: np.ndarray) -> None:
    rows = candidate_layers(Explainer(detector, imgsz=96, conf=1.0), picture)
    assert next(row for row in rows if row.name == "model.0").gradient == 1.0


def test_the_default_picture_is_a_scene_and_others_are_read(detector: nn.Module) -> None:
    assert len(candidate_layers(Explainer(detector, imgsz=96))) > 10
    with pytest.raises(ImageError):
        candidate_layers(Explainer(detector, imgsz=96), "no such picture.jpg")


def test_caller_in_inference_mode(detector: nn.Module, picture: np.ndarray) -> None:
    explainer = Explainer(detector, imgsz=96)
    expected = candidate_layers(explainer, picture)
    with torch.inference_mode():
        assert candidate_layers(explainer, picture) == expected
