"""What a YOLO head puts out, and the scalars that are read there: class logits, box sides, mask logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from detcam.adapters.base import Readout, Source
from detcam.adapters.shared.mask_scores import MASK_TARGETS, mask_weights
from detcam.types import Objects, image_index

CLASS_TARGETS = ("class", "prob", "margin")
SIDES = ("left", "top", "right", "bottom")
BOX_TARGETS = ("box", *SIDES)
PATHS = ("mask-coefficients", "mask-prototypes")  # the mask with the other factor of its logits held fixed
TOGETHER = 8  # objects whose masks are followed back in windows of one size


@dataclass(frozen=True)
class YoloOutputs:
    """Raw outputs of a YOLO head for B pictures and A anchors; all but `decoded` carry the graph.

    Attributes:
        logits: [B, nc, A] class logits before the sigmoid.
        sides: [B, 4, A] distances from the anchor to the box's left, top, right and bottom, in network pixels.
        decoded: what the head returned for post-processing: [B, 4 + nc + K, A], or [B, n, 6 + K] of an end-to-end head.
        cells: the (h, w) of each feature level; anchors run over the levels, row by row.
        coefficients: [B, K, A] mask coefficients, or None.
        prototypes: [B, K, h, w] mask prototypes, or None.
        maps: what each branch of the head put out, by its name: [B, C, h, w] for each feature level.
        texts: [B, nc, D] embeddings of the classes' texts, or None. Then the class branch puts out embeddings too.
        angles: [B, 1, A] how far boxes are turned, in radians, or None.
    """

    logits: Tensor
    sides: Tensor
    decoded: Tensor
    cells: tuple[tuple[int, int], ...]
    coefficients: Tensor | None
    prototypes: Tensor | None
    maps: dict[str, list[Tensor]]
    texts: Tensor | None = None
    angles: Tensor | None = None


def scores(outputs: YoloOutputs, objects: list[Objects], target: str, head: Any) -> Tensor:
    """The differentiable scalars of the objects of all pictures: [N], or [N, 4] for all sides."""
    image = image_index(objects, outputs.logits.device)
    anchor = torch.cat([o.index for o in objects])
    classes = torch.cat([o.class_ids for o in objects])
    if target in CLASS_TARGETS:
        return class_score(outputs.logits[image, :, anchor], classes, target)
    if target in BOX_TARGETS:
        return side_score(outputs.sides[image, :, anchor], target)
    assert outputs.coefficients is not None
    assert outputs.prototypes is not None
    pooled = _pooled(outputs.prototypes, _mask_shares(outputs, objects, head, target), image)
    coefficients = outputs.coefficients[image, :, anchor]
    if target == "mask-coefficients":
        pooled = pooled.detach()
    if target == "mask-prototypes":
        coefficients = coefficients.detach()
    return (pooled * coefficients).sum(dim=1)


def class_score(logits: Tensor, classes: Tensor, target: str) -> Tensor:
    """[N] logit, probability or margin (logit minus the best other logit) of `classes` [N] in `logits` [N, nc]."""
    own = logits.gather(1, classes[:, None]).squeeze(1)
    if target == "class":
        return own
    if target == "prob":
        return own.sigmoid()
    others = logits.scatter(1, classes[:, None], float("-inf"))
    return own - others.amax(dim=1)


def side_score(sides: Tensor, target: str) -> Tensor:
    """All four sides [N, 4], or one of them [N]."""
    return sides if target == "box" else sides[:, SIDES.index(target)]


def readouts(
    outputs: YoloOutputs, objects: list[Objects], target: str, head: Any, contrast: Any = None
) -> list[Readout]:
    """See `Adapter.readouts`: one cell of a branch's last convolution; for masks the prototypes beside it.

    `contrast` are the modules that compare embeddings with texts, one for each feature level, or None.
    """
    masked = target in (*MASK_TARGETS, *PATHS)
    branch = "mask_head" if masked else "cls_head" if target in CLASS_TARGETS else "box_head"
    levels = torch.cat([found.level for found in objects])
    cells = torch.cat([found.cells for found in objects])
    classes = torch.cat([found.class_ids for found in objects])
    images = image_index(objects, levels.device)
    shares = _mask_shares(outputs, objects, head, target) if masked else None
    found = []
    for level in levels.unique().tolist():
        members = (levels == level).nonzero().flatten()
        for some in [members] if shares is None else _by_size(members, shares):
            tensor, place, image = outputs.maps[branch][level], cells[some], images[some]
            values = tensor.detach()[image, :, place[:, 0], place[:, 1]]  # [n, C]
            if shares is None:
                logits = partial(_contrasted, contrast, outputs.texts, image, level)
                gradients = _cell_gradients(values, classes[some], target, head, level, logits)
                sources = [Source(tensor, gradients[..., None, None], place)]
            else:
                assert outputs.prototypes is not None
                pooled = _pooled(outputs.prototypes.detach(), shares[some], image)
                window, start = _bounds(shares[some])
                products = values[:, :, None, None] * window[:, None]  # [n, K, kh, kw]
                sources = []
                if target != "mask-prototypes":
                    sources.append(Source(tensor, pooled[:, None, :, None, None], place))
                if target != "mask-coefficients":
                    sources.append(Source(outputs.prototypes, products[:, None].to(values.dtype), start))
            found.append(Readout(some, level, tuple(sources)))
    return found


def _by_size(members: Tensor, shares: Tensor) -> list[Tensor]:
    """The objects in groups of about one size of mask: their windows are as large as the largest of the group."""
    sides = [(shares[members] != 0).any(dim=axis).sum(dim=1) for axis in (1, 2)]
    return list(members[torch.maximum(*sides).argsort(stable=True)].split(TOGETHER))


def _contrasted(contrast: Any, texts: Tensor | None, image: Tensor, level: int, values: Tensor) -> Tensor:
    """[n, nc] class logits from what the class branch put out at cells, [n, C]: these themselves, or embeddings."""
    if contrast is None or texts is None:
        return values
    logits: Tensor = contrast[level](values[:, :, None, None], texts[image])
    return logits[:, :, 0, 0]


def _cell_gradients(
    values: Tensor,  # [n, C]
    classes: Tensor,  # [n] int64
    target: str,
    head: Any,
    level: int,
    logits: Callable[[Tensor], Tensor],
) -> Tensor:
    """[n, M, C] gradients of M scalars with respect to what a branch put out at the objects' cells, [n, C]."""
    with torch.enable_grad():
        values = values.requires_grad_()
        if target in CLASS_TARGETS:
            scalars = class_score(logits(values), classes, target)
        else:
            scalars = side_score(head.dfl(values[..., None]).squeeze(2) * head.stride[level], target)
        columns = scalars[:, None] if scalars.ndim == 1 else scalars
        gradients = [torch.autograd.grad(s.sum(), values, retain_graph=True)[0] for s in columns.unbind(1)]
    return torch.stack(gradients, dim=1)


