"""torchvision's two-stage detectors: Faster, Mask and Keypoint R-CNN, with any backbone."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from detcam.adapters.base import LayerPlan, Readout, Selection, Source
from detcam.adapters.shared.keypoints import KEYPOINT, keypoint_targets
from detcam.adapters.shared.mask_scores import MASK_TARGETS, mask_score
from detcam.adapters.shared.scores import (
    BOX_TARGETS,
    CLASS_TARGETS,
    as_columns,
    at_class,
    class_score,
    side_score,
    sides_from_centre,
)
from detcam.adapters.torchvision.base import Candidates, TorchvisionAdapter, class_names, image_list, map_names
from detcam.adapters.torchvision.roi_windows import roi_gradients, row_gradients
from detcam.geometry import Geometry
from detcam.types import Objects

SMALLEST_SIDE = 1e-2  # pixels: torchvision drops smaller boxes
MASK_THRESHOLD = 0.5
TOGETHER = 16  # proposals of similar size whose windows are computed together


@dataclass(frozen=True)
class RcnnOutputs:
    """Outputs of the backbone of a two-stage detector: the input of both stages."""

    images: Tensor  # [B, 3, h, w], the network's input
    features: dict[str, Tensor]  # the backbone's maps [B, C, h, w] by name, with the graph


class RcnnAdapter(TorchvisionAdapter):
    """Faster, Mask and Keypoint R-CNN.

    The scalar is read at the proposal of the kept box. Class logits share a softmax, so "prob" compares the class with
    the others, including the background; "margin" with the others alone. Sides are measured from the proposal's centre,
    in network pixels.
    The mask scalar is read at the final box, like the mask: the mean logit over the cells of the 28 x 28 mask that are
    predicted to belong to the object. A keypoint's scalar is its `keypoints_scores`: the peak of its heatmap.

    Proposals are constants, as in torchvision: a map shows what the second stage read, not why the first stage
    proposed the box. A score depends on the backbone's maps only, so `forward` ends there; `detect` computes the
    proposals and runs the second stage on all of them, `score` runs it on the proposals of the objects.

    A mask or keypoint may be read from another level than its object's class, so for Mask and Keypoint R-CNN the maps
    of all levels are added; only the map of the level that was read is not zero.
    """

    models = "Faster R-CNN, Mask R-CNN, Keypoint R-CNN: ResNet-50 v1 and v2, MobileNet, any backbone"
    targets = (*CLASS_TARGETS, *BOX_TARGETS, *MASK_TARGETS, KEYPOINT)
    origin = "torchvision.models.detection.generalized_rcnn"

    def __init__(self, module: Any, model: Any, imgsz: int | None = None, processor: Any = None) -> None:
        super().__init__(module, model, imgsz, processor)
        self.rpn, self.heads = module.rpn, module.roi_heads
        self.person = self.heads.has_keypoint()
        self.task = "segment" if self.heads.has_mask() else "pose" if self.person else "detect"
        missing = (KEYPOINT,) if self.task == "segment" else (*MASK_TARGETS, KEYPOINT)
        self.keypoints = keypoint_targets(getattr(self.heads.keypoint_predictor, "out_channels", 0), ("person",))
        self.available = (*(target for target in self.targets if target not in missing), *self.keypoints)
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
        """See `Adapter.detect`: torchvision's post-processing, which here keeps the number of the proposal."""
        sizes = [geometry.resized for geometry in geometries]
        proposals, logits, boxes = self._second_stage(outputs, sizes)
        kept = []
        for image in zip(logits, boxes, sizes, strict=True):
            candidates = self._candidates(*image, conf)
            kept.append(candidates.best(self.heads.nms_thresh, self.heads.detections_per_img, conf, max_det))
        rois = [p[k.index] for p, k in zip(proposals, kept, strict=True)]
        levels = self._levels(self.heads.box_roi_pool, rois)
        objects = []
        for candidates, geometry, level, roi in zip(kept, geometries, levels, rois, strict=True):
            cells = candidates.index.new_zeros((len(candidates.index), 2))
            objects.append(self._objects(candidates, geometry, logits[0].shape[1], level, cells, proposals=roi.float()))
        return self._with_masks(outputs, objects, geometries) if self.task == "segment" else objects

    def _second_stage(
        self, outputs: RcnnOutputs, sizes: list[tuple[int, int]]
    ) -> tuple[list[Tensor], tuple[Tensor, ...], tuple[Tensor, ...]]:
        """For each image: proposals [R, 4], logits [R, K] and the box of each class [R, K, 4].

        `sizes` are the (height, width) of the images without padding.
        """
        proposals, _ = self.rpn(image_list(outputs.images, sizes), outputs.features)
        pooled = self.heads.box_roi_pool(outputs.features, proposals, sizes)
        logits, deltas = self.heads.box_predictor(self.heads.box_head(pooled))
        counts = [len(p) for p in proposals]
        boxes = self.heads.box_coder.decode(deltas, proposals)
        boxes = boxes.view(len(deltas), deltas.shape[1] // 4, 4)  # without proposals they come out flat
        return proposals, logits.split(counts), boxes.split(counts)

    def _candidates(self, logits: Tensor, boxes: Tensor, size: tuple[int, int], conf: float) -> Candidates:
        """The pairs of proposal and class with a high enough score and a large enough box, without the background."""
        from torchvision.ops import clip_boxes_to_image, remove_small_boxes

        scores = logits.softmax(dim=1)
        proposal, label = (scores[:, 1:] > min(self.heads.score_thresh, conf)).nonzero().unbind(1)
        label = label + 1
        clipped = clip_boxes_to_image(boxes[proposal, label], size)
        candidates = Candidates(clipped, scores[proposal, label], label, proposal)
        return candidates.select(remove_small_boxes(clipped, SMALLEST_SIDE))

    def _levels(self, pool: Any, rois: list[Tensor]) -> list[Tensor]:
        """For each image the levels [n] that its boxes [n, 4] are pooled from."""
        counts = [len(r) for r in rois]
        if len(pool.scales) == 1:
            return [torch.zeros(n, dtype=torch.int64, device=self.device) for n in counts]
        return list(pool.map_levels(rois).split(counts))

    def _with_masks(self, outputs: RcnnOutputs, objects: list[Objects], geometries: list[Geometry]) -> list[Objects]:
        """The objects with masks in source pixels, pasted by torchvision, with threshold 0.5."""
        from torchvision.models.detection.roi_heads import paste_masks_in_image

        pool, boxes, _ = self._scored(objects, "mask")
        pooled = pool(outputs.features, boxes, [geometry.resized for geometry in geometries])
        logits = self._mask_logits(pooled, torch.cat([o.class_ids for o in objects])).float()
        masked = []
        for boxed, rows, geometry in zip(objects, logits.split([len(o) for o in objects]), geometries, strict=True):
            masks = torch.zeros((len(boxed), *geometry.source), dtype=torch.bool, device=self.device)
            for i, row in enumerate(rows.sigmoid()):  # mask by mask: as floats, all of them take too much memory
                pasted = paste_masks_in_image(row[None, None], boxed.boxes[i : i + 1], geometry.source)
                masks[i] = pasted[0, 0] > MASK_THRESHOLD
            masked.append(replace(boxed, mask_logits=rows, masks=masks))
        return masked

    def _mask_logits(self, pooled: Tensor, labels: Tensor) -> Tensor:
        """[n, 28, 28] mask logits for classes `labels` [n]."""
        logits: Tensor = self.heads.mask_predictor(self.heads.mask_head(pooled))  # [n, K, 28, 28]
        return logits[torch.arange(len(labels), device=labels.device), labels]

    def score(self, outputs: RcnnOutputs, objects: list[Objects], target: str) -> Tensor:
        pool, rois, score = self._scored(objects, target)
        if not sum(map(len, objects)):
            return outputs.images.new_zeros(0)
        scalars = score(pool(outputs.features, rois, [outputs.images.shape[2:]] * len(rois)))
        return scalars if scalars.shape[1] > 1 else scalars[:, 0]

    def readouts(self, outputs: RcnnOutputs, objects: list[Objects], target: str) -> list[Readout]:
        """See `Adapter.readouts`: the windows of the maps that RoIAlign read for each object."""
        pool, rois, score = self._scored(objects, target)
        with torch.no_grad():
            pooled = pool(outputs.features, rois, [outputs.images.shape[2:]] * len(rois))
        gradients = row_gradients(score, pooled)
        maps = [tensor for name, tensor in outputs.features.items() if name in pool.featmap_names]
        boxes, levels = torch.cat(rois), torch.cat(self._levels(pool, rois))
        extent = (boxes[:, 2:] - boxes[:, :2]).amax(dim=1)
        readouts = []
        for level in levels.unique().tolist():
            members = (levels == level).nonzero().flatten()
            for some in members[extent[members].argsort()].split(TOGETHER):
                size, scale = (maps[level].shape[2], maps[level].shape[3]), pool.scales[level]
                windows, start = roi_gradients(gradients[some], boxes[some], size, scale, pool.sampling_ratio)
                readouts.append(Readout(some, level, (Source(maps[level], windows, start),)))
        return readouts

    def _scored(self, objects: list[Objects], target: str) -> tuple[Any, list[Tensor], Callable[[Tensor], Tensor]]:
        """RoIAlign, boxes [N, 4] of each image, the function from pooled features [n, C, ph, pw] to scalars [n, M]."""
        labels = torch.cat([o.class_ids for o in objects])
        boxes = [o.network_boxes.to(self.dtype) for o in objects]
        if target in self.keypoints:
            return self.heads.keypoint_roi_pool, boxes, lambda x: self._peak(x, torch.cat(boxes), target)
        if target in MASK_TARGETS:
            logits = [o.mask_logits for o in objects if o.mask_logits is not None]
            return self.heads.mask_roi_pool, boxes, lambda x: self._mask_score(x, labels, torch.cat(logits), target)
        proposals = [o.proposals.to(self.dtype) for o in objects if o.proposals is not None]
        origins = torch.cat(proposals)
        return self.heads.box_roi_pool, proposals, lambda pooled: self._box_score(pooled, labels, origins, target)

    def _box_score(self, pooled: Tensor, labels: Tensor, origins: Tensor, target: str) -> Tensor:
        """[n, M] scalars of classes `labels` [n] and their boxes, from proposals `origins` [n, 4]."""
        logits, deltas = self.heads.box_predictor(self.heads.box_head(pooled))
        if target == "prob":
            return as_columns(at_class(logits.softmax(dim=1), labels))
        if target in CLASS_TARGETS:
            return as_columns(class_score(logits, labels, target, background=0))
        boxes = self.heads.box_coder.decode_single(deltas, origins).view(len(labels), -1, 4)
        boxes = boxes[torch.arange(len(labels), device=labels.device), labels]
        return as_columns(side_score(sides_from_centre(boxes, origins), target))

    def _peak(self, pooled: Tensor, boxes: Tensor, target: str) -> Tensor:
        """[n, 1] the highest logit of a keypoint's heatmaps, which torchvision resizes to the boxes [n, 4]."""
        from torchvision.models.detection.roi_heads import heatmaps_to_keypoints

        heatmaps = self.heads.keypoint_predictor(self.heads.keypoint_head(pooled))[:, self.keypoints[target]]
        return heatmaps_to_keypoints(heatmaps[:, None], boxes)[1]

    def _mask_score(self, pooled: Tensor, labels: Tensor, predicted: Tensor, target: str) -> Tensor:
        """[n, 1] mean mask logit over the masks `predicted` [n, 28, 28] > 0; at the maximum where a mask is empty."""
        return mask_score(self._mask_logits(pooled, labels), predicted, target)[:, None]

    @torch.no_grad()
    def candidates(self, outputs: RcnnOutputs) -> tuple[Tensor, Tensor, Tensor]:
        """See `Adapter.candidates`: each proposal with the box of its best class; the background's column is zero.

        Here proposals are clipped to the image with its padding.
        """
        size = (outputs.images.shape[2], outputs.images.shape[3])
        _, logits, boxes = self._second_stage(outputs, [size] * len(outputs.images))
        rows = []
        for image_logits, decoded in zip(logits, boxes, strict=True):
            scores = image_logits.float().softmax(dim=1)
            scores[:, 0] = 0
            confidence, label = scores.max(dim=1)
            best = decoded[torch.arange(len(label), device=label.device), label].float()
            rows.append((best, scores, confidence))
        # Empty proposals fill up images with fewer.
        first, second, third = (pad_sequence(list(column), batch_first=True) for column in zip(*rows, strict=True))
        return first, second, third

    @torch.no_grad()
    def image_candidates(self, outputs: RcnnOutputs, geometry: Geometry) -> tuple[Tensor, Tensor]:
        """See `Adapter.image_candidates`: each proposal with a box for each class; the background's column is zero."""
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
        clipped = clip_boxes_to_image(boxes[0][candidates, class_ids], geometry.resized)
        rois = proposals[0][candidates]
        level = self._levels(self.heads.box_roi_pool, [rois])[0]
        cells = candidates.new_zeros((len(candidates), 2))
        asked = Candidates(clipped, scores, class_ids, candidates)
        objects = self._objects(asked, geometry, logits[0].shape[1], level, cells, proposals=rois.float())
        return self._with_masks(outputs, [objects], [geometry])[0] if self.task == "segment" else objects

    def selection(self, iou: float) -> Selection:
        """See `Adapter.selection`: the model's overlap threshold."""
        return Selection(overlap=self.heads.nms_thresh)

    def class_names(self, count: int) -> dict[int, str]:
        """See `Adapter.class_names`; without the background."""
        return dict(enumerate(class_names(list(range(1, count)), count, self.names, self.person), 1))

    def layers(self, preset: str) -> LayerPlan:
        """See `Adapter.layers`; "level" are the maps of the pyramid that proposals are pooled from."""
        if preset == "level" and self.pooled_maps:
            return LayerPlan(tuple(self.pooled_maps.values()), True, "level" if self.task == "detect" else "sum")
        return super().layers(preset)
