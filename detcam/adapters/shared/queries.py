"""Detectors with queries: scores, candidates and objects from the class logits and the box of each query."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from detcam.adapters.base import Adapter
from detcam.adapters.shared.attention import AttentionPlan, attention_plan
from detcam.adapters.shared.mask_scores import MASK_TARGETS, mask_score
from detcam.adapters.shared.scores import BOX_TARGETS, CLASS_TARGETS, class_score, side_score, sides_from_corner
from detcam.boxes import corners
from detcam.geometry import Geometry
from detcam.types import Objects, image_index


@dataclass(frozen=True)
class QueryOutputs:
    """Raw outputs for B images, Q queries and nc classes ("no object" included), with the graph."""

    logits: Tensor  # [B, Q, nc] class logits
    boxes: Tensor  # [B, Q, 4] (cx, cy, w, h) as shares of the image
    sizes: Tensor  # [B, 2] (height, width) of each image in the network's input, in pixels
    masks: Tensor | None = None  # [B, Q, h, w] mask logits, or None

    def scale(self) -> Tensor:
        """[B, 4] (width, height, width, height) of each image in the network's input, in pixels."""
        return self.sizes.flip(1).repeat(1, 2)

    def cells_inside(self) -> Tensor | None:
        """[B, h, w] bool: the cells of the masks with their centre on the image; None: all."""
        return None


class QueryAdapter(Adapter):
    """Base of the detectors with queries. The scalar is the class logit, or a side of the box, of the kept query."""

    targets: ClassVar[tuple[str, ...]] = (*CLASS_TARGETS, *BOX_TARGETS)
    levels = 1
    task = "detect"
    softmax = False  # whether the classes share a softmax with a last class "no object"
    clipped: ClassVar[bool] = False  # whether boxes of `objects_at` are clipped to the image

    def score(self, outputs: Any, objects: list[Objects], target: str) -> Tensor:
        image = image_index(objects, outputs.logits.device)
        query = torch.cat([o.index for o in objects])
        if target in MASK_TARGETS:
            fixed = torch.cat([o.mask_logits for o in objects if o.mask_logits is not None])
            inside = outputs.cells_inside()
            return mask_score(outputs.masks[image, query], fixed, target, None if inside is None else inside[image])
        if target in BOX_TARGETS:
            return side_score(sides_from_corner(outputs.boxes[image, query] * outputs.scale()[image]), target)
        classes = torch.cat([o.class_ids for o in objects])
        background = -1 if self.softmax else None
        return class_score(outputs.logits[image, query], classes, target, self.softmax, background)

    @torch.no_grad()
    def candidates(self, outputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        """See `Adapter.candidates`: one candidate per query, with a sigmoid for each class."""
        shares, probabilities = outputs.boxes.float(), outputs.logits.float().sigmoid()
        boxes = corners(shares.flatten(0, 1)).view_as(shares) * outputs.scale()[:, None]
        return boxes, probabilities, probabilities.amax(dim=2)

    @torch.no_grad()
    def objects_at(self, outputs: Any, candidates: Tensor, class_ids: Tensor, geometry: Geometry) -> Objects:
        """See `Adapter.objects_at`: queries."""
        boxes, probabilities, _ = self.candidates(outputs)
        if self.clipped:
            sources = geometry.to_source(boxes[0, candidates])
        else:
            sources = shares_to_source(outputs.boxes[0, candidates], geometry)
        scores = probabilities[0, candidates, class_ids]
        objects = query_objects(sources, scores, class_ids, candidates, self.names, geometry)
        return with_mask_logits(objects, outputs.masks, 0)

    def attention(self) -> AttentionPlan:
        return attention_plan(self.module, self.family)


def whole_inputs(batch: Tensor) -> Tensor:
    """[B, 2] int64: (height, width) of the images of a batch [B, C, h, w] without padding."""
    return torch.tensor([batch.shape[2:]] * len(batch), device=batch.device)


def shares_to_source(shares: Tensor, geometry: Geometry) -> Tensor:
    """[N, 4] float32 (x1, y1, x2, y2) in source pixels of boxes [N, 4] (cx, cy, w, h) as shares of the image."""
    height, width = geometry.source
    boxes = corners(shares.float())
    return boxes * boxes.new_tensor([width, height] * 2)


def strongest(scores: Tensor, count: int) -> Tensor:
    """[n] int64: the positions of the `count` largest scores [N], in ascending order."""
    return scores.argsort(descending=True, stable=True)[:count].sort().values


def with_mask_logits(objects: Objects, masks: Tensor | None, image: int) -> Objects:
    """The objects of an image with the mask logits of their queries, from masks [B, Q, h, w]."""
    return objects if masks is None else replace(objects, mask_logits=masks[image, objects.index].float())


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
