"""Mask scores: the mean of a mask's logits over the mask, or that mean minus the mean over a ring around it."""

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

MASK_TARGETS = ("mask", "mask-margin")
MASK_PATHS = ("mask-coefficients", "mask-prototypes")  # YOLO: the mask with the other factor of its logits held fixed


def mask_score(logits: Tensor, fixed: Tensor, target: str, inside: Tensor | None = None) -> Tensor:
    """[N] the mean of mask logits over each object's fixed binary mask, or its margin over a ring around the mask.

    Args:
        logits: [N, h, w] with the graph.
        fixed: [N, h, w] the same logits without the graph: the mask is where they are positive, or the strongest cell
            where none is positive.
        target: one of `MASK_TARGETS`.
        inside: [N, h, w] bool, the cells that lie on the image; None: all.
    """
    seen = fixed if inside is None else fixed.masked_fill(~inside, float("-inf"))
    best = seen.flatten(1).amax(dim=1).clamp(max=torch.finfo(seen.dtype).tiny)[:, None, None]
    return (logits * mask_weights(seen >= best, target, inside).to(logits.dtype)).sum(dim=(1, 2))


def mask_weights(masks: Tensor, target: str, allowed: Tensor | None = None) -> Tensor:
    """Weights of the mask logits; the scalar is the sum of logits times weights.

    Args:
        masks: [N, h, w] bool, each object's fixed mask; none is empty.
        target: "mask-margin" for the mean over the mask minus the mean over the ring around it, if there is a ring:
            the evidence for the mask's border. Any other target: the mean over the mask.
        allowed: [N, h, w] bool, the cells that a ring may take; None: all.

    Returns:
        [N, h, w] float32.
    """
    weights = masks / masks.sum(dim=(1, 2), keepdim=True)
    if target != "mask-margin":
        return weights
    rings = ring(masks) if allowed is None else ring(masks) & allowed
    return weights - rings / rings.sum(dim=(1, 2), keepdim=True).clamp(min=1)


def ring(masks: Tensor) -> Tensor:
    """[N, h, w] bool: the cells around each mask [N, h, w] bool, as far as a quarter of the root of its area."""
    widths = (masks.sum(dim=(1, 2)).sqrt() / 4).round().clamp(min=1).int()
    grown = torch.zeros_like(masks)
    for width in widths.unique().tolist():
        members = (widths == width).nonzero().flatten()
        rows = max_pool2d(masks[members].float(), (2 * width + 1, 1), 1, (width, 0))
        grown[members] = max_pool2d(rows, (1, 2 * width + 1), 1, (0, width)) > 0
    return grown & ~masks
