"""Raw outputs of a YOLO head, and their scalars: class logits, box sides, mask logits, keypoints."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from detcam.adapters.base import Readout, Source
from detcam.adapters.shared.mask_scores import MASK_PATHS, MASK_TARGETS, mask_weights
from detcam.adapters.shared.scores import BOX_TARGETS, CLASS_TARGETS, as_columns, class_score, side_score
from detcam.adapters.shared.segments import bounds
from detcam.types import Objects, image_index

TOGETHER = 8  # objects whose mask windows have one size


@dataclass(frozen=True)
class YoloOutputs:
    """Raw outputs of a YOLO head for B images and A anchors; all tensors but `decoded` carry the graph."""

    logits: Tensor  # [B, nc, A] class logits before the sigmoid
    sides: Tensor  # [B, 4, A] distances from the anchor to the box's left, top, right and bottom, in network pixels
    decoded: Tensor  # input of the post-processing: [B, 4 + nc + K, A], or [B, n, 6 + K] of an end-to-end head
    cells: tuple[tuple[int, int], ...]  # the (h, w) of each feature level; anchors run over the levels, row by row
    coefficients: Tensor | None  # [B, K, A] mask coefficients, or None
    prototypes: Tensor | None  # [B, K, h, w] mask prototypes, or None
    maps: dict[str, list[Tensor]]  # outputs of the head's branches by name: [B, C, h, w] for each feature level
    raw: dict[str, Tensor | None]  # what the head made of them, by the same names: [B, C, A], where the head has it
    # [B, nc, D] embeddings of the classes' texts, if the class branch outputs embeddings, or None.
    texts: Tensor | None = None
    angles: Tensor | None = None  # [B, 1, A] rotation of the boxes in radians, or None
    keypoints: dict[str, Tensor] = field(default_factory=dict)  # target -> [B, M, A], see `point_scalars`


def logits_of(logits: Tensor | None, probabilities: Tensor) -> Tensor:
    """The logits, if the head returns their sigmoid; else those of the scores that it returns, as edited heads do."""
    if logits is not None and torch.allclose(probabilities, logits.sigmoid(), 1e-3, 1e-5, equal_nan=True):
        return logits
    return probabilities.logit(torch.finfo(probabilities.dtype).eps)


def point_scalars(raw: Tensor | None, decoded: Tensor, head: Any, numbers: dict[str, int]) -> dict[str, Tensor]:
    """From each target to [B, 1, A] visibility logits; without visibility, [B, 2, A] x and y in network pixels.

    `raw` are K keypoints [B, K * D, A] before decoding, or None, and `decoded` what the head returns: x and y, and if D
    is 3 the visibility. `numbers` has the keypoint of each target of a pose head.
    """
    if not numbers:
        return {}
    points = decoded.unflatten(1, tuple(head.kpt_shape))  # [B, K, D, A]
    if points.shape[2] > 2:
        points = logits_of(None if raw is None else raw.view_as(points)[:, :, 2:], points[:, :, 2:])
    return {target: points[:, number] for target, number in numbers.items()}


def scores(outputs: YoloOutputs, objects: list[Objects], target: str, head: Any) -> Tensor:
    """Differentiable scalars of the objects of all images: [N], [N, 4] for all sides, [N, 2] for a place."""
    image = image_index(objects, outputs.logits.device)
    anchor = torch.cat([o.index for o in objects])
    classes = torch.cat([o.class_ids for o in objects])
    if target in CLASS_TARGETS:
        return class_score(outputs.logits[image, :, anchor], classes, target)
    if target in BOX_TARGETS:
        return side_score(outputs.sides[image, :, anchor], target)
    if target in outputs.keypoints:
        return outputs.keypoints[target][image, :, anchor].squeeze(1)  # [N, M]
    assert outputs.coefficients is not None
    assert outputs.prototypes is not None
    pooled = _pooled(outputs.prototypes, _mask_weights(outputs, objects, head, target), image)
    coefficients = outputs.coefficients[image, :, anchor]
    if target == "mask-coefficients":
        pooled = pooled.detach()
    if target == "mask-prototypes":
        coefficients = coefficients.detach()
    return (pooled * coefficients).sum(dim=1)


def readouts(
    outputs: YoloOutputs, objects: list[Objects], target: str, head: Any, contrast: Any = None
) -> list[Readout] | None:
    """See `Adapter.readouts`: one cell of a branch's last convolution; for masks also the prototypes.

    None where the model's scores are not the outputs of the branch: an edited head may add to them, or scale them.

    `contrast` are the modules that compare embeddings with texts, one per feature level, or None.
    """
    masked = target in (*MASK_TARGETS, *MASK_PATHS)
    branch = "mask_head" if masked else "cls_head" if target in CLASS_TARGETS else "box_head"
    if (columns := outputs.keypoints.get(target)) is not None:
        branch = "pose_head"
    maps, raw = outputs.maps.get(branch, []), outputs.raw[branch]
    if len(maps) != len(outputs.cells) or raw is None or (columns is not None and not raw.requires_grad):
        return None
    levels = torch.cat([o.level for o in objects])
    cells = torch.cat([o.cells for o in objects])
    classes = torch.cat([o.class_ids for o in objects])
    anchors = torch.cat([o.index for o in objects])
    images = image_index(objects, levels.device)
    weights = _mask_weights(outputs, objects, head, target) if masked else None
    results = []
    for level in levels.unique().tolist():
        members = (levels == level).nonzero().flatten()
        for some in [members] if weights is None else _by_size(members, weights):
            tensor, place, image = maps[level], cells[some], images[some]
            if tensor.shape[2:] != outputs.cells[level]:
                return None
            values = tensor.detach()[image, :, place[:, 0], place[:, 1]]  # [n, C]
            logits = partial(_contrasted, None if branch != "cls_head" else contrast, outputs.texts, image, level)
            if not _same(logits(values), raw.detach()[image, :, anchors[some]]):
                return None
            if columns is not None:
                # Decoding treats each anchor alone, so one backward is that of all anchors.
                ones, options = torch.ones_like(columns[:, 0]), {"retain_graph": True, "materialize_grads": True}
                slopes = [torch.autograd.grad(column, raw, ones, **options)[0] for column in columns.unbind(1)]
                gradients = torch.stack([slope[image, :, anchors[some]] for slope in slopes], dim=1)
                sources = [Source(tensor, gradients[..., None, None], place)]
            elif weights is None:
                gradients = _cell_gradients(values, classes[some], target, head, level, logits)
                sources = [Source(tensor, gradients[..., None, None], place)]
            else:
                assert outputs.prototypes is not None
                pooled = _pooled(outputs.prototypes.detach(), weights[some], image)
                window, start = _windows(weights[some])
                products = values[:, :, None, None] * window[:, None]  # [n, K, kh, kw]
                sources = []
                if target != "mask-prototypes":
                    sources.append(Source(tensor, pooled[:, None, :, None, None], place))
                if target != "mask-coefficients":
                    sources.append(Source(outputs.prototypes, products[:, None].to(values.dtype), start))
            results.append(Readout(some, level, tuple(sources)))
    return results


def _same(values: Tensor, expected: Tensor) -> bool:
    """Whether the outputs of a branch at the objects' cells are those of the model, up to rounding."""
    tolerance = max(1e-4, 32 * torch.finfo(values.dtype).eps)
    return values.shape == expected.shape and torch.allclose(values, expected, tolerance, tolerance, equal_nan=True)