def _pooled(prototypes: Tensor, shares: Tensor, image: Tensor) -> Tensor:
    """[N, K] sum of each prototype times each object's shares: mean(c . P) over a region = c . mean(P)."""
    pooled = prototypes.new_zeros((len(image), prototypes.shape[1]))
    for i in image.unique().tolist():
        of_image = (image == i).nonzero().flatten()
        means = torch.einsum("nhw,khw->nk", shares[of_image].to(prototypes.dtype), prototypes[i])
        pooled = pooled.index_put((of_image,), means)
    return pooled


def _mask_shares(outputs: YoloOutputs, objects: list[Objects], head: Any, target: str) -> Tensor:
    """[N, h, w] float32: what each mask logit counts for, of each object's fixed predicted mask inside its box.

    Where the mask is empty inside the box, all of it is at the box's strongest cell.
    """
    assert outputs.prototypes is not None
    scale = 2.0 / float(head.stride.min())  # prototypes have twice the resolution of the finest level
    logits = torch.cat([found.mask_logits for found in objects if found.mask_logits is not None])
    within = inside(torch.cat([found.network_boxes for found in objects]) * scale, *outputs.prototypes.shape[2:])
    regions = (logits > 0) & within
    for i in (~regions.flatten(1).any(dim=1)).nonzero().flatten().tolist():
        allowed = within[i] if within[i].any() else torch.ones_like(within[i])
        regions[i].view(-1)[logits[i].masked_fill(~allowed, float("-inf")).argmax()] = True
    return mask_weights(regions, target)


def inside(boxes: Tensor, height: int, width: int) -> Tensor:
    """[N, height, width] bool: the cells whose index lies in [x1, x2) x [y1, y2), as Ultralytics crops masks."""
    x = torch.arange(width, device=boxes.device)
    y = torch.arange(height, device=boxes.device)
    x1, y1, x2, y2 = boxes.unbind(1)
    columns = (x >= x1[:, None]) & (x < x2[:, None])
    rows = (y >= y1[:, None]) & (y < y2[:, None])
    return rows[:, :, None] & columns[:, None, :]


def _bounds(shares: Tensor) -> tuple[Tensor, Tensor]:
    """Pieces [n, kh, kw] of shares [n, h, w] that hold all that is not zero, of one size, and their starts [n, 2]."""
    starts, lengths = [], []
    for axis, length in ((2, shares.shape[1]), (1, shares.shape[2])):
        used = (shares != 0).any(dim=axis).int()  # [n, length]
        first = used.argmax(dim=1)
        last = length - used.flip(1).argmax(dim=1)
        longest = int((last - first).max())
        starts.append(first.clamp(max=length - longest))
        lengths.append(longest)
    start = torch.stack(starts, dim=1)
    pieces = [s[y : y + lengths[0], x : x + lengths[1]] for s, (y, x) in zip(shares, start.tolist(), strict=True)]
    return torch.stack(pieces), start
