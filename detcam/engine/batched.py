"""Gradients of many scalars of one graph in a few passes: for models whose objects all read the whole map."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def batched_gradients(
    scalars: Tensor,  # [N]
    tensors: list[Tensor],
    memory: int,
    per_object: int,
) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """Gradients of N scalars, with the backwards of a chunk of objects run as one.

    A backward is linear in the gradient that it starts from, and everything it multiplies with is the same for every
    object of a picture. So the starting gradients of a chunk are stacked, and `torch.func.vmap` turns each operation
    of the backward into one on the stack. This pays where operations are small (the queries of a decoder) and costs
    where they are large maps with no batching rule (sampling, convolution); `detcam.adapters.deformable` keeps such
    maps out.

    Args:
        scalars: [N], attached to one graph, whose operations are all free of data-dependent shapes.
        tensors: leaves of that graph.
        memory: bytes that a chunk may take, roughly; at least one object is taken.
        per_object: bytes that one object's backward takes at its widest, as the caller knows its model.

    Yields:
        (objects, gradients): objects [n] int64, positions of scalars; gradients: for each tensor [n, *its shape],
        zero where no scalar depends on it.
    """
    total = len(scalars)
    step = max(memory // max(per_object, 1), 1)

    def backward(start: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(
            scalars, tensors, start, retain_graph=True, allow_unused=True, materialize_grads=True
        )

    for objects in torch.arange(total, device=scalars.device).split(step):
        starts = scalars.new_zeros(len(objects), total)
        starts.scatter_(1, objects[:, None], 1.0)
        yield objects, list(torch.func.vmap(backward)(starts))
