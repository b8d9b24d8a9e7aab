"""What every method that reads activations or gradients keeps: a map for each object, odd pictures, batches, notes.

Those that only watch scores have theirs in `test_sweep_methods.py`.
"""

from typing import Any

import numpy as np
import pytest
import torch
from support import fingerprint, random_picture
from sweep_settings import FEW, SIZE, Setting
from torch import Tensor, nn

from detcam import Explainer, Explanation
from detcam.errors import LayerError
from detcam.methods import METHODS, AnyMethod, Method, get_method

OFFERED = [
    name
    for name, method in METHODS.items()
    if name not in ("cam", "relevance")  # no detector has CAM's layers, no YOLO has attention of queries
    and (issubclass(method, Method) or "gradients" in method.reads)
]
OWN = [name for name in OFFERED if METHODS[name].object_specific]


def quick(name: str) -> AnyMethod:
    return FEW[name] if name in FEW else get_method(name)


def where(name: str) -> str:
    return "auto" if name == "fused" else "level"  # which names its own layers


def explain(setting: Setting, name: str, picture: Any, found: int = 2) -> Any:
    return Explainer(setting.model, quick(name), where(name), imgsz=SIZE, max_det=found, conf=0.0, iou=1.0)(picture)


@pytest.mark.parametrize("name", OWN)
def test_twenty_objects_have_twenty_maps(name: str, setting: Setting) -> None:
    explanation = explain(setting, name, setting.picture, found=20)
    assert len(explanation) == 20
    some = [one for one in explanation.maps if one.any()]  # a product may be zero at every cell, and says so
    assert len({one.numpy().tobytes() for one in some}) == len(some) > 15
    assert not any("the same for every object" in (note or "") for note in explanation.notes)


@pytest.mark.parametrize("found", [1, 10])
@pytest.mark.parametrize("name", [name for name in OFFERED if issubclass(METHODS[name], Method)])
def test_one_forward_for_any_number_of_objects(name: str, found: int, setting: Setting) -> None:
    assert METHODS[name].passes.startswith("1 F")
    runs: list[int] = []
    setting.model.get_submodule("model.0.conv").register_forward_pre_hook(lambda module, args: runs.append(1))
    before = fingerprint(setting.model)
    assert len(explain(setting, name, setting.picture, found)) == found
    assert len(runs) == 1
    assert fingerprint(setting.model) == before


@pytest.mark.parametrize("found", [1, 10])
@pytest.mark.parametrize("layers", [["model.15"], ["model.12", "model.15"]])
def test_backwards_of_shapleycam_are_those_declared(layers: list[str], found: int, setting: Setting) -> None:
    """Through the head, for each object: one, and one more for each layer, through the first."""
    seen: list[int] = []

    def watch(module: nn.Module, args: Any, output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(lambda gradient: seen.append(1))

    setting.model.get_submodule("model.22.cv3.0.0").register_forward_hook(watch)
    assert len(setting.explain("shapleycam", layers=layers, conf=0.0, iou=1.0, max_det=found)) == found
    assert len(seen) == found * (1 + len(layers))


def assert_sound(explanation: Explanation) -> None:
    assert len(explanation) == 2
    for raw, heat, note in zip(explanation.maps, explanation.heatmaps, explanation.notes, strict=True):
        assert raw.isfinite().all()
        assert heat.isfinite().all()
        assert 0 <= float(heat.min()) <= float(heat.max()) <= 1
        assert (raw > 0).any() or note


@pytest.mark.parametrize("name", OFFERED)
def test_a_black_picture(name: str, setting: Setting) -> None:
    assert_sound(explain(setting, name, np.zeros((64, SIZE, 3), np.uint8)))


@pytest.mark.parametrize("name", OFFERED)
def test_a_picture_of_one_cell(name: str, setting: Setting) -> None:
    """32 x 32 pixels: one cell at the coarsest level."""
    explanation = Explainer(setting.model, quick(name), where(name), imgsz=32, max_det=2, conf=0.0, iou=1.0)(
        setting.picture[:32, :32]
    )
    assert_sound(explanation)


@pytest.mark.parametrize("name", [name for name in OFFERED if issubclass(METHODS[name], Method)])
def test_a_batch_gives_what_single_pictures_give(name: str, exact: Setting) -> None:
    pictures = [exact.picture, exact.picture[:, ::-1]]
    for picture, together in zip(pictures, explain(exact, name, pictures), strict=True):
        alone = explain(exact, name, picture)
        for one, other in zip(alone.maps, together.maps, strict=True):
            torch.testing.assert_close(other, one, rtol=0, atol=1e-4 * float(one.abs().max()))


def test_cam_says_that_a_detector_has_no_such_layer(setting: Setting) -> None:
    with pytest.raises(LayerError, match="no global average pooling and linear layer follow"):
        explain(setting, "cam", setting.picture)


def test_cam_of_a_classifier_is_its_linear_layers(seed: int) -> None:
    """ResNet: global average pooling and one linear layer follow its last stage, and no other."""
    torchvision = pytest.importorskip("torchvision")
    network = torchvision.models.resnet18(num_classes=4).eval()
    acts: list[Tensor] = []
    picture = random_picture(seed, 96, 96)
    handle = network.layer4.register_forward_hook(lambda module, args, out: acts.append(out.detach().clone()[0]))
    explanation = Explainer(network, "cam", layers=["layer4"], conf=0.0)(picture)  # the user's own hooks run along
    handle.remove()
    assert len(explanation) >= 1
    for class_id, ours in zip(explanation.class_ids.tolist(), explanation.maps, strict=True):
        truth = torch.einsum("c,chw->hw", network.fc.weight[class_id], acts[-1]).detach()
        torch.testing.assert_close(ours, truth, rtol=1e-3, atol=1e-4 * float(truth.abs().max()))
    with pytest.raises(LayerError, match="no global average pooling"):
        Explainer(network, "cam", layers=["layer3"], conf=0.0)(picture)


@pytest.mark.parametrize("name", ["shapleycam", "gcame", "kpcacam", "gradient", "fullgrad"])
def test_no_objects_give_no_maps(name: str, setting: Setting) -> None:
    explanation = Explainer(setting.model, quick(name), imgsz=SIZE, conf=1.0)(setting.picture)
    assert len(explanation) == 0
    assert explanation.heatmaps.shape == (0, 64, SIZE)
