"""What all detectors with queries share: a query puts out class logits and a box, and objects are kept queries."""

from __future__ import annotations

import torch
from torch import Tensor

from detcam.adapters.shared.mask_scores import mask_weights
from detcam.geometry import Geometry
from detcam.types import Objects

CLASS_TARGETS = ("class", "prob", "margin")
SIDES = ("left", "top", "right", "bottom")
BOX_TARGETS = ("box", *SIDES)


def corners(boxes: Tensor) -> Tensor:
    """[N, 4] (cx, cy, w, h) as (x1, y1, x2, y2)."""
    center, size = boxes[:, :2], boxes[:, 2:]
    return torch.cat([center - size / 2, center + size / 2], dim=1)


def sigmoid_candidates(logits: Tensor, boxes: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """One candidate for every query of a head with a sigmoid for each class; see `Adapter.candidates`.

    Args:
        logits: [B, Q, nc].
        boxes: [B, Q, 4] (cx, cy, w, h) as shares of the network's input.
        size: (height, width) of that input.

    Returns:
        boxes [B, Q, 4] (x1, y1, x2, y2) in its pixels, probabilities [B, Q, nc], and the best of each [B, Q].
    """
    height, width = size
    shares = boxes.float()
    probabilities = logits.float().sigmoid()
    pixels = corners(shares.flatten(0, 1)).view_as(shares) * shares.new_tensor([width, height] * 2)
    return pixels, probabilities, probabilities.amax(dim=2)


def class_score(logits: Tensor, classes: Tensor, target: str, softmax: bool = False) -> Tensor:
    """One scalar per object from the class logits of its query.

    Args:
        logits: [N, nc] logits of the kept queries; with `softmax` the last is that of "no object".
        classes: [N] int64.
        target: "class": the logit; "prob": its sigmoid or softmax; "margin": the logit minus the best other one, "no
            object" included.
        softmax: whether the classes share a softmax.

    Returns:
        [N].
    """
    own = logits.gather(1, classes[:, None]).squeeze(1)
    if target == "class":
        return own
    if target == "prob":
        return (own - logits.logsumexp(dim=1)).exp() if softmax else own.sigmoid()
    return own - logits.scatter(1, classes[:, None], float("-inf")).amax(dim=1)


def side_score(boxes: Tensor, target: str) -> Tensor:
    """Where the sides lie, signed so that the scalar grows as the box grows to that side.

    Args:
        boxes: [N, 4] (cx, cy, w, h) in pixels of the network's input.
        target: "box" for all sides, or the name of one.

    Returns:
        (-x1, -y1, x2, y2): [N, 4] for all sides, else [N].
    """
    sides = corners(boxes) * boxes.new_tensor([-1.0, -1.0, 1.0, 1.0])
    return sides if target == "box" else sides[:, SIDES.index(target)]


def mask_score(logits: Tensor, fixed: Tensor, target: str, inside: Tensor | None = None) -> Tensor:
    """The mean of mask logits over each object's own fixed binary mask, or its margin over a ring around.

    Args:
        logits: [N, h, w] with the graph.
        fixed: [N, h, w] the same logits as numbers: the mask is where they are positive, and where none is, the
            strongest cell.
        target: one of `detcam.adapters.shared.mask_scores.MASK_TARGETS`.
        inside: [N, h, w] bool, the cells that lie on the picture; None: all.

    Returns:
        [N].
    """
    seen = fixed if inside is None else fixed.masked_fill(~inside, float("-inf"))
    best = seen.flatten(1).amax(dim=1).clamp(max=torch.finfo(seen.dtype).tiny)[:, None, None]
    return (logits * mask_weights(seen >= best, target, inside).to(logits.dtype)).sum(dim=(1, 2))


def query_objects(
    boxes: Tensor,  # [N, 4]
    scores: Tensor,  # [N]
    classes: Tensor,  # [N] int64
    queries: Tensor,  # [N] int64
    names: dict[int, str],
    geometry: Geometry,
    masks: Tensor | None = None,  # [N, H, W] bool, in source pixels
) -> Objects:
    """Objects of one picture; `boxes` are (x1, y1, x2, y2) in source pixels, not clipped, as the libraries give them.

    Objects that are not finite are left out: a broken model's NaN stays inside.
    """
    found = Objects(
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
    return found.select(boxes.isfinite().all(dim=1).nonzero().flatten())
