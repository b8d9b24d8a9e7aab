"""Gradients of N scalars at captured tensors, from one forward."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

HALF = 2.0**7  # what gradients in half precision are multiplied with on their way, so that small ones do not vanish


def upscaling(tensor: Tensor) -> float:
    """What to start a backward from in place of 1, for tensors of this precision."""
    return HALF if tensor.dtype == torch.float16 else 1.0


def object_gradients(
    scalars: Tensor,  # [N]
    image_index: Tensor,  # [N] int64
    tensors: list[Tensor],  # each [B, C, h, w]
) -> Iterator[tuple[Tensor, list[Tensor | None]]]:
    """The gradient of each object's scalar at each tensor, one backward for as many objects as there are pictures.

    The pictures of a batch do not influence one another in eval mode, so one backward of the sum of one scalar per
    picture gives the gradient of each: B pictures with up to K objects cost K backwards.

    Args:
        scalars: [N] one scalar per object, attached to the graph of the tensors.
        image_index: [N] the picture of each object.
        tensors: the captured tensors, each [B, C, h, w].

    Yields:
        (objects, gradients): objects [n] int64, at most one of each picture; gradients: for each tensor
        [n, C, h, w], or None where no scalar of the group depends on it; float32 if the scalars are float16.
    """
    for objects in _rounds(image_index):
        total = scalars[objects].sum()
        if not total.requires_grad:
            yield objects, [None] * len(tensors)
            continue
        scale = upscaling(total)
        start = torch.full_like(total, scale)
        gradients = torch.autograd.grad(total, tensors, start, retain_graph=True, allow_unused=True)
        images = image_index[objects]
        found: list[Tensor | None] = [None if g is None else g[images] for g in gradients]
        if scale != 1:
            found = [None if g is None else g.float() / scale for g in found]
        yield objects, found


def _rounds(image_index: Tensor) -> list[Tensor]:
    """Groups of positions: the first object of every picture, then the second of every picture, and so on."""
    rounds: list[list[int]] = []
    seen: dict[int, int] = {}
    for position, image in enumerate(image_index.tolist()):
        turn = seen.get(image, 0)
        seen[image] = turn + 1
        if turn == len(rounds):
            rounds.append([])
        rounds[turn].append(position)
    return [torch.tensor(r, device=image_index.device) for r in rounds]
