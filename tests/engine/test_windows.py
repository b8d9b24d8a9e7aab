"""Windows: how far scores see, and gradients from crops that equal those of whole maps."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from detcam.engine import measure_reach, window_gradients, windows_agree


def conv(channels: int, out: int, kernel: int = 3, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    padding = dilation * (kernel // 2)
    layer = nn.Conv2d(channels, out, kernel, stride, padding, dilation)
    return nn.Sequential(layer, nn.BatchNorm2d(out), nn.SiLU()).eval()


class Neck(nn.Module):
    """Three tensors of strides 8, 16 and 32 in; scores at one stride out, by an up path and a down path."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.up16, self.up8 = conv(5 + 4, 6), conv(6 + 3, 6)
        self.down16, self.out16 = conv(6, 6, stride=2), conv(12, 6)
        self.down32, self.out32 = conv(6, 6, stride=2), conv(11, 6)
        self.head = nn.Sequential(conv(6, 6), nn.Conv2d(6, 2, 1))

    def forward(self, tensors: list[Tensor]) -> Tensor:
        p3, p4, p5 = tensors
        m16 = self.up16(torch.cat([interpolate(p5, scale_factor=2), p4], 1))
        n8 = self.up8(torch.cat([interpolate(m16, scale_factor=2), p3], 1))
        if self.stride == 8:
            return self.head(n8)
        n16 = self.out16(torch.cat([self.down16(n8), m16], 1))
        return self.head(n16 if self.stride == 16 else self.out32(torch.cat([self.down32(n16), p5], 1)))


class Attention(nn.Module):
    def forward(self, tensors: list[Tensor]) -> Tensor:
        flat = tensors[0].flatten(2)
        weights = (flat.transpose(1, 2) @ flat).softmax(dim=-1)
        return (flat @ weights).view_as(tensors[0])


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (conv(4, 2, 1), 0),
        (conv(4, 2, 3), 1),
        (nn.Sequential(conv(4, 4), conv(4, 4), nn.Conv2d(4, 2, 1)), 2),  # the class branch of YOLOv8
        (conv(4, 2, 3, dilation=4), 4),
        (nn.MaxPool2d(5, 1, 2), 2),
        (nn.Sequential(nn.ReLU(), conv(4, 2, 7)), 3),
    ],
    ids=["1x1", "3x3", "3x3 3x3 1x1", "dilated", "max-pool", "relu 7x7"],
)
def test_reach_is_that_of_the_kernels(module: nn.Module, expected: int, seed: int) -> None:
    reach = measure_reach(lambda tensors: module(tensors[0]), [torch.randn(1, 4, 9, 9)], [8], 8)
    assert reach is not None
    assert reach.before == reach.after == (expected * 8, expected * 8)


def test_reach_differs_per_axis_and_side() -> None:
    class Shifted(nn.Module):
        def forward(self, tensors: list[Tensor]) -> Tensor:
            padded = nn.functional.pad(tensors[0], (3, 0, 0, 1))  # reads three cells to the left, one below
            return padded[:, :, 1:, :-3] + tensors[0]

    reach = measure_reach(Shifted(), [torch.randn(1, 2, 9, 9)], [4], 4)
    assert reach is not None
    assert reach.before == (0, 12)
    assert reach.after == (4, 0)


@pytest.mark.parametrize(
    "module",
    [Attention(), nn.Sequential(nn.Identity())],
    ids=["attention", "global pooling"],
)
def test_what_looks_everywhere_has_no_reach(module: nn.Module) -> None:
    def replay(tensors: list[Tensor]) -> Tensor:
        if isinstance(module, Attention):
            return module(tensors)
        return tensors[0] * tensors[0].mean(dim=(2, 3), keepdim=True)

    assert measure_reach(replay, [torch.randn(1, 4, 9, 9)], [16], 16) is None


