"""Gradients of N scalars at captured tensors, from one forward."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

HALF = 2.0**7  # factor of gradients during a backward in half precision: small gradients would vanish without it


def upscaling(tensor: Tensor) -> float:
    """The value that a backward starts from, in place of 1, for tensors of this precision."""
    return HALF if tensor.dtype == torch.float16 else 1.0


def scaled_gradients(total: Tensor, tensors: list[Tensor]) -> list[Tensor | None]:
    """Gradients of a scalar, None where it does not depend on a tensor; float32 if the scalar is float16.

    In half precision the backward starts from a large value, and from smaller values if that overflows.
    """
    grad = partial(torch.autograd.grad, total, tensors, retain_graph=True, allow_unused=True)
    if upscaling(total) == 1:
        return list(grad())
    unscaled: list[Tensor | None] = []
    for scale in (upscaling(total), 1.0, 1 / upscaling(total), upscaling(total) ** -2):
        gradients = grad(grad_outputs=torch.full_like(total, scale))
        unscaled = [None if g is None else g.float() / scale for g in gradients]
        if all(bool(g.isfinite().all()) for g in unscaled if g is not None):
            break
    return unscaled


def object_gradients(
    scalars: Tensor,  # [N]
    image_index: Tensor,  # [N] int64
    tensors: list[Tensor],  # each [B, C, h, w]
) -> Iterator[tuple[Tensor, list[Tensor | None]]]:
    """The gradient of each object's scalar at each tensor; each backward serves one object of every image.

    The images of a batch do not influence one another in eval mode, so the backward of a sum of one scalar per
    image gives the gradient of each scalar: B images with up to K objects cost K backwards.

    Args:
        scalars: [N] one scalar per object, attached to the graph of the tensors.
        image_index: [N] the image of each object.
        tensors: the captured tensors, each [B, C, h, w].

    Yields:
        (objects, gradients): objects [n] int64, at most one of each image; gradients: for each tensor
        [n, C, h, w], or None where no scalar of the group depends on it; float32 if the scalars are float16.
    """
    for objects in _rounds(image_index):
        total = scalars[objects].sum()
        if not total.requires_grad:
            yield objects, [None] * len(tensors)
            continue
        images = image_index[objects]
        yield objects, [None if g is None else g[images] for g in scaled_gradients(total, tensors)]


def _rounds(image_index: Tensor) -> list[Tensor]:
    """Groups of positions: the first object of every image, then the second of every image, and so on."""
    rounds: list[list[int]] = []
    seen: dict[int, int] = {}
    for position, image in enumerate(image_index.tolist()):
        turn = seen.get(image, 0)
        seen[image] = turn + 1
        if turn == len(rounds):
            rounds.append([])
        rounds[turn].append(position)
    return [torch.tensor(r, device=image_index.device) for r in rounds]


def batched_gradients(
    scalars: Tensor,  # [N]
    tensors: list[Tensor],
    memory: int,
    per_object: int,
) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """Gradients of N scalars; the backwards of a chunk of objects run as one batched backward.

    A backward is linear in the gradient that it starts from, and everything it multiplies with is the same for every
    object of an image. So the starting gradients of a chunk are stacked, and `torch.func.vmap` turns each operation
    of the backward into one on the stack. This pays where operations are small (the queries of a decoder) and costs
    where they are large maps with no batching rule (sampling, convolution); `detcam.adapters.shared.deformable` keeps
    such maps out.

    Args:
        scalars: [N], attached to one graph, whose operations are all free of data-dependent shapes.
        tensors: leaves of that graph.
        memory: bytes that a chunk may take, roughly; a chunk holds at least one object.
        per_object: bytes that an object's backward takes at most, as the caller knows its model.

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
