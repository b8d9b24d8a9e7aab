"""Layers that people add to YOLO: attention, convolutions, token mixers, resampling; from [B, C, h, w] to the same.

Each is written from its paper, at the size of a test: what counts is which operations its forward is made of.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import (
    adaptive_avg_pool2d,
    conv2d,
    grid_sample,
    hardswish,
    interpolate,
    pixel_shuffle,
    pixel_unshuffle,
    scaled_dot_product_attention,
    silu,
    softplus,
    unfold,
)


class SE(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(c, 4), nn.ReLU(), nn.Linear(4, c), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc(x.mean((2, 3)))[:, :, None, None]


class ECA(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.conv(adaptive_avg_pool2d(x, 1).squeeze(-1).transpose(1, 2)).transpose(1, 2)
        return x * gate.unsqueeze(-1).sigmoid().expand_as(x)


class CBAM(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.channel, self.space = nn.Conv2d(c, c, 1), nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.channel(adaptive_avg_pool2d(x, 1)).sigmoid()
        return x * self.space(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)).sigmoid()


class CoordAtt(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.mix, self.h, self.w = nn.Conv2d(c, 8, 1), nn.Conv2d(8, c, 1), nn.Conv2d(8, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = x.mean(3, keepdim=True), x.mean(2, keepdim=True).transpose(2, 3)
        h, w = hardswish(self.mix(torch.cat([rows, columns], 2))).split([x.shape[2], x.shape[3]], 2)
        return x * self.h(h).sigmoid() * self.w(w.transpose(2, 3)).sigmoid()


class SimAM(nn.Module):
    """Gates without parameters, from each channel's variance."""

    def __init__(self, c: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        squared = (x - x.mean((2, 3), keepdim=True)).pow(2)
        variance = squared.sum((2, 3), keepdim=True) / (x.shape[2] * x.shape[3] - 1)
        return x * (squared / (4 * (variance + 1e-4)) + 0.5).sigmoid()


class StripPooling(nn.Module):
    """Pooled rows and columns, and a coarse grid enlarged again, as in pyramid pooling."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.rows, self.grid = nn.Conv2d(c, c, (3, 1), padding=(1, 0)), nn.Conv2d(c, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.rows(adaptive_avg_pool2d(x, (x.shape[2], 1)))
        grid = interpolate(self.grid(adaptive_avg_pool2d(x, 2)), x.shape[2:], mode="bilinear")
        return x * (rows + grid).sigmoid()


class GhostConv(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.first, self.cheap = nn.Conv2d(c, c // 2, 1), nn.Conv2d(c // 2, c // 2, 5, padding=2, groups=c // 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).relu()
        return torch.cat([y, self.cheap(y)], 1)


class PConv(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c // 4, c // 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = x.clone()
        y[:, : len(self.conv.weight)] = self.conv(x[:, : len(self.conv.weight)])  # in place, as in FasterNet
        return y


class GSConv(nn.Module):
    """Half of the channels by a depthwise convolution, then a shuffle of the halves."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.dense, self.cheap = nn.Conv2d(c, c // 2, 1), nn.Conv2d(c // 2, c // 2, 5, padding=2, groups=c // 2)

    def forward(self, x: Tensor) -> Tensor:
        y = silu(self.dense(x))
        return torch.stack([y, silu(self.cheap(y))], 2).flatten(1, 2)


class RepConv(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.three, self.one, self.norm = nn.Conv2d(c, c, 3, padding=1), nn.Conv2d(c, c, 1), nn.BatchNorm2d(c)

    def forward(self, x: Tensor) -> Tensor:
        return silu(self.three(x) + self.one(x) + self.norm(x))


class LKA(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.near = nn.Conv2d(c, c, 5, padding=2, groups=c)
        self.far, self.mix = nn.Conv2d(c, c, 7, padding=9, dilation=3, groups=c), nn.Conv2d(c, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mix(self.far(self.near(x)))


class ConvNeXt(nn.Module):
    """Channels last inside, with a layer norm and a global response norm."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.space, self.norm = nn.Conv2d(c, c, 7, padding=3, groups=c), nn.LayerNorm(c)
        self.wide, self.narrow = nn.Linear(c, 2 * c), nn.Linear(2 * c, c)

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.gelu(self.wide(self.norm(self.space(x).permute(0, 2, 3, 1))))
        size = y.norm(dim=(1, 2), keepdim=True)
        return x + self.narrow(y * size / (size.mean(-1, keepdim=True) + 1e-6) + y).permute(0, 3, 1, 2)


class Deformable(nn.Module):
    """Deformable convolution with modulation, DCNv2."""

    def __init__(self, c: int) -> None:
        super().__init__()
        from torchvision.ops import DeformConv2d

        self.offset, self.gate = nn.Conv2d(c, 18, 3, padding=1), nn.Conv2d(c, 9, 3, padding=1)
        self.deform = DeformConv2d(c, c, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.deform(x, self.offset(x), self.gate(x).sigmoid())


class Involution(nn.Module):
    """A kernel for each cell, made from the cell."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.kernel = nn.Conv2d(c, 9, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        patches = unfold(x, 3, padding=1).view(b, c, 9, h, w)
        return (patches * self.kernel(x)[:, None].softmax(2)).sum(2)


class CondConv(nn.Module):
    """A kernel for each image, mixed from several, as one convolution with groups."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.route, self.kernels = nn.Linear(c, 3), nn.Parameter(torch.randn(3, c, c, 3, 3) / (3 * c**0.5))

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        weight = torch.einsum("bk,kocij->bocij", self.route(x.mean((2, 3))).softmax(1), self.kernels)
        return x + conv2d(x.reshape(1, b * c, h, w), weight.flatten(0, 1), padding=1, groups=b).view(b, c, h, w)


class SpaceToDepth(nn.Module):
    """Strided slices stacked in the channels and back, as SPD-Conv and wavelets."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(4 * c, 4 * c, 1, groups=4)

    def forward(self, x: Tensor) -> Tensor:
        even = x[:, :, : x.shape[2] // 2 * 2, : x.shape[3] // 2 * 2]
        deep = torch.cat([even[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)], 1)
        return x + pixel_shuffle(silu(self.mix(deep)) + pixel_unshuffle(even, 2), 2)


class DySample(nn.Module):
    """Each cell sampled at a place of its own."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.offset = nn.Conv2d(c, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y, x_axis = (torch.linspace(-1, 1, n, device=x.device, dtype=x.dtype) for n in x.shape[2:])
        grid = torch.stack(torch.meshgrid(y, x_axis, indexing="ij")[::-1], -1)
        return x + grid_sample(x, grid + 0.1 * self.offset(x).tanh().permute(0, 2, 3, 1), align_corners=True)


class GlobalFilter(nn.Module):
    """A product in the frequency domain."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.real, self.imaginary = nn.Parameter(torch.randn(c, 1, 1)), nn.Parameter(torch.randn(c, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft2(x, norm="ortho") * torch.complex(self.real, self.imaginary)
        return x + torch.fft.irfft2(spectrum, s=x.shape[2:], norm="ortho").relu()


class SelfAttention(nn.Module):
    """Attention of all cells, by torch's fused operation."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Conv2d(c, 3 * c, 1), nn.Conv2d(c, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(1, (2, -1)).flatten(3).transpose(2, 3) for part in self.qkv(x).chunk(3, 1))
        return x + self.out(scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(x.shape))


class ShiftedWindows(nn.Module):
    """Attention inside windows of 2 x 2 cells, which are shifted by one, as in Swin."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(c, 3 * c), nn.Linear(c, c)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        cells = x.roll((-1, -1), (2, 3)).view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 3, 5, 1)
        q, k, v = self.qkv(cells.reshape(-1, 4, c)).chunk(3, -1)
        mixed = self.out((q @ k.transpose(1, 2) / c**0.5).softmax(-1) @ v)
        back = mixed.view(b, h // 2, w // 2, 2, 2, c).permute(0, 5, 1, 3, 2, 4).reshape(b, c, h, w)
        return x + back.roll((1, 1), (2, 3))


class TopKAttention(nn.Module):
    """Each cell attends to the four cells that it is most like, as BiFormer's regions do."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.q, self.kv = nn.Conv2d(c, 8, 1), nn.Conv2d(c, 8 + c, 1)

    def forward(self, x: Tensor) -> Tensor:
        k, v = self.kv(x).flatten(2).split([8, x.shape[1]], 1)
        near = (self.q(x).flatten(2).transpose(1, 2) @ k / 8**0.5).topk(4, dim=2)  # [B, L, 4]
        values = v.transpose(1, 2)[torch.arange(len(x))[:, None, None], near.indices]  # [B, L, 4, C]
        return x + (near.values.softmax(-1)[..., None] * values).sum(2).transpose(1, 2).view_as(x)


class Transformer(nn.Module):
    """torch's own encoder layer, which has a faster path where nothing needs a gradient."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(c, 2, 2 * c, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(x.shape)


class SelectiveScan(nn.Module):
    """A recurrence over the cells whose decay depends on them, in both directions, as in vision Mamba."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.step = nn.Conv2d(c, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        decays, cells = torch.exp(-softplus(self.step(x))).flatten(2), x.flatten(2)
        return x + (self._scan(decays, cells) + self._scan(decays.flip(2), cells.flip(2)).flip(2)).view_as(x) / 4

    @staticmethod
    def _scan(decays: Tensor, cells: Tensor) -> Tensor:
        state, states = torch.zeros_like(cells[:, :, 0]), []
        for decay, cell in zip(decays.unbind(2), cells.unbind(2), strict=True):
            state = state * decay + cell
            states.append(state)
        return torch.stack(states, 2)


LAYERS: tuple[type[nn.Module], ...] = (
    SE, ECA, CBAM, CoordAtt, SimAM, StripPooling, GhostConv, PConv, GSConv, RepConv, LKA, ConvNeXt, Deformable,
    Involution, CondConv, SpaceToDepth, DySample, GlobalFilter, SelfAttention, ShiftedWindows, TopKAttention,
    Transformer, SelectiveScan,
)  # fmt: skip
