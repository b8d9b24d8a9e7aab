"""The gradient methods against loops written from the papers, against CAM, and on hostile input."""

import math

import numpy as np
import pytest
import torch
from support import random_picture
from sweep_settings import Setting
from torch import Tensor, nn

from detcam import Explainer
from detcam.engine import object_gradients
from detcam.errors import LayerError
from detcam.methods import METHODS, Method, get_method
from detcam.methods.spatial import GCAME

# CAM takes gradients of one kind only, and has its own tests.
GRADIENT_METHODS = [
    name
    for name, method in METHODS.items()
    if issubclass(method, Method) and "gradients" in method.reads and name != "cam"
]

# One channel of four cells: small enough for a pencil.
ACTS = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
GRADS = torch.tensor([[[[1.0, -1.0], [0.0, 2.0]]]])
BY_HAND = {
    "gradcam": 0.5 * ACTS,  # mean of 1, -1, 0, 2
    "finercam": 0.5 * ACTS,  # the same: its scalar is another
    "shapleycam": 0.5 * ACTS,  # the same: its gradients come corrected
    "xgradcam": 0.7 * ACTS,  # (1 - 2 + 0 + 8) / 10
    # a = 1 / (2 + 10) where g = 1, and 4 / (8 + 80) where g = 2: w = 1/12 + 2/22
    "gradcam++": (1 / 12 + 1 / 11) * ACTS,
    "hirescam": torch.tensor([[[[1.0, -2.0], [0.0, 8.0]]]]),
    "odam": torch.tensor([[[[1.0, -2.0], [0.0, 8.0]]]]),
    "layercam": torch.tensor([[[[1.0, 0.0], [0.0, 8.0]]]]),
    "elementwise": torch.tensor([[[[1.0, 0.0], [0.0, 8.0]]]]),
    "eigengradcam": torch.tensor([[[[-0.75, -3.75], [-1.75, 6.25]]]]),  # 1, -2, 0, 8 less their mean
    "ssgradcam": torch.tensor([[[[0.25, 0.5], [0.0, 2.0]]]]),  # |g| / 2 is 1/2, 1/2, 0, 1
    "ssgradcam++": (1 / 12 + 1 / 11) * torch.tensor([[[[0.5, 1.0], [0.0, 4.0]]]]),
    # around the last cell, where |g| is largest, with sigma = 3 log(2) log(16)
    "gcame": 0.5
    * ACTS
    * torch.exp(torch.tensor([[2.0, 1.0], [1.0, 0.0]]) / -2 / (3 * math.log(2) * math.log(16)) ** 2),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_by_hand(name: str) -> None:
    torch.testing.assert_close(get_method(name).maps(ACTS, GRADS), BY_HAND[name][:, 0], rtol=1e-5, atol=1e-6)


def random_sizes() -> tuple[int, int, int, int]:
    """(objects, channels, height, width), all different from one another more often than not."""
    objects, channels, height, width = (int(torch.randint(1, high, ())) for high in (4, 6, 6, 8))
    return objects, channels, height, width


class Pooling(nn.Module):
    """Convolution, ReLU, global average pooling and one linear layer: the network that CAM was written for."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), nn.ReLU())
        self.classify = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        acts = self.features(x)
        return acts, self.classify(acts.mean(dim=(2, 3)))


@pytest.mark.parametrize("name", ["cam", "gradcam", "hirescam", "odam"])
def test_equals_cam_where_cam_exists(name: str, seed: int) -> None:
    """Zhou 2016: CAM = sum_k w_k A_k. The gradient of the logit is w_k / (h * w) in every cell."""
    classes, channels, height, width = 5, *random_sizes()[1:]
    network = Pooling(channels, classes)
    acts, logits = network(torch.randn(1, 3, height, width))
    maps = get_method(name).maps(acts.detach().expand(classes, -1, -1, -1), gradients_of(logits[0], acts))
    cam = torch.einsum("nc,chw->nhw", network.classify.weight, acts[0]).detach()
    cells = 1 if name == "cam" else height * width
    torch.testing.assert_close(maps * cells, cam, rtol=1e-4, atol=1e-5)


def test_cam_says_where_it_does_not_exist(seed: int) -> None:
    acts = torch.randn(2, 3, 4, 5)
    with pytest.raises(LayerError, match="no global average pooling and linear layer"):
        get_method("cam").maps(acts, torch.randn_like(acts))
    assert not get_method("cam").maps(acts, torch.zeros_like(acts)).any()
    assert get_method("cam").maps(acts[:0], acts[:0]).shape == (0, 4, 5)


@pytest.mark.parametrize("shape", [(3, 6, 7), (40, 4, 5), (12, 3, 4)])
def test_eigengradcam_equals_svd(shape: tuple[int, ...], seed: int) -> None:
    acts, grads = torch.randn(2, *shape), torch.randn(2, *shape)
    acts[:, 0] *= 10  # one direction that leads
    for ours, a, g in zip(get_method("eigengradcam").maps(acts, grads).double(), acts, grads, strict=True):
        products = (a.double() * g.double()).flatten(1).T.numpy()
        centred = products - products.mean(axis=0)
        expected = torch.from_numpy(centred @ np.linalg.svd(centred, full_matrices=False)[2][0]).view(shape[1:])
        sign = 1 if float((expected * (a * g).sum(dim=0)).sum()) > 0 else -1
        torch.testing.assert_close(ours, sign * expected, rtol=1e-4, atol=1e-4)


def test_gcame_does_not_swap_rows_and_columns() -> None:
    """One cell of a map that is wider than high: as far right as rows do not reach."""
    acts, grads = torch.ones(1, 2, 5, 30), torch.zeros(1, 2, 5, 30)
    grads[0, :, 1, 24] = 15.0  # a weight of 0.1
    found = get_method("gcame").maps(acts, grads)[0]
    assert divmod(int(found.argmax()), 30) == (1, 24)
    torch.testing.assert_close(found[1, 23], found[1, 25])
    torch.testing.assert_close(found[0, 24], found[2, 24])
    wider = GCAME(stride=32.0).maps(acts, grads)[0]
    assert wider[1, 10] > found[1, 10]


@pytest.mark.parametrize("name", ["ssgradcam", "gcame", "elementwise"])
def test_two_objects_of_one_class_keep_their_own_places(name: str, seed: int) -> None:
    """The same gradient at two places of one picture, where Grad-CAM's maps are equal."""
    acts = torch.rand(1, 8, 20, 20).expand(2, -1, -1, -1) + 0.5
    patch, grads = torch.rand(8, 3, 3) + 0.5, torch.zeros(2, 8, 20, 20)  # of one sign: no channel cancels another
    grads[0, :, 2:5, 3:6] = patch
    grads[1, :, 14:17, 12:15] = patch
    pooled_maps = get_method("gradcam").maps(acts, grads)
    torch.testing.assert_close(pooled_maps[0], pooled_maps[1])
    first, second = get_method(name).maps(acts, grads)
    assert not torch.allclose(first, second)
    assert first[3, 4] / first.abs().max() > second[3, 4] / second.abs().max()


def gradients_of(scalars: Tensor, acts: Tensor) -> Tensor:
    """[N, C, h, w]: the gradients of N scalars of one picture, through the engine."""
    rounds = object_gradients(scalars, torch.zeros(len(scalars), dtype=torch.long), [acts])
    found = {int(objects): gradients[0] for objects, gradients in rounds}
    return torch.cat([found[i] for i in range(len(scalars))])


@pytest.mark.parametrize("name", GRADIENT_METHODS)
def test_zero_gradients_give_zero_maps(name: str, seed: int) -> None:
    acts = torch.randn(random_sizes())
    assert not get_method(name).maps(acts, torch.zeros_like(acts)).any()


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.elementwise])
def test_cellwise_maps_follow_from_each_cell_alone(name: str, seed: int) -> None:
    acts, grads = torch.randn(2, 4, 6, 7), torch.randn(2, 4, 6, 7)
    grads[:, :, 1, 3] = 0
    whole = get_method(name).maps(acts, grads)
    crop = (..., slice(1, 4), slice(2, 6))
    torch.testing.assert_close(get_method(name).maps(acts[crop], grads[crop]), whole[crop])
    assert not whole[:, 1, 3].any()