def _by_size(members: Tensor, weights: Tensor) -> list[Tensor]:
    """The objects in groups of similar mask size; the windows of a group are as large as its largest mask."""
    sides = [(weights[members] != 0).any(dim=axis).sum(dim=1) for axis in (1, 2)]
    return list(members[torch.maximum(*sides).argsort(stable=True)].split(TOGETHER))


def _contrasted(contrast: Any, texts: Tensor | None, image: Tensor, level: int, values: Tensor) -> Tensor:
    """[n, nc] class logits from the output of the class branch at n cells, [n, C]: logits or embeddings."""
    if contrast is None or texts is None:
        return values
    return contrast[level](values[:, :, None, None], texts[image])[:, :, 0, 0]


def _cell_gradients(
    values: Tensor,  # [n, C]
    classes: Tensor,  # [n] int64
    target: str,
    head: Any,
    level: int,
    logits: Callable[[Tensor], Tensor],
) -> Tensor:
    """[n, M, C] gradients of M scalars at the output of a branch at the objects' cells, [n, C]."""
    with torch.enable_grad():
        values = values.requires_grad_()
        if target in CLASS_TARGETS:
            scalars = class_score(logits(values), classes, target)
        else:
            scalars = side_score(head.dfl(values[..., None]).squeeze(2) * head.stride[level], target)
        columns = as_columns(scalars).unbind(1)
        gradients = [torch.autograd.grad(column.sum(), values, retain_graph=True)[0] for column in columns]
    return torch.stack(gradients, dim=1)


