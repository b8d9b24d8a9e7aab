"""torchvision's two-stage detectors: Faster, Mask and Keypoint R-CNN, with any backbone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from detcam.adapters.base import LayerPlan, Readout, Selection, Source
from detcam.adapters.shared.mask_scores import MASK_TARGETS, mask_weights
from detcam.adapters.torchvision.base import (
    BOX_TARGETS,
    CLASS_TARGETS,
    Found,
    TorchvisionAdapter,
    class_names,
    columns,
    image_list,
    map_names,
    margin,
    own_logit,
    side_score,
)
from detcam.adapters.torchvision.roi_windows import region_gradients, row_gradients
from detcam.geometry import Geometry
from detcam.types import Objects

SMALLEST_SIDE = 1e-2  # pixels: torchvision drops smaller boxes
MASK_THRESHOLD = 0.5
TOGETHER = 16  # regions of about one size whose windows are made in one piece


@dataclass(frozen=True)
class RcnnOutputs:
    """What the first stage of a two-stage detector reads, and the second one too.

    Attributes:
        pictures: [B, 3, h, w] the network's input.
        features: the backbone's maps [B, C, h, w] by name, with the graph.
    """

    pictures: Tensor
    features: dict[str, Tensor]


class RcnnAdapter(TorchvisionAdapter):
    """Faster, Mask and Keypoint R-CNN.

    The scalar is read at the proposal that the kept box came from. Its class logit stands before a softmax, so "prob"
    and "margin" ask what sets the class apart from the others, the background among them. Sides are measured from the
    proposal's centre, in network pixels. The mask scalar is read at the final box, as the masks are: the mean logit
    over the cells of the 28 x 28 mask that are predicted to belong to the object.

    Proposals are constants, as in torchvision: a map tells what the second stage read, not why the first one looked
    there. So `forward` ends at the backbone's maps, which is all that a score depends on; `detect` finds the proposals
    and runs the second stage on all of them, `score` on those of the objects alone.

    A mask may be read from another level than its object's class, so for Mask R-CNN the maps of all levels are added:
    that of the level which was read is the only one that is not zero.
    """

    models = "Faster R-CNN, Mask R-CNN, Keypoint R-CNN: ResNet-50 v1 and v2, MobileNet, any backbone"
    targets = (*CLASS_TARGETS, *BOX_TARGETS, *MASK_TARGETS)
    origin = "torchvision.models.detection.generalized_rcnn"

    def __init__(self, module: nn.Module, model: Any, imgsz: int | None = None, processor: Any = None) -> None:
        super().__init__(module, model, imgsz, processor)
        network: Any = module
        self.rpn, self.heads = network.rpn, network.roi_heads
        self.person = self.heads.has_keypoint()
        self.task = "segment" if self.heads.has_mask() else "pose" if self.person else "detect"
        missing = () if self.task == "segment" else MASK_TARGETS
        self.available = tuple(target for target in self.targets if target not in missing)
        self.pooled_maps = {
            key: name for key, name in map_names(self.backbone).items() if key in self.heads.box_roi_pool.featmap_names
        }
        self.levels = max(len(self.pooled_maps), 1)

    def forward(self, batch: Tensor, max_det: int) -> RcnnOutputs:
        """See `Adapter.forward`: the backbone and its pyramid."""
        return RcnnOutputs(batch, self._features(batch))

    @torch.no_grad()
    def detect(
        self, outputs: RcnnOutputs, geometries: list[Geometry], conf: float, iou: float, max_det: int
    ) -> list[Objects]:
        """See `Adapter.detect`: torchvision's post-processing, with the proposal carried along."""
        sizes = [geometry.resized for geometry in geometries]
        proposals, logits, boxes = self._second_stage(outputs, sizes)
        found = []
        for picture in zip(logits, boxes, sizes, strict=True):
            candidates = self._candidates(*picture, conf)
            found.append(candidates.best(self.heads.nms_thresh, self.heads.detections_per_img, conf, max_det))
        regions = [p[one.index] for p, one in zip(proposals, found, strict=True)]
        levels = self._levels(self.heads.box_roi_pool, regions)
        objects = []
        for one, geometry, level, region in zip(found, geometries, levels, regions, strict=True):
            cells = one.index.new_zeros((len(one.index), 2))
            objects.append(self._objects(one, geometry, logits[0].shape[1], level, cells, proposals=region.float()))
        return self._with_masks(outputs, objects, geometries) if self.task == "segment" else objects

    def _second_stage(
        self, outputs: RcnnOutputs, sizes: list[tuple[int, int]]
    ) -> tuple[list[Tensor], tuple[Tensor, ...], tuple[Tensor, ...]]:
        """For each picture, whose (height, width) without padding is given: proposals [R, 4], logits [R, K] and the
        box of each class [R, K, 4]."""
        proposals, _ = self.rpn(image_list(outputs.pictures, sizes), outputs.features)
        pooled = self.heads.box_roi_pool(outputs.features, proposals, sizes)
        logits, deltas = self.heads.box_predictor(self.heads.box_head(pooled))
        counts = [len(p) for p in proposals]
        return proposals, logits.split(counts), self.heads.box_coder.decode(deltas, proposals).split(counts)

    def _candidates(self, logits: Tensor, boxes: Tensor, size: tuple[int, int], conf: float) -> Found:
        """Every (proposal, class) that scores high enough and has a box of some size; the background is no object."""
        from torchvision.ops import clip_boxes_to_image, remove_small_boxes

        scores = logits.softmax(dim=1)
        proposal, label = (scores[:, 1:] > min(self.heads.score_thresh, conf)).nonzero().unbind(1)
        label = label + 1
        clipped = clip_boxes_to_image(boxes[proposal, label], size)
        found = Found(clipped, scores[proposal, label], label, proposal)
        return found.select(remove_small_boxes(clipped, SMALLEST_SIDE))

    def _levels(self, pool: Any, regions: list[Tensor]) -> list[Tensor]:
        """For each picture the levels [n] that its regions [n, 4] are pooled from."""
        counts = [len(r) for r in regions]
        if len(pool.scales) == 1:
            return [torch.zeros(n, dtype=torch.int64, device=self.device) for n in counts]
        return list(pool.map_levels(regions).split(counts))

    def _with_masks(self, outputs: RcnnOutputs, objects: list[Objects], geometries: list[Geometry]) -> list[Objects]:
        """The objects with their masks in source pixels, pasted by torchvision and cut at one half."""
        from torchvision.models.detection.roi_heads import paste_masks_in_image

        pool, boxes, _ = self._scored(objects, "mask")
        pooled = pool(outputs.features, boxes, [geometry.resized for geometry in geometries])
        logits = self._mask_logits(pooled, torch.cat([found.class_ids for found in objects])).float()
        masked = []
        for found, rows, geometry in zip(objects, logits.split([len(o) for o in objects]), geometries, strict=True):
            masks = torch.zeros((len(found), *geometry.source), dtype=torch.bool, device=self.device)
            for i, row in enumerate(rows.sigmoid()):  # one at a time: in floating point all would take much memory
                pasted = paste_masks_in_image(row[None, None], found.boxes[i : i + 1], geometry.source)
                masks[i] = pasted[0, 0] > MASK_THRESHOLD
            masked.append(replace(found, mask_logits=rows, masks=masks))
        return masked

    def _mask_logits(self, pooled: Tensor, labels: Tensor) -> Tensor:
        """[n, 28, 28] mask logits for classes `labels` [n]."""
        logits: Tensor = self.heads.mask_predictor(self.heads.mask_head(pooled))  # [n, K, 28, 28]
        return logits[torch.arange(len(labels), device=labels.device), labels]

    def score(self, outputs: RcnnOutputs, objects: list[Objects], target: str) -> Tensor:
        """See `Adapter.score`."""
        pool, regions, score = self._scored(objects, target)
        if not sum(len(found) for found in objects):
            return outputs.pictures.new_zeros(0)
        scalars = score(pool(outputs.features, regions, [outputs.pictures.shape[2:]] * len(regions)))
        return scalars if scalars.shape[1] > 1 else scalars[:, 0]

    def readouts(self, outputs: RcnnOutputs, objects: list[Objects], target: str) -> list[Readout]:
        """See `Adapter.readouts`: the windows of the maps that RoIAlign read for each object."""
        pool, regions, score = self._scored(objects, target)
        with torch.no_grad():
            pooled = pool(outputs.features, regions, [outputs.pictures.shape[2:]] * len(regions))
        gradients = row_gradients(score, pooled)
        maps = [tensor for name, tensor in outputs.features.items() if name in pool.featmap_names]
        boxes, levels = torch.cat(regions), torch.cat(self._levels(pool, regions))
        extent = (boxes[:, 2:] - boxes[:, :2]).amax(dim=1)
        found = []
        for level in levels.unique().tolist():
            members = (levels == level).nonzero().flatten()
            for some in members[extent[members].argsort()].split(TOGETHER):
                size = (maps[level].shape[2], maps[level].shape[3])
                windows, start = region_gradients(
                    gradients[some], boxes[some], size, pool.scales[level], pool.sampling_ratio
                )
                found.append(Readout(some, level, (Source(maps[level], windows, start),)))
        return found

    def _scored(self, objects: list[Objects], target: str) -> tuple[Any, list[Tensor], Callable[[Tensor], Tensor]]:
        """How RoIAlign pools, the regions [N, 4] of each picture, and from pooled features [n, C, ph, pw] to [n, M]."""
        labels = torch.cat([found.class_ids for found in objects])
        if target in MASK_TARGETS:
            boxes = [found.network_boxes.to(self.dtype) for found in objects]
            logits = [found.mask_logits for found in objects if found.mask_logits is not None]
            return self.heads.mask_roi_pool, boxes, lambda x: self._mask_score(x, labels, torch.cat(logits), target)
        regions = [found.proposals.to(self.dtype) for found in objects if found.proposals is not None]
        origins = torch.cat(regions)
        return self.heads.box_roi_pool, regions, lambda pooled: self._box_score(pooled, labels, origins, target)

    def _box_score(self, pooled: Tensor, labels: Tensor, origins: Tensor, target: str) -> Tensor:
        """[n, M] scalars of classes `labels` [n] and their boxes, from regions `origins` [n, 4]."""
        logits, deltas = self.heads.box_predictor(self.heads.box_head(pooled))
        if target == "class":
            return columns(own_logit(logits, labels))
        if target == "prob":
            return columns(own_logit(logits.softmax(dim=1), labels))
        if target == "margin":
            return columns(margin(logits, labels))
        boxes = self.heads.box_coder.decode_single(deltas, origins).view(len(labels), -1, 4)
        boxes = boxes[torch.arange(len(labels), device=labels.device), labels]
        return columns(side_score(boxes, origins, target))

    def _mask_score(self, pooled: Tensor, labels: Tensor, predicted: Tensor, target: str) -> Tensor:
        """[n, 1] mean mask logit over the masks `predicted` [n, 28, 28] > 0; at its maximum where that is empty."""
        regions = (predicted > 0) | (predicted == predicted.amax(dim=(1, 2), keepdim=True))
        logits = self._mask_logits(pooled, labels)
        return (logits * mask_weights(regions, target).to(logits.dtype)).sum(dim=(1, 2))[:, None]

    @torch.no_grad()
    def candidates(self, outputs: RcnnOutputs) -> tuple[Tensor, Tensor, Tensor]:
        """See `Adapter.candidates`: each proposal with the box of its best class; the background's column is zero.

        Proposals are clipped to the padded picture here, not to the picture itself.
        """
        size = (outputs.pictures.shape[2], outputs.pictures.shape[3])
        _, logits, boxes = self._second_stage(outputs, [size] * len(outputs.pictures))
        most = max(len(rows) for rows in logits)
        rows = []
        for picture, decoded in zip(logits, boxes, strict=True):
            scores = picture.float().softmax(dim=1)
            scores[:, 0] = 0
            confidence, label = scores.max(dim=1)
            own = decoded[torch.arange(len(label), device=label.device), label].float()
            missing = (0, 0, 0, most - len(label))  # pictures differ in proposals: empty ones fill up
            pad = nn.functional.pad
            rows.append((pad(own, missing), pad(scores, missing), pad(confidence, missing[2:])))
        first, second, third = (torch.stack(column) for column in zip(*rows, strict=True))
        return first, second, third

    @torch.no_grad()
    def image_candidates(self, outputs: RcnnOutputs, geometry: Geometry) -> tuple[Tensor, Tensor]:
        """See `Adapter.considered`: each proposal with a box for each class; the background's column is zero."""
        _, logits, boxes = self._second_stage(outputs, [geometry.resized])
        scores = logits[0].float().softmax(dim=1)
        scores[:, 0] = 0
        return boxes[0].float(), scores

    @torch.no_grad()
    def objects_at(self, outputs: RcnnOutputs, candidates: Tensor, class_ids: Tensor, geometry: Geometry) -> Objects:
        """See `Adapter.objects_at`: proposals."""
        from torchvision.ops import clip_boxes_to_image

        proposals, logits, boxes = self._second_stage(outputs, [geometry.resized])
        scores = logits[0].softmax(dim=1)[candidates, class_ids]
        own = clip_boxes_to_image(boxes[0][candidates, class_ids], geometry.resized)
        regions = proposals[0][candidates]
        level = self._levels(self.heads.box_roi_pool, [regions])[0]
        cells = candidates.new_zeros((len(candidates), 2))
        found = Found(own, scores, class_ids, candidates)
        objects = self._objects(found, geometry, logits[0].shape[1], level, cells, proposals=regions.float())
        return self._with_masks(outputs, [objects], [geometry])[0] if self.task == "segment" else objects

    def selection(self, iou: float) -> Selection:
        """See `Adapter.selection`: the model's own overlap."""
        return Selection(overlap=self.heads.nms_thresh)

    def class_names(self, count: int) -> dict[int, str]:
        """See `Adapter.class_names`; the background cannot be asked for."""
        return dict(enumerate(class_names(list(range(1, count)), count, self.person), 1))

    def layers(self, preset: str) -> LayerPlan:
        """See `Adapter.layers`; of the pyramid's maps, those that regions are pooled from."""
        if preset == "level" and self.pooled_maps:
            return LayerPlan(tuple(self.pooled_maps.values()), True, "sum" if self.task == "segment" else "level")
        return super().layers(preset)
