"""The gradients of N scalars from one forward, against plain autograd and finite differences."""

import pytest
import torch
from torch import Tensor, nn

from detcam.engine import Capture, object_gradients, shadow


class Grid(nn.Module):
    """One score for each cell of a 2-D map: like a detector's head, each picture on its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.SiLU())
        self.second = nn.Conv2d(4, 5, 3, stride=2)
        self.score = nn.Conv2d(5, 1, 3, padding=1)
        self.runs = 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        return self.score(torch.tanh(self.second(self.first(x)))).flatten(1)  # [B, cells]


def capture(model: nn.Module, batch: Tensor, cut_all: bool = False) -> tuple[Tensor, list[Tensor]]:
    named = {"first": model.first, "second": model.second}
    with Capture(named, cut_all) as captured:
        output = model(batch)
    return output, [c.tensor for c in captured.captured]


@pytest.mark.parametrize("images", [[0], [0, 0, 0], [1, 0, 1, 1], [2, 2, 0, 1, 0, 2], []])
def test_each_object_gets_its_own_gradient_from_one_forward(images: list[int], seed: int) -> None:
    model = shadow(Grid())
    output, tensors = capture(model, torch.randn(3, 3, 9, 8))
    index = torch.tensor(images, dtype=torch.int64)
    cells = torch.randint(output.shape[1], (len(images),))
    seen: list[int] = []
    for objects, gradients in object_gradients(output[index, cells], index, tensors):
        assert len(index[objects].unique()) == len(objects), "at most one object of each picture in a backward"
        seen += objects.tolist()
        for place, gradient in enumerate(gradients):
            assert gradient is not None
            for i, g in zip(objects.tolist(), gradient, strict=True):
                (alone,) = torch.autograd.grad(output[index[i], cells[i]], tensors[place], retain_graph=True)
                torch.testing.assert_close(g, alone[index[i]])
    assert sorted(seen) == list(range(len(images)))
    assert model.runs == 1


def test_agrees_with_finite_differences(seed: int) -> None:
    model = shadow(Grid().double())
    output, tensors = capture(model, torch.randn(1, 3, 7, 7, dtype=torch.float64))
    cells = torch.tensor([0, 4, 8])
    index = torch.zeros(3, dtype=torch.int64)

    def score(first: Tensor, cell: int) -> Tensor:
        return model.score(torch.tanh(model.second(first))).flatten()[cell]

    for objects, (gradient, _) in object_gradients(output[0, cells], index, tensors):
        (i,) = objects.tolist()
        for _ in range(3):
            direction = torch.randn_like(tensors[0])
            step = 1e-6 * direction
            with torch.no_grad():
                slope = (score(tensors[0] + step, cells[i]) - score(tensors[0] - step, cells[i])) / 2e-6
            assert slope.item() == pytest.approx((gradient * direction[0]).sum().item(), rel=1e-5, abs=1e-9)


def test_a_tensor_that_no_scalar_depends_on_gives_none(seed: int) -> None:
    a, b = torch.randn(1, 2, 3, 3, requires_grad=True), torch.randn(1, 2, 3, 3, requires_grad=True)
    ((_, (at_a, at_b)),) = object_gradients((a * 2).sum()[None], torch.tensor([0]), [a, b])
    assert torch.equal(at_a, torch.full_like(a, 2.0))
    assert at_b is None


def test_scalars_without_a_graph_give_none() -> None:
    tensor = torch.randn(1, 2, 3, 3, requires_grad=True)
    rounds = list(object_gradients(torch.ones(2), torch.tensor([0, 0]), [tensor]))
    assert [gradients for _, gradients in rounds] == [[None], [None]]