def _pooled(prototypes: Tensor, weights: Tensor, image: Tensor) -> Tensor:
    """[N, K] sum of each prototype times each object's weights: mean(c . P) over a mask = c . mean(P)."""
    pooled = prototypes.new_zeros((len(image), prototypes.shape[1]))
    for i in image.unique().tolist():
        of_image = (image == i).nonzero().flatten()
        means = torch.einsum("nhw,khw->nk", weights[of_image].to(prototypes.dtype), prototypes[i])
        pooled = pooled.index_put((of_image,), means)
    return pooled


def _mask_weights(outputs: YoloOutputs, objects: list[Objects], head: Any, target: str) -> Tensor:
    """[N, h, w] float32: weights of the mask logits, over each object's fixed predicted mask inside its box.

    If the mask is empty inside the box, all weight is at the strongest cell of the box.
    """
    assert outputs.prototypes is not None
    scale = 2.0 / float(head.stride.min())  # prototypes have twice the resolution of the finest level
    logits = torch.cat([o.mask_logits for o in objects if o.mask_logits is not None])
    within = inside(torch.cat([o.network_boxes for o in objects]) * scale, *outputs.prototypes.shape[2:])
    masks = (logits > 0) & within
    for i in (~masks.flatten(1).any(dim=1)).nonzero().flatten().tolist():
        allowed = within[i] if within[i].any() else torch.ones_like(within[i])
        masks[i].view(-1)[logits[i].masked_fill(~allowed, float("-inf")).argmax()] = True
    return mask_weights(masks, target)


def inside(boxes: Tensor, height: int, width: int) -> Tensor:
    """[N, height, width] bool: the cells whose index lies in [x1, x2) x [y1, y2), as Ultralytics crops masks."""
    x = torch.arange(width, device=boxes.device)
    y = torch.arange(height, device=boxes.device)
    x1, y1, x2, y2 = boxes.unbind(1)
    columns = (x >= x1[:, None]) & (x < x2[:, None])
    rows = (y >= y1[:, None]) & (y < y2[:, None])
    return rows[:, :, None] & columns[:, None, :]


def has_mask(logits: Tensor, boxes: Tensor, network: tuple[int, int]) -> Tensor:
    """[N] bool: whether a mask, upsampled to the network's input, has a pixel inside the box; else predict drops it."""
    keep = torch.ones(len(logits), dtype=torch.bool, device=logits.device)
    for i in range(len(logits)):
        mask = interpolate(logits[i][None, None], network, mode="bilinear")[0] > 0
        keep[i] = (mask & inside(boxes[i : i + 1], *network)).any()
    return keep


def _windows(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Windows [n, kh, kw] of one size around the nonzero cells of weights [n, h, w], and their starts [n, 2]."""
    first, last = bounds(weights)
    height, width = (last - first).amax(dim=0).tolist()
    start = torch.minimum(first, first.new_tensor([weights.shape[1] - height, weights.shape[2] - width]))
    starts = start.tolist()
    return torch.stack([w[y : y + height, x : x + width] for w, (y, x) in zip(weights, starts, strict=True)]), start
