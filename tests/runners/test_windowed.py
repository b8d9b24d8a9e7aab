"""Maps from gradients in windows equal those of a backward per object, which runs where windows are not exact."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from support import NIGHTLY, diagonal, few, random_picture, random_yolo
from torch import nn

from detcam import Explainer, Explanation
from detcam.engine import backward_rules as rules
from detcam.errors import LayerError

TOLERANCE = 1e-5  # of the maximum
OBJECTS = 12 if NIGHTLY else 4  # of each image


def both_ways(model: nn.Module, images: list[np.ndarray], **options: Any) -> list[list[Explanation]]:
    """With gradients in windows, then with a backward per object, as for an adapter that knows no windows."""
    explainer = Explainer(model, **{"method": "odam", **options})
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # windows that differ from autograd's gradients are left with a warning
        windowed = explainer(images)
    return [windowed, full(explainer)(images)]


def full(explainer: Explainer) -> Explainer:
    """The explainer with a backward per object."""
    explainer.adapter.readouts = lambda *_: None  # type: ignore[method-assign]
    return explainer


def assert_same_maps(ways: list[list[Explanation]]) -> None:
    assert len(ways[0][0]) > 0, "the model was made to find objects in the first picture"
    for windowed, full in zip(*ways, strict=True):
        assert len(windowed) == len(full)
        assert windowed.notes == full.notes
        for ours, plain in zip(windowed.maps, full.maps, strict=True):
            assert ours.shape == plain.shape
            assert (ours - plain).abs().max() <= TOLERANCE * plain.abs().max()


@pytest.mark.parametrize(
    ("layers", "target", "method"),
    diagonal(["level", "evidence"], ["class", "prob", "margin", "box", "top"], ["odam", "gradcam", "layercam"]),
)
def test_windows_equal_the_full_backward(layers: str, target: str, method: str, seed: int) -> None:
    """Pictures of different odd sizes in one call; objects wherever the random model finds them.

    Pooled weights are means of gradients of both signs, which cancel: float32 rounds those by more than the tolerance,
    whatever the way, so they are compared in float64.
    """
    pictures = [random_picture(seed, 253, 397), random_picture(seed + 1, 253, 397), random_picture(seed, 61, 320)]
    model = random_yolo("yolov8n.yaml", seed, pictures[0], 320)
    model = model.double() if method == "gradcam" else model
    assert_same_maps(
        both_ways(model, pictures, layers=layers, target=target, method=method, imgsz=320, conf=0.05, max_det=OBJECTS)
    )


LAYERS = (
    ["model.2"], ["model.4"], ["model.9"], ["model.12"], ["model.15"], ["model.18"], ["model.21"],
    ["model.4", "model.9"], ["model.9", "model.15", "model.22.cv3.0.0"],
)  # fmt: skip


@pytest.mark.parametrize("layers", few(LAYERS, ["model.2"], ["model.21"], LAYERS[-1]))
def test_layers_by_name(layers: list[str], seed: int) -> None:
    """Through the backbone, past other layers, several behind one another; levels that a layer does not reach."""
    picture = random_picture(seed, 200, 320)
    model = random_yolo("yolov8n.yaml", seed, picture, 320).double()
    assert_same_maps(both_ways(model, [picture], layers=layers, imgsz=320, max_det=OBJECTS))


@pytest.mark.parametrize(
    ("layers", "config"), diagonal(["level", "evidence"], ["yolo26n-seg.yaml", "yolov8n-seg.yaml"])
)
def test_masks_are_read_at_coefficients_and_prototypes(config: str, layers: str, seed: int) -> None:
    pictures = [random_picture(seed, 200, 320), random_picture(seed + 1, 200, 320)]
    model = random_yolo(config, seed, pictures[0], 320).double()
    assert_same_maps(both_ways(model, pictures, layers=layers, target="mask", imgsz=320, max_det=OBJECTS))


CONFIGS = (
    "yolov3-tiny.yaml", "yolov5n.yaml", "yolov6n.yaml", "yolov8n-seg.yaml", "yolov8n-p2.yaml", "yolov9t.yaml",
    "yolov10n.yaml", "yolo11n.yaml", "yolo12n.yaml", "yolo26n.yaml",
)  # fmt: skip


@pytest.mark.parametrize("layers", ["level", "evidence"])
@pytest.mark.parametrize("config", few(CONFIGS, "yolo12n.yaml", "yolo26n.yaml"))
def test_every_family_of_yolo(config: str, layers: str, seed: int) -> None:
    pictures = [random_picture(seed, 200, 320)]
    model = random_yolo(config, seed, pictures[0], 320)
    assert_same_maps(both_ways(model, pictures, layers=layers, imgsz=320, max_det=OBJECTS))


def test_objects_in_small_chunks_give_the_same(seed: int) -> None:
    picture = random_picture(seed, 253, 397)
    model = random_yolo("yolov8n.yaml", seed, picture, 320)
    model = model.double()
    whole = Explainer(model, imgsz=320, method="gradcam")(picture)
    chunked = Explainer(model, imgsz=320, method="gradcam", memory=1)(picture)
    for a, b in zip(whole.maps, chunked.maps, strict=True):
        assert (a - b).abs().max() <= TOLERANCE * a.abs().max()


def test_a_model_whose_windows_differ_goes_the_full_way(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = random_picture(seed, 253, 397)
    model = random_yolo("yolov8n.yaml", seed, picture, 320)
    plain = full(Explainer(model, "odam", imgsz=320))(picture)
    monkeypatch.setitem(rules.RULES, "SiluBackward0", rules.RULES["CloneBackward0"])
    explainer = Explainer(model, "odam", imgsz=320)
    with pytest.warns(UserWarning, match="gradients in windows differ"):
        first = explainer(picture)
    for explanation in (first, explainer(picture)):  # the second time without a warning
        for a, b in zip(explanation.maps, plain.maps, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("layers", [["model.21"], ["model.9", "model.21"]])
def test_a_layer_that_no_object_of_this_picture_reaches(layers: list[str], seed: int) -> None:
    """Not an error, for objects of other pictures do: maps of zero that say why, or those of the other layer."""
    picture = random_picture(seed, 200, 320)
    model = random_yolo("yolov8n.yaml", seed, picture, 320)
    head: Any = model.model[-1]  # type: ignore[index]
    for branch in head.cv3[1:]:
        branch[-1].bias.data -= 100
    explainer = Explainer(model, "odam", layers, imgsz=320)
    explanation = explainer(picture)
    assert set(explanation.objects.level.tolist()) == {0}
    if len(layers) == 1:
        assert all(note and "no gradient at model.21" in note for note in explanation.notes)
        assert not any(m.any() for m in explanation.maps)
    else:
        assert all(m.any() for m in explanation.maps)


def test_a_layer_that_no_score_depends_on(seed: int) -> None:
    picture = random_picture(seed, 200, 320)
    model = random_yolo("yolov8n.yaml", seed, picture, 320)
    with pytest.raises(LayerError, match=r"model\.22\.cv2\.0\.0"):
        Explainer(model, "odam", ["model.9", "model.22.cv2.0.0"], imgsz=320)(picture)
