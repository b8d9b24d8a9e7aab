"""Our maps against pytorch-grad-cam's, at feature resolution, after the ReLU and before any normalisation."""

import copy
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import pytorch_grad_cam as peer
import torch
from support import few, random_picture, random_yolo
from torch import Tensor, nn

from detcam import Explainer, Explanation
from detcam.images import read_image
from detcam.methods import METHODS
from detcam.models.load import load_model

TOLERANCE = 1e-4  # of the map's maximum
PEERS = {
    "gradcam": peer.GradCAM,
    "gradcam++": peer.GradCAMPlusPlus,
    "xgradcam": peer.XGradCAM,
    "hirescam": peer.HiResCAM,
    "odam": peer.HiResCAM,
    "layercam": peer.LayerCAM,
    "eigencam": peer.EigenCAM,
    "elementwise": peer.GradCAMElementWise,
    "eigengradcam": peer.EigenGradCAM,
    "kpcacam": peer.KPCA_CAM,
    "fem": peer.FEM,
}
PRECISE = ("kpcacam",)  # the peer's kernel, of values around tanh(1), leaves float32 three digits of what differs
ONE_OF_TWO_SIGNS = ("eigencam", "eigengradcam", "kpcacam")
LAYERS = {"model.4": 0, "model.9": 2, "model.15": 0, "model.18": 1, "model.21": 2}  # layer -> level of the object


class ClassLogits(nn.Module):
    """The model as a classifier of its anchors: [B, 3, H, W] -> logits [B, nc, A]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)[1]["scores"]


def peer_map(method: str, model: nn.Module, layer: str, x: Tensor, class_id: int, anchor: int) -> Tensor:
    """[h, w]: pytorch-grad-cam's map before its ReLU, of one class logit at one anchor, on a copy of the model."""
    wrapped = ClassLogits(copy.deepcopy(model).requires_grad_(True)).eval()
    target_layer = wrapped.model.get_submodule(layer)
    targets: list[Callable[[Tensor], Tensor]] = [lambda logits: logits[class_id, anchor]]
    cam = PEERS[method](model=wrapped, target_layers=[target_layer])
    cam(x, targets)
    seen = cam.activations_and_grads
    grads = seen.gradients[0].numpy() if cam.uses_gradients else None
    raw = cam.get_cam_image(x, target_layer, targets, seen.activations[0].numpy(), grads, eigen_smooth=False)
    return torch.from_numpy(np.float32(raw[0]))


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference as a share of the peer's largest value."""
    assert ours.shape == theirs.shape
    assert float(theirs.abs().max()) > 0, "a blank map proves nothing"
    return float((ours - theirs).abs().max() / theirs.abs().max())


def assert_parity(
    explainer: Explainer, image: np.ndarray, model: nn.Module, explanation: Explanation, i: int, layer: str
) -> None:
    """Object `i`'s map against the peer's at `layer`."""
    method = str(explanation.settings["method"])
    x = explainer.adapter.prepare(image)[0][None]
    ours = explanation.maps[i]
    theirs = peer_map(method, model, layer, x, int(explanation.class_ids[i]), int(explanation.objects.index[i]))
    if method in ONE_OF_TWO_SIGNS:
        assert min(difference(ours, theirs), difference(ours, -theirs)) < TOLERANCE
    elif float(theirs.max()) > 0:
        assert difference(ours.clamp(min=0), theirs.clamp(min=0)) < TOLERANCE
    else:  # blank after the ReLU: what was cut off must agree
        if METHODS[method].object_specific:
            assert "zero map" in (explanation.notes[i] or "")
        assert difference(ours, theirs) < TOLERANCE


def check_layer(model: nn.Module, method: str, layer: str, image: np.ndarray, **options: float) -> None:
    """One named layer, for the best object of the layer's level."""
    explainer = Explainer(model, method=method, layers=[layer], **options)
    explanation = explainer(image)
    i = explanation.objects.level.tolist().index(LAYERS[layer])
    assert_parity(explainer, image, model, explanation, i, layer)


def check_levels(model: nn.Module, method: str, image: np.ndarray, **options: float) -> None:
    """The preset "level": the best object of every level at its own head input."""
    explainer = Explainer(model, method=method, layers="level", **options)
    explanation = explainer(image)
    levels = explanation.objects.level.tolist()
    assert set(levels) == {0, 1, 2}
    for level, layer in enumerate(("model.15", "model.18", "model.21")):
        assert_parity(explainer, image, model, explanation, levels.index(level), layer)


@lru_cache
def random_setting(seed: int, double: bool) -> tuple[nn.Module, np.ndarray]:
    picture = random_picture(seed, 96, 128)
    model = random_yolo("yolov8n.yaml", seed, picture, 128)
    return model.double() if double else model, picture


@lru_cache
def load(weights: Path, method: str) -> nn.Module:
    """In float64 for methods that divide by sums of both signs: in float32 these amplify rounding to 2e-4."""
    model: nn.Module = load_model(weights)
    return model.double() if method in ("gradcam++", "xgradcam") else model


# The seed is fixed: XGrad-CAM divides by channel sums, and where one comes near 0 float32 has no right answer.
@pytest.mark.parametrize("layer", few(LAYERS, "model.15"))
@pytest.mark.parametrize("method", PEERS)
def test_random_weights(method: str, layer: str) -> None:
    model, picture = random_setting(seed=1, double=method in PRECISE)
    check_layer(model, method, layer, picture, imgsz=128)


@pytest.mark.parametrize("method", few(PEERS, "odam"))
def test_random_weights_at_every_level(method: str) -> None:
    model, picture = random_setting(seed=1, double=method in PRECISE)
    check_levels(model, method, picture, imgsz=128)


@pytest.mark.nightly
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("method", PEERS)
def test_real_weights(method: str, layer: str, shared: Path) -> None:
    check_layer(load(shared / "weights" / "yolov8n.pt", method), method, layer, bus(), imgsz=320, conf=0.05)


@pytest.mark.nightly
@pytest.mark.parametrize("method", PEERS)
def test_real_weights_at_every_level(method: str, shared: Path) -> None:
    check_levels(load(shared / "weights" / "yolov8n.pt", method), method, bus(), imgsz=320, conf=0.05)


def bus() -> np.ndarray:
    from ultralytics.utils import ASSETS

    return read_image(ASSETS / "bus.jpg")


def test_eigencam_has_one_sign(detector: nn.Module, picture: np.ndarray) -> None:
    """A principal component has two signs: ours grows with the activations, on every run."""
    acts: list[Tensor] = []
    copied = copy.deepcopy(detector)
    copied.get_submodule("model.9").register_forward_hook(lambda module, args, out: acts.append(out.detach()))
    copied(Explainer(detector, imgsz=160).adapter.prepare(picture)[0][None])
    strength = acts[0][0].abs().sum(dim=0)

    def explain() -> Explanation:
        return Explainer(detector, method="eigencam", layers=["model.9"], imgsz=160)(picture)

    first = explain().maps[0]
    assert float((first * strength).sum()) >= 0
    for _ in range(3):
        torch.testing.assert_close(explain().maps[0], first, rtol=1e-4, atol=1e-5)
