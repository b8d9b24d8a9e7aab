"""Gradients in windows: equal to autograd's for every kind of node, and as small as the kernels allow."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, max_pool2d, pad

from detcam.engine import Seed, Window, window_gradients, windows_agree
from detcam.engine import backward_rules as rules

Tail = Callable[[list[Tensor]], Tensor]


def conv(channels: int, out: int, kernel: int = 3, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    padding = dilation * (kernel // 2)
    layer = nn.Conv2d(channels, out, kernel, stride, padding, dilation)
    return nn.Sequential(layer, nn.BatchNorm2d(out), nn.SiLU()).double().eval().requires_grad_(False)


class Neck(nn.Module):
    """Three tensors of strides 8, 16 and 32 in; scores at one stride out, by an up path and a down path."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.up16, self.up8 = conv(5 + 4, 6), conv(6 + 3, 6)
        self.down16, self.out16 = conv(6, 6, stride=2), conv(12, 6)
        self.down32, self.out32 = conv(6, 6, stride=2), conv(11, 6)
        self.head = nn.Sequential(conv(6, 6), nn.Conv2d(6, 2, 1).double())

    def forward(self, tensors: list[Tensor]) -> Tensor:
        p3, p4, p5 = tensors
        m16 = self.up16(torch.cat([interpolate(p5, scale_factor=2), p4], 1))
        n8 = self.up8(torch.cat([interpolate(m16, scale_factor=2), p3], 1))
        if self.stride == 8:
            return self.head(n8)
        n16 = self.out16(torch.cat([self.down16(n8), m16], 1))
        return self.head(n16 if self.stride == 16 else self.out32(torch.cat([self.down32(n16), p5], 1)))


class Bottleneck(nn.Module):
    """Split, a residual path and a concatenation with a part that needs no gradient, as in C2f."""

    def __init__(self, residual: float) -> None:
        super().__init__()
        self.inner, self.residual = conv(2, 2), residual
        self.fixed = torch.randn(1, 3, 1, 1).double()

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        c = torch.add(self.inner(b), b, alpha=self.residual)
        fixed = self.fixed.expand(len(x), 3, *x.shape[2:])
        return torch.cat([a * c, fixed, c, b], dim=-3)


class OneOfThree(nn.Module):
    """Two of three parts of a split lead nowhere."""

    def forward(self, x: Tensor) -> Tensor:
        return x.split([1, 2, 1], dim=1)[1]


class Pixelwise(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def attention(x: Tensor) -> Tensor:
    flat = x.flatten(2)
    return (flat @ (flat.transpose(1, 2) @ flat).softmax(dim=-1)).view_as(x)


BY_RULES: dict[str, Callable[[], nn.Module]] = {
    "1x1": lambda: nn.Conv2d(4, 3, 1),
    "3x3": lambda: nn.Conv2d(4, 3, 3, padding=1),
    "two 3x3": lambda: nn.Sequential(conv(4, 4), conv(4, 4), nn.Conv2d(4, 2, 1)),
    "no padding": lambda: nn.Conv2d(4, 3, 3),
    "more padding than kernel": lambda: nn.Conv2d(4, 3, 3, padding=3),
    "stride 2": lambda: nn.Conv2d(4, 3, 3, stride=2, padding=1),
    "stride 3, even kernel": lambda: nn.Conv2d(4, 3, 4, stride=3, padding=1),
    "stride beyond kernel": lambda: nn.Conv2d(4, 3, 1, stride=2),
    "uneven": lambda: nn.Conv2d(4, 3, (1, 5), stride=(1, 2), padding=(0, 2)),
    "dilated": lambda: nn.Conv2d(4, 3, 3, padding=4, dilation=4),
    "depthwise": lambda: nn.Conv2d(4, 8, 3, padding=1, groups=4),
    "transposed": lambda: nn.ConvTranspose2d(4, 3, 2, stride=2),
    "batch norm": lambda: nn.BatchNorm2d(4),
    "batch norm without scale": lambda: nn.BatchNorm2d(4, affine=False),
    "bottleneck": lambda: Bottleneck(1.0),
    "weighted residual": lambda: Bottleneck(0.3),
    "one of three parts": OneOfThree,
    "upsample": lambda: nn.Upsample(scale_factor=2),
    "upsample 3 x 2": lambda: nn.Upsample(scale_factor=(3, 2)),
    "upsample, then 3x3": lambda: nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(4, 3, 3, padding=1)),
    "max-pool": lambda: nn.MaxPool2d(5, 1, 2),
    "max-pool with stride": lambda: nn.MaxPool2d(3, 2, 1),
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "hardswish": nn.Hardswish,
    "sigmoid": nn.Sigmoid,
}
WITHOUT_RULES: dict[str, Callable[[], nn.Module]] = {
    "attention": lambda: Pixelwise(attention),
    "attention between convolutions": lambda: nn.Sequential(conv(4, 4), Pixelwise(attention), conv(4, 4)),
    "global pooling": lambda: Pixelwise(lambda x: x * x.mean(dim=(2, 3), keepdim=True)),
    "group norm": lambda: nn.GroupNorm(2, 4),
    "bilinear": lambda: nn.Upsample(scale_factor=2, mode="bilinear"),
    "odd resize": lambda: Pixelwise(lambda x: interpolate(x, (23, 31))),
    "padding": lambda: Pixelwise(lambda x: pad(x, (3, 0, 0, 1))[:, :, 1:, :-3] + x),
    "transposed, overlapping": lambda: nn.ConvTranspose2d(4, 3, 3, stride=2, padding=1),
    "dilated max-pool": lambda: Pixelwise(lambda x: max_pool2d(x, 3, 1, 1, dilation=2)),
    "position": lambda: Pixelwise(lambda x: x * torch.arange(x.shape[3])),
}


