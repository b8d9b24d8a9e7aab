"""The stem is the first convolution's block, whatever the architecture calls it, and all evidence passes through it."""

from __future__ import annotations

import warnings

import pytest
import torch
from families import CASES
from family_case import FamilyCase
from torch import Tensor, nn
from torch.nn.functional import relu

from detcam.adapters.shared.stem import find_stem
from detcam.errors import LayerError

LONG = ("torchvision-ssd300_vgg16",)  # a stem of stride 1 and 64 channels
DEFAULT = ("yolov8n", "torchvision-faster", "transformers-rt_detr", "semantic-segformer", "RFDETRNano", "timm-resnet18")


def conv(*, stride: int = 2) -> nn.Conv2d:
    return nn.Conv2d(3, 3, 3, stride, padding=1)


class Network(nn.Module):
    """Children by name, and a function of them and the image."""

    def __init__(self, run: object, **children: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)  # type: ignore[operator,no-any-return]


def twice(net: nn.Module, x: Tensor) -> Tensor:
    return net.act(net.last(net.act(net.norm(net.conv(x)))))


def block() -> nn.Sequential:
    return nn.Sequential(conv(), nn.BatchNorm2d(3), nn.SiLU(inplace=True))


@pytest.mark.parametrize(
    ("network", "stem"),
    [
        (nn.Sequential(block(), block()), "0"),
        (nn.Sequential(conv(), nn.ReLU(), nn.MaxPool2d(2), conv()), "1"),
        (Network(twice, conv=conv(), norm=nn.BatchNorm2d(3), act=nn.ReLU(), last=conv()), "norm"),
        (Network(lambda n, x: n.last(relu(n.conv(x))), conv=conv(), last=conv()), "conv"),
        # what reads the stem in a block of its own is a branch
        (Network(lambda n, x: n.stem(x) + n.mixer(n.stem(x)), stem=conv(), mixer=nn.Sequential(nn.ReLU())), "stem"),
        (nn.Sequential(nn.BatchNorm2d(3), conv(stride=1), nn.GroupNorm(1, 3)), "2"),
    ],
    ids=["block", "relu", "relu that runs twice", "function", "branch", "norm before"],
)
def test_the_first_convolution_with_norm_and_activation(network: nn.Module, stem: str) -> None:
    pixels = torch.randn(1, 3, 16, 16)
    assert find_stem(network.eval(), lambda: network(pixels)) == stem
    assert not any(module._forward_hooks for module in network.modules())


def test_without_a_convolution_there_is_no_stem() -> None:
    network = nn.Linear(3, 3)
    with pytest.raises(LayerError, match="no convolution runs in Linear"):
        find_stem(network, lambda: network(torch.randn(1, 3)))


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.id, marks=[] if case.id in DEFAULT else pytest.mark.nightly)
        for case in CASES
        if case.id not in LONG
    ],
)
def test_all_evidence_of_every_family_passes_through(case: FamilyCase) -> None:
    """With the stem's output held, another image before it changes no score: the runner would warn."""
    explainer = case.explainer(method="layerig", conf=0.0, max_det=2)
    assert len(explainer.plan.names) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", message=".*pretrain_weights.*|.*windows differ.*")
        explanation = explainer(case.image(), **case.question(case.image()))
    assert len(explanation) >= 1
    assert any(bool(raw.any()) for raw in explanation.maps)
