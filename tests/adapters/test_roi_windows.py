"""Windows of regions are the gradients that autograd takes through torchvision's own RoIAlign."""

from itertools import product

import pytest
import torch
from support import few_rows
from torch import Tensor, nn
from torchvision.ops import roi_align

from detcam.adapters.torchvision.roi_windows import roi_gradients, row_gradients

SIZES = [(25, 40), (7, 3), (1, 1), (2, 50)]


def random_boxes(count: int, size: tuple[int, int], scale: float) -> Tensor:
    """[count, 4] boxes: inside, across the border, thinner than a cell, the whole map, and far outside."""
    height, width = size[0] / scale, size[1] / scale
    extent = torch.tensor([width, height])
    corner = (torch.rand(count, 2) * 1.4 - 0.2) * extent
    sides = torch.rand(count, 2) ** 3 * extent
    special = torch.tensor(
        [[0.0, 0.0, width, height], [-5.0, -5.0, 3.0, 2.0], [width - 1, height - 1, width + 40, height + 40],
         [width + 90, height + 90, width + 99, height + 99], [width / 2, height / 2, width / 2, height / 2]]
    )  # fmt: skip
    boxes = torch.cat([torch.cat([corner, corner + sides], dim=1), special])
    return boxes + torch.rand_like(boxes) / 50  # no sample lies on the very limit beyond which it counts nothing


def whole(windows: Tensor, start: Tensor, size: tuple[int, int]) -> Tensor:
    """[n, C, h, w] maps from windows."""
    maps = windows.new_zeros((*windows.shape[:2], *size))
    height, width = windows.shape[2:]
    for one, window, (y, x) in zip(maps, windows, start.tolist(), strict=True):
        assert 0 <= y <= size[0] - height
        assert 0 <= x <= size[1] - width
        one[:, y : y + height, x : x + width] = window
    return maps


@pytest.mark.parametrize(
    ("size", "sampling", "scale", "dtype"),
    few_rows(
        product(SIZES, [0, 1, 2, 3, -1], [1.0, 0.25, 1 / 32, 0.13], [torch.float32, torch.float64]),
        *zip(SIZES, [0, 1, 2, -1], [1.0, 0.25, 1 / 32, 0.13], 2 * [torch.float32, torch.float64], strict=True),
    ),
)
def test_windows_are_autograds_gradients(
    size: tuple[int, int], sampling: int, scale: float, dtype: torch.dtype, seed: int
) -> None:
    boxes = random_boxes(12, size, scale).to(dtype)
    maps = torch.randn(len(boxes), 3, *size, dtype=dtype, requires_grad=True)  # each region reads its own map
    rois = torch.cat([torch.arange(len(boxes), dtype=dtype)[:, None], boxes], dim=1)
    pooled = roi_align(maps, rois, (7, 5), scale, sampling)
    along = torch.randn_like(pooled)
    (expected,) = torch.autograd.grad((pooled * along).sum(), maps)
    windows, start = roi_gradients(along[:, None], boxes, size, scale, sampling)
    assert start.dtype == torch.int64
    ours = whole(windows[:, 0], start, size)
    assert ours.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(ours, expected, rtol=0, atol=tolerance * float(expected.abs().max()))
    assert expected.flatten(1).any(dim=1).sum() >= 3  # the special ones


def test_a_window_is_no_larger_than_the_largest_region_needs(seed: int) -> None:
    boxes = torch.tensor([[40.0, 40.0, 72.0, 56.0], [200.0, 100.0, 210.0, 140.0]])
    windows, _ = roi_gradients(torch.randn(2, 1, 4, 7, 7), boxes, (100, 200), 0.25, 2)
    assert windows.shape[:3] == (2, 1, 4)
    assert windows.shape[3] <= 40 / 4 + 2
    assert windows.shape[4] <= 32 / 4 + 2


def test_one_backward_gives_every_rows_gradient(seed: int) -> None:
    head = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 8), nn.Tanh(), nn.Linear(8, 5))
    pooled = torch.randn(6, 3, 4, 4)
    labels = torch.randint(5, (6,))

    def score(rows: Tensor, classes: Tensor = labels) -> Tensor:
        logits = head(rows)
        own = logits[torch.arange(len(rows)), classes]
        return torch.stack([own, own - logits.mean(dim=1)], dim=1)

    gradients = row_gradients(score, pooled)
    assert gradients.shape == (6, 2, 3, 4, 4)
    for i in range(6):
        row = pooled[i : i + 1].clone().requires_grad_()
        for column in range(2):
            (expected,) = torch.autograd.grad(score(row, labels[i : i + 1])[0, column], row)
            torch.testing.assert_close(gradients[i : i + 1, column], expected)
    assert not pooled.requires_grad
