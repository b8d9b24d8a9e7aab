"""A model whose scores have no gradient says so, and which methods work; an int8 layer beside a skip is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from detcam import Explainer
from detcam.adapters import CallableAdapter
from detcam.errors import LayerError, MethodError, ModelError

PICTURE = np.full((64, 64, 3), 90, np.uint8)


class Net(nn.Module):
    def __init__(self, skip: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.ReLU())
        self.side, self.mix, self.head = nn.Conv2d(3, 2, 8, 8), nn.Linear(4, 4), nn.Linear(4, 2)
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        self.side(x)
        tokens = self.body(x).flatten(2).transpose(1, 2)
        return self.head(tokens + self.mix(tokens) if self.skip else tokens)


def detect(output: Tensor, conf: float) -> list[dict[str, Tensor]]:
    one = {"boxes": torch.tensor([[0.0, 0, 32, 32]]), "class_ids": torch.tensor([0]), "index": torch.tensor([0])}
    return [{**one, "scores": scores.sigmoid().amax()[None]} for scores in output]


def score(output: Tensor, objects: Any, target: str) -> Tensor:
    return torch.cat([output[i, o.index, o.class_ids] for i, o in enumerate(objects)])


def explained(net: nn.Module, forward: Any = lambda m, b: m(b), layer: str = "body", method: str = "odam") -> Any:
    adapter = CallableAdapter(forward, detect, score, layers=[layer])
    return Explainer(net.eval(), method, adapter=adapter, imgsz=64, conf=0.0)(PICTURE)


def under(context: Any) -> Any:
    def forward(module: nn.Module, batch: Tensor) -> Tensor:
        with context():
            return module(batch)

    return forward


@pytest.mark.filterwarnings("error")  # the layers are not to blame
@pytest.mark.parametrize("method", ["odam", "layerig", "shapleycam"])
@pytest.mark.parametrize("forward", [under(torch.no_grad), lambda m, b: m(b).detach()], ids=["no_grad", "detach"])
def test_no_gradient_at_all(forward: Any, method: str) -> None:
    with pytest.raises(MethodError, match=r"no gradient at all.*'rise'"):
        explained(Net(), forward, method=method)


def test_a_layer_beside_the_way_to_the_score_is_another_matter() -> None:
    with pytest.raises(LayerError, match="does not depend on it"):
        explained(Net(), layer="side")


@pytest.mark.filterwarnings("ignore")
def test_int8_layers_end_a_gradient() -> None:
    for part in ({"mix"}, {"head"}):
        net = torch.ao.quantization.quantize_dynamic(Net(skip=True).eval(), part, dtype=torch.qint8)
        with pytest.raises(MethodError, match=f"'{next(iter(part))}' computes in int8.*'rise'"):
            explained(net)
        with pytest.raises(MethodError, match=f"'{next(iter(part))}' computes in int8.*'rise'"):
            explained(net, method="gradient")
        assert len(explained(net, method="rise")) == 1


@pytest.mark.filterwarnings("ignore")
def test_int8_classifiers_say_so() -> None:
    from torchvision.models.quantization import resnet18

    with pytest.raises(ModelError, match="has no parameters, as in int8: give the float model"):
        Explainer(resnet18(weights=None, quantize=True).eval())
