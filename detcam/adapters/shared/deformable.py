"""Deformable attention with a gain at each cell: gradient times activation without the gradient of the maps.

Multiply a cell of a map by a gain. The derivative of a score by the gain, at gain 1, is the sum over channels of
gradient times activation: the value of the element-wise map (HiResCAM, ODAM) at that cell. Attention projects the map
linearly, so the gain of a cell is also the gain of that cell's projected value, and

    dS / d gain[cell] = sum over samples at the cell of (share of the cell in the sample) * <dS / d sample, value[cell]>

which needs inner products of the samples, but not the gradient of the projected map, [cells, channels] for every
object and layer, nor its backward through the projection. These take most of the time of a plain backward.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def sample_cells(
    locations: Tensor,  # [B, Q, H, T, 2]
    shapes: tuple[tuple[int, int], ...],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four cells around each sampling point and their shares in the bilinear sample; 0 outside the map.

    Args:
        locations: (x, y) as shares of the map; T points run over the levels, the same number on each.
        shapes: (h, w) of each level; the cells of all levels follow one another.

    Returns:
        cells [B, Q, H, T, 4] int64, shares [B, Q, H, T, 4], and their derivatives by x and by y, of the same shape.
    """
    points = locations.shape[3] // len(shapes)
    first, sizes, start = [], [], 0
    for rows, columns in shapes:
        first += [start] * points
        sizes += [(columns, rows)] * points
        start += rows * columns
    starts = torch.tensor(first, device=locations.device)
    size = locations.new_tensor(sizes)  # [T, 2]
    width, height = size.unbind(1)
    place = locations * size - 0.5
    corner = place.floor()
    x, y = corner.unbind(-1)
    right, below = (place - corner).unbind(-1)
    cells, shares, by_x, by_y = [], [], [], []
    for dy in (0, 1):
        for dx in (0, 1):
            column, row = x + dx, y + dy
            inside = ((column >= 0) & (column < width) & (row >= 0) & (row < height)).to(locations)
            across, down = (right if dx else 1 - right), (below if dy else 1 - below)
            column, row = column.clamp(min=0).minimum(width - 1), row.clamp(min=0).minimum(height - 1)
            cells.append(starts + row.long() * width.long() + column.long())
            shares.append(across * down * inside)
            by_x.append((2 * dx - 1) * down * inside * width)
            by_y.append((2 * dy - 1) * across * inside * height)
    return torch.stack(cells, -1), torch.stack(shares, -1), torch.stack(by_x, -1), torch.stack(by_y, -1)


class GainSampling(torch.autograd.Function):
    """Weighted samples [B, Q, H, D] of multi-scale deformable attention; gradients of gains, points and weights.

    Args:
        values: [B, cells, H, D] projected maps, at gain 1.
        biases: [levels, H, D] the projection of an empty map: the part that no gain multiplies.
        gains: [B, cells]; assumed to be 1.
        locations: [B, Q, H, T, 2] sampling points as shares of the map.
        weights: [B, Q, H, T] attention weights.
        shapes: (h, w) of each level.
    """

    @staticmethod
    def forward(
        values: Tensor,
        biases: Tensor,
        gains: Tensor,
        locations: Tensor,
        weights: Tensor,
        shapes: tuple[tuple[int, int], ...],
    ) -> tuple[Tensor, ...]:
        """The samples, and the tensors of the backward."""
        batch, count, heads, width = values.shape
        cells, shares, by_x, by_y = sample_cells(locations, shapes)
        cells = cells + count * torch.arange(batch, device=cells.device)[:, None, None, None, None]
        rows = cells * heads + torch.arange(heads, device=cells.device)[:, None, None]
        around = values.reshape(-1, width)[rows]  # [B, Q, H, T, 4, D]
        total = shares * weights[..., None]
        samples = (total.flatten(3)[..., None, :] @ around.flatten(3, 4)).squeeze(-2)
        return samples, around, cells, shares, by_x, by_y, total

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """See `torch.autograd.Function`."""
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*output[1:], inputs[1], inputs[4])
        ctx.size = tuple(inputs[2].shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> Any:
        """Gradients of gains, locations and weights."""
        gains, locations, weights = _Backward.apply(gradient, ctx.size, *ctx.saved_tensors)
        return None, None, gains, locations, weights, None


class _Backward(torch.autograd.Function):
    """The backward of `GainSampling` for one object, or, under `torch.func.vmap`, for many in a few products."""

    @staticmethod
    def forward(gradient: Tensor, size: tuple[int, int], *saved: Tensor) -> Any:
        return tuple(gradients[0] for gradients in _many(gradient[None], size, *saved))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None: ...

    @staticmethod
    def vmap(info: Any, dims: Any, gradient: Tensor, size: tuple[int, int], *saved: Tensor) -> Any:
        return _many(gradient.movedim(dims[0], 0), size, *saved), (0, 0, 0)


def _many(
    gradient: Tensor,  # [N, B, Q, H, D]
    size: tuple[int, int],
    around: Tensor,  # [B, Q, H, T, 4, D]
    cells: Tensor,  # [B, Q, H, T, 4]
    shares: Tensor,
    by_x: Tensor,
    by_y: Tensor,
    total: Tensor,
    biases: Tensor,  # [levels, H, D]
    weights: Tensor,  # [B, Q, H, T]
) -> tuple[Tensor, Tensor, Tensor]:
    """For N objects: gradients of the gains [N, B, cells], locations [N, B, Q, H, T, 2] and weights [N, B, Q, H, T]."""
    objects = gradient.permute(1, 2, 3, 0, 4).contiguous()  # [B, Q, H, N, D]
    products = (objects @ around.flatten(3, 4).transpose(-1, -2)).unflatten(-1, shares.shape[3:])  # [B, Q, H, N, T, 4]
    of_weights = (products * shares[:, :, :, None]).sum(-1)
    by_place = torch.stack([(products * by[:, :, :, None]).sum(-1) for by in (by_x, by_y)], dim=-1)
    of_locations = by_place * weights[:, :, :, None, :, None]
    empty = objects @ biases.permute(1, 2, 0)  # [B, Q, H, N, levels]
    empty = empty.repeat_interleave(weights.shape[3] // biases.shape[0], dim=-1)
    parts = (products - empty[..., None]) * total[:, :, :, None]
    of_gains = gradient.new_zeros(size[0] * size[1], len(gradient))
    of_gains.index_add_(0, cells.flatten(), parts.movedim(3, -1).flatten(0, -2))
    return (of_gains.T.unflatten(1, size), of_locations.permute(3, 0, 1, 2, 4, 5), of_weights.permute(3, 0, 1, 2, 4))
