"""Class and side scores: the differentiable scalars of kept candidates, shared by all families of detectors."""

import torch
from torch import Tensor

from detcam.boxes import corners

CLASS_TARGETS = ("class", "prob", "margin")
SIDES = ("left", "top", "right", "bottom")
BOX_TARGETS = ("box", *SIDES)


def at_class(
    values: Tensor,  # [N, K]
    classes: Tensor,  # [N] int64
) -> Tensor:
    """[N] the value of each candidate's class: its logit, or its probability."""
    return values.gather(1, classes[:, None]).squeeze(1)


def class_score(
    logits: Tensor,  # [N, K]
    classes: Tensor,  # [N] int64
    target: str,
    softmax: bool = False,
    background: int | None = None,
) -> Tensor:
    """[N] one scalar per candidate, from the logits of its classes.

    Args:
        logits: class logits; for "prob", a column for the background or "no object" is a class like the others.
        classes: the class of each candidate.
        target: "class": the logit; "prob": its sigmoid or softmax; "margin": the logit minus the best other class's.
        softmax: whether the classes share a softmax.
        background: the column of the background or "no object", which is no other class for a margin unless it is the
            only one: "why this class" is another question than "why an object".
    """
    logit = at_class(logits, classes)
    if target == "class":
        return logit
    if target == "prob":
        return (logit - logits.logsumexp(dim=1)).exp() if softmax else logit.sigmoid()
    others = logits.scatter(1, classes[:, None], float("-inf"))
    if background is not None and logits.shape[1] > 2:
        others = others.index_fill(1, classes.new_tensor([background % logits.shape[1]]), float("-inf"))
    return logit - others.amax(dim=1)


def side_score(
    sides: Tensor,  # [N, 4] left, top, right, bottom
    target: str,
) -> Tensor:
    """The sides of each box, measured outwards: all four [N, 4] for the target "box", else the named side [N]."""
    return sides if target == "box" else sides[:, SIDES.index(target)]


def sides_from_corner(
    boxes: Tensor,  # [N, 4] (cx, cy, w, h)
) -> Tensor:
    """[N, 4] (-x1, -y1, x2, y2): where the sides lie, signed so that each number grows as the box grows."""
    return corners(boxes) * boxes.new_tensor([-1.0, -1.0, 1.0, 1.0])


def sides_from_centre(
    boxes: Tensor,  # [N, 4] xyxy
    origins: Tensor,  # [N, 4] xyxy
) -> Tensor:
    """[N, 4] distances from the centres of `origins` (anchors or proposals) to the sides of `boxes`."""
    centre = (origins[:, :2] + origins[:, 2:]) / 2
    return torch.cat([centre - boxes[:, :2], boxes[:, 2:] - centre], dim=1)


def as_columns(scalars: Tensor) -> Tensor:
    """[N, M] from M scalars per object, or [N, 1] from one scalar per object [N]."""
    return scalars if scalars.ndim == 2 else scalars[:, None]
