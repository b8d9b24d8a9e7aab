"""Detectors with queries: candidates and objects from the class logits and the box of each query."""

from __future__ import annotations

import torch
from torch import Tensor

from detcam.boxes import corners
from detcam.geometry import Geometry
from detcam.types import Objects


def sigmoid_candidates(logits: Tensor, boxes: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """See `Adapter.candidates`: a candidate for each query of a head with a sigmoid for each class.

    Args:
        logits: [B, Q, nc].
        boxes: [B, Q, 4] (cx, cy, w, h) as shares of the network's input.
        size: (height, width) of the network's input in pixels.

    Returns:
        Boxes [B, Q, 4] (x1, y1, x2, y2) in pixels of the input, probabilities [B, Q, nc], their maxima [B, Q].
    """
    height, width = size
    shares = boxes.float()
    probabilities = logits.float().sigmoid()
    pixels = corners(shares.flatten(0, 1)).view_as(shares) * shares.new_tensor([width, height] * 2)
    return pixels, probabilities, probabilities.amax(dim=2)


def query_objects(
    boxes: Tensor,  # [N, 4]
    scores: Tensor,  # [N]
    classes: Tensor,  # [N] int64
    queries: Tensor,  # [N] int64
    names: dict[int, str],
    geometry: Geometry,
    masks: Tensor | None = None,  # [N, H, W] bool, in source pixels
) -> Objects:
    """Objects of one image; `boxes` are (x1, y1, x2, y2) in source pixels, not clipped, as in the libraries.

    Objects whose box is not finite are left out: the NaN of a broken model never leaves the package.
    """
    objects = Objects(
        boxes=boxes,
        scores=scores.float(),
        class_ids=classes,
        labels=tuple(names.get(c, str(c)) for c in classes.tolist()),
        index=queries,
        level=torch.zeros_like(queries),
        cells=queries.new_zeros(len(queries), 2),
        network_boxes=geometry.to_network(boxes),
        masks=masks,
    )
    return objects.select(boxes.isfinite().all(dim=1).nonzero().flatten())
