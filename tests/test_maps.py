"""Maps from windows equal those of a full backward, and the full way is taken where windows are not exact."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from support import random_picture, random_yolo
from torch import nn

from detcam import Explainer, Explanation
from detcam.adapters import yolo

TOLERANCE = 1e-5  # of the maximum


def both_ways(model: nn.Module, pictures: list[np.ndarray], **options: object) -> list[list[Explanation]]:
    explainer = Explainer(model, **options)  # type: ignore[arg-type]
    local = explainer(pictures)
    assert explainer._local is not None
    assert explainer._local.exact
    explainer._local = None
    return [local, explainer(pictures)]


def assert_same_maps(ways: list[list[Explanation]]) -> None:
    for local, full in zip(*ways, strict=True):
        assert len(local) == len(full) > 0
        assert local.notes == full.notes
        for ours, plain in zip(local.maps, full.maps, strict=True):
            assert ours.shape == plain.shape
            assert (ours - plain).abs().max() <= TOLERANCE * plain.abs().max()


@pytest.mark.parametrize("layers", ["level", "evidence"])
@pytest.mark.parametrize("target", ["class", "prob", "margin", "box", "top"])
@pytest.mark.parametrize("method", ["odam", "gradcam", "layercam"])
def test_windows_equal_the_full_backward(layers: str, target: str, method: str, seed: int) -> None:
    """Pictures of different odd sizes in one call; objects wherever the random model finds them.

    Pooled weights are means of gradients of both signs, which cancel: float32 rounds those by more than the tolerance,
    whatever the way, so they are compared in float64.
    """
    pictures = [random_picture(seed, 253, 397), random_picture(seed + 1, 253, 397), random_picture(seed, 61, 320)]
    model = random_yolo("yolov8n.yaml", seed, pictures[0], 320)
    model = model.double() if method == "gradcam" else model
    assert_same_maps(
        both_ways(model, pictures, layers=layers, target=target, method=method, imgsz=320, conf=0.05, max_det=12)
    )


@pytest.mark.parametrize("layer", ["model.4", "model.9", "model.12", "model.15", "model.18", "model.21"])
def test_a_single_layer_by_name(layer: str, seed: int) -> None:
    """Other tensors that the score reads run before the layer and stand beside it."""
    picture = random_picture(seed, 200, 320)
    model = random_yolo("yolov8n.yaml", seed, picture, 320).double()
    explainer = Explainer(model, layers=[layer], imgsz=320)
    local = explainer([picture])
    used = explainer._local is not None and explainer._local.exact
    assert used == (layer in ("model.4", "model.9", "model.12", "model.15"))  # what every feature level depends on
    explainer._local = None
    assert_same_maps([local, explainer([picture])])


@pytest.mark.parametrize("layers", ["level", "evidence"])
@pytest.mark.parametrize(
    "config",
    ["yolov3-tiny.yaml", "yolov5n.yaml", "yolov6n.yaml", "yolov8n-seg.yaml", "yolov8n-p2.yaml", "yolov9t.yaml",
     "yolov10n.yaml", "yolo11n.yaml", "yolo12n.yaml", "yolo26n.yaml"],
)  # fmt: skip
def test_every_family_of_yolo(config: str, layers: str, seed: int) -> None:
    pictures = [random_picture(seed, 200, 320)]
    model = random_yolo(config, seed, pictures[0], 320)
    assert_same_maps(both_ways(model, pictures, layers=layers, imgsz=320, max_det=10))


def test_objects_in_small_chunks_give_the_same(seed: int) -> None:
    picture = random_picture(seed, 253, 397)
    model = random_yolo("yolov8n.yaml", seed, picture, 320)
    model = model.double()
    whole = Explainer(model, imgsz=320, method="gradcam")(picture)
    chunked = Explainer(model, imgsz=320, method="gradcam", memory=1)(picture)
    for a, b in zip(whole.maps, chunked.maps, strict=True):
        assert (a - b).abs().max() <= TOLERANCE * a.abs().max()


def test_a_model_whose_crops_differ_goes_the_full_way(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = random_picture(seed, 253, 397)
    model = random_yolo("yolov8n.yaml", seed, picture, 320)
    expected = Explainer(model, imgsz=320)
    expected._local = None
    plain = expected(picture)

    original = yolo.YoloAdapter.local

    def placed(self: yolo.YoloAdapter, names: tuple[str, ...], level: int, target: str) -> yolo.LocalScore | None:
        local = original(self, names, level, target)
        assert local is not None

        def replay(tensors: list[torch.Tensor]) -> torch.Tensor:
            return local.replay([t * (torch.arange(t.shape[3]) + 1.0) for t in tensors])

        return dataclasses.replace(local, replay=replay)

    monkeypatch.setattr(yolo.YoloAdapter, "local", placed)
    explainer = Explainer(model, imgsz=320)
    explanation = explainer(picture)
    assert explainer._local is not None
    assert not explainer._local.exact
    for a, b in zip(explanation.maps, plain.maps, strict=True):
        torch.testing.assert_close(a, b)
