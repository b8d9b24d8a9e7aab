"""Exact gradients from small windows: each object's score reads a small part of the feature maps, so only that is run.

The score of an object is read at one cell of a score map, and that cell depends on a limited stretch of the captured
feature maps: 5 x 5 cells for a head of two 3 x 3 convolutions. So instead of a backward through whole maps for each
object, the stretch around each object is cut out, the crops of all objects run through the rest of the model as one
batch, and one backward gives every gradient:

    captured map             crops of one size, one batch       score maps        one cell each
    +----------------+        +----+
    | +----+         |        | a  | --+
    | | a  |  +----+ |        +----+   |    head or neck         +----+
    | +----+  | b  | |  ->    +----+   +--> and head    -->      |  x | ...  -->  sum  -->  backward
    |         +----+ |        | b  | --+    (the model's own     +----+
    +----------------+        +----+        modules)

This is exact, not approximate, for three reasons. A crop is never padded: near the border of the map it is shifted
inwards, so that its edge is the map's edge and the convolutions pad there just as they do in the full run. On its
other sides it reaches so far that nothing wrong at its edge gets to the cell that is read (`measure_reach`). And crops
start at multiples of the largest stride, so that strided convolutions and upsampling fall on the same cells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

# From crops of the captured tensors, each [n, C, h, w], to a map of values [n, K, h, w] for every cell of one level.
Replay = Callable[[list[Tensor]], Tensor]
# From the values [n, K] at the objects' cells, and the objects' positions [n], to scalars [n, M].
Score = Callable[[Tensor, Tensor], Tensor]

_STRIP = (16, 32, 64)  # lengths tried for the probe, in blocks
CHECKED_CELLS = ((0, 0), (1, 1), (0, 0.5), (0.5, 1), (0.5, 0.5), (0.3, 0.7))  # as shares of height and width
_BYTES_PER_BYTE = 24  # memory that a replay and its backward take for each byte of crop: measured on YOLOv8, rounded up


@dataclass(frozen=True)
class Reach:
    """How far a score map's cells look beyond a block boundary, in network pixels, and the grid that both lie on.

    Attributes:
        block: the largest stride of the captured tensors: crops start at its multiples.
        cell: the stride of the score map.
        before: (vertical, horizontal) cells that start at least so far after a boundary read nothing before it.
        after: (vertical, horizontal) cells that end at least so far before a boundary read nothing after it.
    """

    block: int
    cell: int
    before: tuple[int, int]
    after: tuple[int, int]

    def crops(self, cells: Tensor, size: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
        """Where to crop for each object, in blocks.

        Args:
            cells: [n, 2] int64 (row, column) on the score map.
            size: (height, width) of the network's input in pixels.

        Returns:
            [n, 2] first block of each crop, and the (height, width) that all crops share.
        """
        starts, extents = [], []
        for axis in (0, 1):
            blocks = size[axis] // self.block
            low = cells[:, axis] * self.cell
            first = torch.div(low - self.before[axis], self.block, rounding_mode="floor")
            last = torch.div(low + self.cell + self.after[axis] + self.block - 1, self.block, rounding_mode="floor")
            extent = min(int((last - first).max()), blocks)
            starts.append(first.clamp(0, blocks - extent))
            extents.append(extent)
        return torch.stack(starts, dim=1), (extents[0], extents[1])


@torch.no_grad()
def measure_reach(replay: Replay, tensors: list[Tensor], strides: list[int], cell: int) -> Reach | None:
    """Measure how far one level's scores see, by letting NaN spread from one half of a strip to the other.

    NaN survives every operation, so the cells that stay free of it are those that truly read nothing from the other
    half, whatever modules lie between: kernels, strides, dilation, pooling and upsampling need no table. Anything that
    looks everywhere (attention, global pooling) spreads NaN over the whole strip.

    Args:
        replay: the rest of the model, from the tensors to the level's score map.
        tensors: the captured tensors [B, C, h, w], for their channels, dtype and device.
        strides: network pixels per cell of each tensor.
        cell: network pixels per cell of the score map.

    Returns:
        The reach, or None if the scores look everywhere.
    """
    block = max(strides)
    for length in _STRIP:
        margins = [_margin(replay, tensors, strides, cell, length, axis, flip) for flip in (0, 1) for axis in (0, 1)]
        if all(margin is not None for margin in margins):
            top, left, bottom, right = (int(m) for m in margins if m is not None)
            return Reach(block, cell, (top, left), (bottom, right))
    return None


def _margin(
    replay: Replay, tensors: list[Tensor], strides: list[int], cell: int, length: int, axis: int, flip: int
) -> int | None:
    """How far, in pixels, NaN spreads into a strip of `length` blocks from the half before (flip: after) its middle."""
    block, across = max(strides), 4
    poisoned = []
    for tensor, stride in zip(tensors, strides, strict=True):
        scale = block // stride
        shape = [across * scale, across * scale]
        shape[axis] = length * scale
        strip = torch.zeros((1, tensor.shape[1], *shape), dtype=tensor.dtype, device=tensor.device)
        half = length * scale // 2
        strip.narrow(axis + 2, half if flip else 0, half).fill_(float("nan"))
        poisoned.append(strip)
    spread = replay(poisoned).isnan().any(dim=1)[0].any(dim=1 - axis)  # [cells along the axis]
    half = len(spread) // 2
    clean_half = spread[:half].flip(0) if flip else spread[half:]
    reached = clean_half.nonzero()
    margin = int(reached.max()) + 1 if len(reached) else 0
    return None if margin >= half else margin * cell


@dataclass(frozen=True)
class Windows:
    """The gradients of some objects at each captured tensor, each within a window of it.

    Attributes:
        objects: [n] int64 positions of the objects.
        column: which of the objects' scalars.
        acts: for each tensor the activations in the windows, [n, C, kh, kw].
        grads: for each tensor the gradients in the windows, [n, C, kh, kw]; zero everywhere else.
        corners: for each tensor the (row, column) of the windows' first cells, [n] each.
        values: [n, K] what the replay gave at the objects' cells.
    """

    objects: Tensor
    column: int
    acts: list[Tensor]
    grads: list[Tensor]
    corners: list[tuple[Tensor, ...]]
    values: Tensor


def window_gradients(
    replay: Replay,
    score: Score,
    tensors: list[Tensor],  # each [B, C, h, w]
    strides: list[int],
    reach: Reach | None,
    images: Tensor,  # [N] int64
    cells: Tensor,  # [N, 2] int64
    memory: int,
) -> Iterator[Windows]:
    """Gradients of N objects of one level, each in its own window; whole maps where windows would not pay.

    Args:
        replay: the rest of the model.
        score: from values at the objects' cells to their scalars.
        tensors: the captured tensors.
        strides: network pixels per cell of each.
        reach: how far the level's scores see; None: everywhere.
        images: [N] the picture of each object.
        cells: [N, 2] (row, column) of each object on the score map.
        memory: bytes that a chunk of objects may take, roughly; at least one object is taken.
    """
    size = (tensors[0].shape[2] * strides[0], tensors[0].shape[3] * strides[0])
    if reach is not None:
        starts, extent = reach.crops(cells, size)
        share = extent[0] * extent[1] * reach.block**2 / (size[0] * size[1])
        # In units of one run of whole maps: a crop costs a run and a backward (2) of its share; whole maps cost one
        # run for all objects, and a backward each.
        if 3 * share * len(cells) < 1 + 2 * len(cells):
            yield from _cropped(replay, score, tensors, strides, reach, images, cells, (starts, extent), memory)
            return
    yield from _whole(replay, score, tensors, images, cells)


def windows_agree(
    replay: Replay, score: Score, tensors: list[Tensor], strides: list[int], reach: Reach, tolerance: float = 1e-4
) -> bool:
    """Whether windows give the gradients of whole maps, at corners, edges and inner cells of the first picture.

    Args:
        replay, score, tensors, strides, reach: as for `window_gradients`.
        tolerance: largest difference, as a share of the largest gradient.
    """
    size = (tensors[0].shape[2] * strides[0], tensors[0].shape[3] * strides[0])
    last = torch.tensor([size[0] // reach.cell - 1, size[1] // reach.cell - 1])
    cells = (torch.tensor(CHECKED_CELLS) * last).round().long().to(tensors[0].device)
    images = torch.zeros(len(cells), dtype=torch.int64, device=cells.device)
    crops_at = reach.crops(cells, size)
    wholes = _whole(replay, score, tensors, images, cells)
    for part in _cropped(replay, score, tensors, strides, reach, images, cells, crops_at, memory=1):
        whole = next(wholes)
        for small, corner, full in zip(part.grads, part.corners, whole.grads, strict=True):
            y, x = int(corner[0]), int(corner[1])
            height, width = small.shape[2:]
            difference = full[0].clone()
            difference[:, y : y + height, x : x + width] -= small[0]
            if not bool(difference.abs().amax() <= tolerance * full.abs().amax()):
                return False
    return True


def _cropped(
    replay: Replay,
    score: Score,
    tensors: list[Tensor],
    strides: list[int],
    reach: Reach,
    images: Tensor,
    cells: Tensor,
    crops_at: tuple[Tensor, tuple[int, int]],
    memory: int,
) -> Iterator[Windows]:
    starts, extent = crops_at
    pixels = extent[0] * extent[1] * reach.block**2
    crop_bytes = sum(t.element_size() * t.shape[1] * pixels // s**2 for t, s in zip(tensors, strides, strict=True))
    step = max(memory // (crop_bytes * _BYTES_PER_BYTE), 1)
    for objects in torch.arange(len(cells), device=cells.device).split(step):
        corners = [(starts[objects] * (reach.block // stride)).unbind(1) for stride in strides]
        crops = [
            _crop(tensor, images[objects], corner, (extent[0] * reach.block // s, extent[1] * reach.block // s))
            for tensor, s, corner in zip(tensors, strides, corners, strict=True)
        ]
        inside = cells[objects] - starts[objects] * (reach.block // reach.cell)
        rows = torch.arange(len(objects), device=cells.device)
        values, scalars = _run(replay, score, crops, objects, rows, inside)
        for column in range(scalars.shape[1]):
            gradients = _gradients(scalars[:, column].sum(), crops, keep=column + 1 < scalars.shape[1])
            yield Windows(objects, column, [c.detach() for c in crops], gradients, corners, values)


def _whole(replay: Replay, score: Score, tensors: list[Tensor], images: Tensor, cells: Tensor) -> Iterator[Windows]:
    for image in images.unique().tolist():
        objects = (images == image).nonzero().flatten()
        maps = [tensor[image : image + 1].detach() for tensor in tensors]
        values, scalars = _run(replay, score, maps, objects, torch.zeros_like(objects), cells[objects])
        corner = (torch.zeros(1, dtype=torch.int64, device=cells.device),) * 2
        for position in range(len(objects)):
            for column in range(scalars.shape[1]):
                gradients = _gradients(scalars[position, column], maps, keep=True)
                one = slice(position, position + 1)
                acts = [m.detach() for m in maps]
                yield Windows(objects[one], column, acts, gradients, [corner] * len(maps), values[one])


def _run(
    replay: Replay, score: Score, inputs: list[Tensor], objects: Tensor, rows: Tensor, cells: Tensor
) -> tuple[Tensor, Tensor]:
    """Replay with a graph that starts at `inputs`: the values at the objects' cells, and the objects' scalars."""
    for tensor in inputs:
        tensor.requires_grad_()
    with torch.enable_grad():
        values = replay(inputs)[rows, :, cells[:, 0], cells[:, 1]]  # [n, K]
        return values.detach(), score(values, objects)


def _gradients(scalar: Tensor, inputs: list[Tensor], keep: bool) -> list[Tensor]:
    return list(torch.autograd.grad(scalar, inputs, retain_graph=keep, allow_unused=True, materialize_grads=True))


def _crop(tensor: Tensor, images: Tensor, corner: tuple[Tensor, ...], extent: tuple[int, int]) -> Tensor:
    """[n, C, *extent] crops of `tensor`, one per object, from its picture and its corner."""
    places = zip(images.tolist(), corner[0].tolist(), corner[1].tolist(), strict=True)
    return torch.stack([tensor[b, :, y : y + extent[0], x : x + extent[1]] for b, y, x in places])