@pytest.mark.parametrize("name", GRADIENT_METHODS)
def test_objects_do_not_mix(name: str, seed: int) -> None:
    """The map of an object is the same alone and among others."""
    acts, grads = torch.rand(3, 4, 5, 6) + 0.1, torch.randn(3, 4, 5, 6)
    together = get_method(name).maps(acts, grads)
    alone = torch.cat([get_method(name).maps(acts[i : i + 1], grads[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone)
    assert get_method(name).maps(acts[:0], grads[:0]).shape == (0, 5, 6)


HOSTILE = {
    "silent channels": lambda a: torch.zeros_like(a),
    "sums of zero": lambda a: torch.cat([a, -a], dim=2),
    "tiny": lambda a: a * 1e-30,
    "subnormal": lambda a: a * 1e-42,
    "huge": lambda a: a * 1e10,
    "negative": lambda a: -a.abs(),
    "one cell": lambda a: a[:, :, :1, :1],
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("name", GRADIENT_METHODS)
def test_finite_everywhere(name: str, kind: str, seed: int) -> None:
    acts = HOSTILE[kind](torch.randn(2, 3, 4, 5))
    for scale in (1.0, 1e-30, 1e6):
        grads = scale * torch.randn_like(acts)
        maps = get_method(name).maps(acts, grads)
        assert maps.isfinite().all(), f"{kind} activations, gradients times {scale}"


def test_cam_says_that_a_detector_has_no_such_layer(setting: Setting) -> None:
    with pytest.raises(LayerError, match="no global average pooling and linear layer follow"):
        setting.explain("cam", layers="level")


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