def direct(
    replay: Callable[[list[Tensor]], Tensor], tensors: list[Tensor], image: int, cell: list[int]
) -> list[Tensor]:
    """The gradient of one object's first value by plain autograd on the whole maps."""
    leaves = [t[image : image + 1].clone().requires_grad_() for t in tensors]
    grads = torch.autograd.grad(replay(leaves)[0, 0, cell[0], cell[1]], leaves, allow_unused=True)
    return [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(grads, leaves, strict=True)]


@pytest.mark.parametrize("memory", [1, 2**30], ids=["one at a time", "all at once"])
@pytest.mark.parametrize("stride", [8, 16, 32])
@pytest.mark.parametrize("blocks", [(7, 12), (3, 17), (1, 1), (13, 13)])
def test_window_gradients_are_those_of_whole_maps(blocks: tuple[int, int], stride: int, memory: int, seed: int) -> None:
    """Random objects, and those at every corner, on two pictures of odd sizes."""
    strides = [8, 16, 32]
    neck = Neck(stride).double().eval()
    tensors = [
        torch.randn(2, channels, blocks[0] * 32 // s, blocks[1] * 32 // s).double()
        for channels, s in zip((3, 4, 5), strides, strict=True)
    ]
    h, w = blocks[0] * 32 // stride, blocks[1] * 32 // stride
    corners = torch.tensor([[0, 0], [0, w - 1], [h - 1, 0], [h - 1, w - 1]])
    cells = torch.cat([corners, torch.stack([torch.randint(h, (9,)), torch.randint(w, (9,))], dim=1)])
    images = torch.randint(2, (len(cells),))
    reach = measure_reach(neck, tensors, strides, stride)
    assert reach is not None

    seen = []
    for part in window_gradients(neck, lambda values, _: values[:, :1], tensors, strides, reach, images, cells, memory):
        for row, position in enumerate(part.objects.tolist()):
            seen.append(position)
            whole = direct(neck, tensors, int(images[position]), cells[position].tolist())
            for expected, grads, acts, corner, tensor in zip(
                whole, part.grads, part.acts, part.corners, tensors, strict=True
            ):
                y, x = int(corner[0][row]), int(corner[1][row])
                kh, kw = grads.shape[2:]
                pasted = torch.zeros_like(expected[0])
                pasted[:, y : y + kh, x : x + kw] = grads[row]
                torch.testing.assert_close(pasted, expected[0], rtol=1e-9, atol=1e-12)
                assert torch.equal(acts[row], tensor[images[position], :, y : y + kh, x : x + kw])
    assert sorted(seen) == list(range(len(cells)))


def test_windows_are_small_where_they_can_be(seed: int) -> None:
    """Two 3x3 convolutions: 5x5 windows, whatever the map's size."""
    branch = nn.Sequential(conv(4, 4), conv(4, 4), nn.Conv2d(4, 2, 1))
    tensors = [torch.randn(1, 4, 80, 80)]
    reach = measure_reach(lambda t: branch(t[0]), tensors, [8], 8)
    assert reach is not None
    cells = torch.randint(80, (20, 2))
    parts = list(
        window_gradients(
            lambda t: branch(t[0]), lambda v, _: v[:, :1], tensors, [8], reach, torch.zeros(20).long(), cells, 2**30
        )
    )
    assert len(parts) == 1, "one backward for all objects"
    assert parts[0].grads[0].shape == (20, 4, 5, 5)


def test_the_check_finds_models_whose_crops_are_not_exact(seed: int) -> None:
    """A model that knows where it is: cells see only themselves, yet a crop of it is another function."""
    branch = conv(4, 2)

    def honest(tensors: list[Tensor]) -> Tensor:
        return branch(tensors[0])

    def placed(tensors: list[Tensor]) -> Tensor:
        columns = torch.arange(tensors[0].shape[3]) + 1.0
        return branch(tensors[0] * columns)

    tensors = [torch.randn(1, 4, 20, 20)]
    for replay, expected in ((honest, True), (placed, False)):
        reach = measure_reach(replay, tensors, [8], 8)
        assert reach is not None
        assert windows_agree(replay, lambda values, _: values[:, :1], tensors, [8], reach) is expected