def objects_at(size: tuple[int, int], count: int, extent: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Pictures [n] of two, and places [n, 2] of windows of `extent`: all corners and random ones."""
    room = np.subtract(size, extent)
    corners = room * np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    inner = np.stack([torch.randint(int(r) + 1, (count,)).numpy() for r in room], axis=1)
    places = np.concatenate([corners, inner])
    return torch.randint(2, (len(places),)).numpy(), places


def assert_equal_to_autograd(tail: Tail, tensors: list[Tensor], extent: tuple[int, int] = (1, 1)) -> list[Window]:
    """Random gradients that start at random windows, against `torch.autograd.grad` for one object after the other."""
    leaves = [t.clone().requires_grad_() for t in tensors]
    out = tail(leaves)
    size = (out.shape[2], out.shape[3])
    images, places = objects_at(size, 9, extent)
    seeds = torch.randn(len(images), out.shape[1], *extent).double()
    found = window_gradients([Seed(out, Window(seeds, places))], leaves, images)
    for i, (image, (y, x)) in enumerate(zip(images, places, strict=True)):
        start = torch.zeros_like(out)
        start[image, :, y : y + extent[0], x : x + extent[1]] = seeds[i]
        expected = torch.autograd.grad(out, leaves, start, retain_graph=True, allow_unused=True)
        for window, truth in zip(found, expected, strict=True):
            if truth is None:
                assert window is None
                continue
            assert window is not None
            whole = window.rows(slice(i, i + 1)).spread(tuple(truth.shape), images[i : i + 1])[0]
            torch.testing.assert_close(whole, truth, rtol=1e-9, atol=1e-12)
    assert windows_agree([Seed(out, Window(seeds, places))], leaves, images) > 0
    return [window for window in found if window is not None]


@pytest.mark.parametrize("extent", [(1, 1), (2, 3)])
@pytest.mark.parametrize("name", [*BY_RULES, *WITHOUT_RULES])
def test_gradients_of_every_kind_of_node(name: str, extent: tuple[int, int], seed: int) -> None:
    """Two images of an odd size; where every node has a rule, no window is as large as the map."""
    module = (BY_RULES | WITHOUT_RULES)[name]().double().eval().requires_grad_(False)
    for norm in (m for m in module.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(norm.running_var, 0.5, 2)
    found = assert_equal_to_autograd(lambda t: module(t[0]), [torch.randn(2, 4, 11, 14).double()], extent)
    if name in BY_RULES:  # a node that is called with whole maps hands on whole maps
        assert all(window.extent != (11, 14) for window in found)


def test_every_rule_is_tested() -> None:
    """Each kind of node in the table comes up in the modules above."""
    seen = set()
    for make in BY_RULES.values():
        stack = [
            make().double().eval().requires_grad_(False)(torch.randn(2, 4, 11, 14).double().requires_grad_()).grad_fn
        ]
        while stack:
            node = stack.pop()
            if node is not None:
                seen.add(node.name())
                stack += [child for child, _ in node.next_functions]
    once_more = {
        "CloneBackward0",
        "UpsampleNearest2DBackward0",
        "UpsampleNearest2DBackward1",
        "SplitWithSizesBackward0",
    }
    assert set(rules.RULES) - once_more <= seen


@pytest.mark.parametrize("stride", [8, 16, 32])
@pytest.mark.parametrize("blocks", [(7, 12), (3, 17), (1, 1), (13, 13)])
def test_gradients_through_a_neck(blocks: tuple[int, int], stride: int, seed: int) -> None:
    """Random objects, and those at every corner, on two pictures of odd sizes; three tensors, several ways to each."""
    tensors = [
        torch.randn(2, channels, blocks[0] * 32 // s, blocks[1] * 32 // s).double()
        for channels, s in zip((3, 4, 5), (8, 16, 32), strict=True)
    ]
    assert_equal_to_autograd(Neck(stride), tensors)


@pytest.mark.parametrize("cut_all", [True, False])
def test_one_target_behind_another(cut_all: bool, seed: int) -> None:
    """A captured tensor that is no leaf gets the gradient that passes through it on to the next."""
    first, second, head = conv(4, 4), conv(4, 4), conv(4, 2)
    x = torch.randn(2, 4, 12, 15).double().requires_grad_()
    middle = first(x)
    middle = middle.detach().requires_grad_() if cut_all else middle
    out = head(second(middle) + middle)
    images, places = objects_at((12, 15), 6, (1, 1))
    seeds = [Seed(out, Window(torch.randn(len(images), 2, 1, 1).double(), places))]
    assert windows_agree(seeds, [x, middle], images)
    found = window_gradients(seeds, [x, middle], images)
    assert (found[0] is None) == cut_all
    assert found[1] is not None
    assert found[1].extent == (5, 5)


def test_seeds_at_several_tensors_add_up(seed: int) -> None:
    x = torch.randn(1, 4, 16, 16).double().requires_grad_()
    near, far = conv(4, 3)(x), conv(4, 2, stride=2)(x)
    places = np.array([[3, 3], [10, 0]])
    seeds = [
        Seed(near, Window(torch.randn(2, 3, 2, 2).double(), places)),
        Seed(far, Window(torch.randn(2, 2, 1, 1).double(), places // 2)),
        Seed(x.detach(), Window(torch.randn(2, 4, 1, 1).double(), places)),  # leads nowhere
    ]
    assert windows_agree(seeds, [x], np.zeros(2, np.int64))


def test_windows_are_as_small_as_the_kernels(seed: int) -> None:
    """Two 3x3 convolutions: 5x5 cells, whatever the map's size; at most the whole map."""
    branch = nn.Sequential(conv(4, 4), conv(4, 4), nn.Conv2d(4, 2, 1).double()).requires_grad_(False)
    for size, expected in ((80, (5, 5)), (4, (4, 4))):
        tensors = [torch.randn(2, 4, size, size).double()]
        assert [w.extent for w in assert_equal_to_autograd(lambda t: branch(t[0]), tensors)] == [expected]


def test_the_check_finds_a_wrong_rule(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(1, 4, 20, 20).double().requires_grad_()
    out = conv(4, 2)(x)
    seeds = [Seed(out, Window(torch.ones(2, 2, 1, 1).double(), np.array([[0, 0], [7, 9]])))]
    assert windows_agree(seeds, [x], np.zeros(2, np.int64)) > 0
    monkeypatch.setitem(rules.RULES, "SiluBackward0", rules.RULES["CloneBackward0"])
    assert windows_agree(seeds, [x], np.zeros(2, np.int64)) == 0
