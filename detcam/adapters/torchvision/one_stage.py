"""Base of torchvision's one-stage detectors."""

from abc import abstractmethod
from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from detcam.adapters.base import Readout, Selection, Source
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
from detcam.geometry import Geometry
from detcam.types import Objects, image_index


@dataclass(frozen=True)
class OneStageOutputs:
    """Raw outputs of a one-stage detector for B images and A anchors; all tensors but the anchors carry the graph."""

    logits: Tensor  # [B, A, K] class logits
    deltas: Tensor  # [B, A, 4] encoded boxes
    centreness: Tensor | None  # [B, A, 1] logits of FCOS, else None
    anchors: Tensor  # [A, 4] xyxy in network pixels; level by level, row by row, several anchors in each cell
    cells: tuple[tuple[int, int], ...]  # the (h, w) of each feature level
    # Outputs of the last layers of each branch, [B, anchors of a cell * columns, h, w] for each level.
    maps: dict[str, list[Tensor]]


@dataclass(frozen=True)
class AnchorRows:
    """Raw outputs at the anchors of n objects: logits [n, K], deltas [n, 4] and centre-ness [n, 1]."""

    logits: Tensor
    deltas: Tensor
    centreness: Tensor | None


class OneStageAdapter(TorchvisionAdapter):
    """Base of the one-stage detectors: the scalar is read at the anchor of the kept box.

    "prob" is the score that the model reports. Sides are measured from the anchor's centre, in network pixels.
    """

    targets: ClassVar[tuple[str, ...]] = (*CLASS_TARGETS, *BOX_TARGETS)
    background: ClassVar[int | None] = None  # its column, if the classes share a softmax with it

    def __init__(self, module: Any, model: Any, imgsz: int | None = None, processor: Any = None) -> None:
        super().__init__(module, model, imgsz, processor)
        self.network = module
        classes = getattr(getattr(module.head, "classification_head", None), "num_classes", 2)
        self.available = self._available(classes)
        self.levels = max(len(map_names(self.backbone)), 1)
        self.per_cell: list[int] = module.anchor_generator.num_anchors_per_location()
        self._maps: defaultdict[str, list[Tensor]] = defaultdict(list)
        try:
            branches = self._last_layers()
        except AttributeError:  # a custom head: each score has a plain backward
            branches = {}
        for branch, layers in branches.items():
            for layer in layers:
                layer.register_forward_hook(partial(self._keep, branch))

    @abstractmethod
    def _last_layers(self) -> dict[str, list[Any]]:
        """The last modules of the branches "logits", "deltas" and "centreness"; each runs once per level."""

    def _keep(self, branch: str, module: nn.Module, args: object, output: Tensor) -> None:
        self._maps[branch].append(output)

    def forward(self, batch: Tensor, max_det: int) -> OneStageOutputs:
        features = list(self._features(batch).values())
        self._maps.clear()
        raw = self.network.head(features)
        maps, self._maps = dict(self._maps), defaultdict(list)  # else the adapter would keep the graph alive
        size = (batch.shape[2], batch.shape[3])
        with torch.no_grad():  # all images of a batch have the same anchors
            anchors = self.network.anchor_generator(image_list(batch, [size] * len(batch)), features)[0]
        cells = tuple((int(f.shape[2]), int(f.shape[3])) for f in features)
        return OneStageOutputs(raw["cls_logits"], raw["bbox_regression"], raw.get("bbox_ctrness"), anchors, cells, maps)

    @torch.no_grad()
    def detect(
        self, outputs: OneStageOutputs, geometries: list[Geometry], conf: float, iou: float, max_det: int
    ) -> list[Objects]:
        """See `Adapter.detect`: torchvision's post-processing, with the anchor carried along."""
        from torchvision.ops import clip_boxes_to_image

        scores = self._scores(outputs.logits, outputs.centreness)  # [B, A, K]
        objects = []
        for image, geometry in enumerate(geometries):
            index, labels = self._candidates(scores[image], outputs, min(self.network.score_thresh, conf))
            boxes = self._decode(outputs.deltas[image, index], outputs.anchors[index])
            boxes = clip_boxes_to_image(boxes, geometry.resized)
            candidates = Candidates(boxes, scores[image, index, labels], labels, index)
            kept = candidates.best(self.network.nms_thresh, self.network.detections_per_img, conf, max_det)
            level, _, cells = self._places(outputs, kept.index)
            objects.append(self._objects(kept, geometry, outputs.logits.shape[2], level, cells))
        return objects

    @abstractmethod
    def _scores(self, logits: Tensor, centreness: Tensor | None) -> Tensor:
        """The scores [..., K] that the model reports, from logits [..., K] and the centre-ness [..., 1]."""

    @abstractmethod
    def _candidates(self, scores: Tensor, outputs: OneStageOutputs, least: float) -> tuple[Tensor, Tensor]:
        """The (anchors [n], classes [n]) that enter non-maximum suppression, from scores [A, K] above `least`."""

    def _decode(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        """Boxes [n, 4] in network pixels."""
        return self.network.box_coder.decode_single(deltas, anchors)

    def _per_level(self, outputs: OneStageOutputs) -> list[int]:
        """The number of anchors of each level."""
        return [h * w * n for (h, w), n in zip(outputs.cells, self.per_cell, strict=True)]

    def _places(self, outputs: OneStageOutputs, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """For anchors [n]: the level [n], the number in the cell [n] and the cell's (row, column) [n, 2]."""
        counts = index.new_tensor(self._per_level(outputs))
        level = torch.searchsorted(counts.cumsum(0), index, right=True)
        within = index - (counts.cumsum(0) - counts)[level]
        per_cell = index.new_tensor(self.per_cell)[level]
        cell, width = within // per_cell, index.new_tensor([w for _, w in outputs.cells])[level]
        return level, within % per_cell, torch.stack([cell // width, cell % width], dim=1)

    def score(self, outputs: OneStageOutputs, objects: list[Objects], target: str) -> Tensor:
        image = image_index(objects, self.device)
        index = torch.cat([o.index for o in objects])
        labels = torch.cat([o.class_ids for o in objects])
        centreness = None if outputs.centreness is None else outputs.centreness[image, index]
        rows = AnchorRows(outputs.logits[image, index], outputs.deltas[image, index], centreness)
        scalars = self._scalars(rows, outputs.anchors[index], labels, target)
        return scalars if scalars.shape[1] > 1 else scalars[:, 0]

    def _scalars(self, rows: AnchorRows, anchors: Tensor, labels: Tensor, target: str) -> Tensor:
        """[n, M] scalars of objects of classes `labels` [n], read at `anchors` [n, 4]."""
        if target == "prob":
            return as_columns(at_class(self._scores(rows.logits, rows.centreness), labels))
        if target in CLASS_TARGETS:
            return as_columns(class_score(rows.logits, labels, target, background=self.background))
        if target in BOX_TARGETS:
            sides = sides_from_centre(self._decode(rows.deltas, anchors), anchors)
            return as_columns(side_score(sides, target))
        assert rows.centreness is not None  # see `available`
        return rows.centreness

    def readouts(self, outputs: OneStageOutputs, objects: list[Objects], target: str) -> list[Readout] | None:
        """See `Adapter.readouts`: one cell of the branches' last maps, and in that cell the columns of one anchor."""
        if not outputs.maps:
            return None
        index = torch.cat([o.index for o in objects])
        labels = torch.cat([o.class_ids for o in objects])
        image = image_index(objects, self.device)
        levels, numbers, cells = self._places(outputs, index)
        readouts = []
        for level in levels.unique().tolist():
            some = (levels == level).nonzero().flatten()
            raw = {
                branch: self._cell_values(maps[level].detach(), image[some], cells[some], numbers[some], level)
                for branch, maps in outputs.maps.items()
            }
            with torch.enable_grad():
                leaves = {branch: values.requires_grad_() for branch, values in raw.items()}
                scalars = self._scalars(self._rows(leaves), outputs.anchors[index[some]], labels[some], target)
                gradients = [
                    torch.autograd.grad(s, list(leaves.values()), retain_graph=True, allow_unused=True)
                    for s in scalars.sum(dim=0).unbind()
                ]  # for each scalar and branch [n, columns], or None
            sources = []
            for branch, parts in zip(leaves, zip(*gradients, strict=True), strict=True):
                if parts[0] is not None:
                    spread = leaves[branch].new_zeros((len(some), len(parts), self.per_cell[level], parts[0].shape[1]))
                    spread[torch.arange(len(some), device=self.device), :, numbers[some]] = torch.stack(parts, dim=1)
                    sources.append(Source(outputs.maps[branch][level], spread.flatten(2)[..., None, None], cells[some]))
            readouts.append(Readout(some, level, tuple(sources)))
        return readouts

    def _cell_values(self, values: Tensor, image: Tensor, cells: Tensor, numbers: Tensor, level: int) -> Tensor:
        """[n, columns] the values of a map [B, anchors of a cell * columns, h, w] at n anchors."""
        at_cells = values[image, :, cells[:, 0], cells[:, 1]].unflatten(1, (self.per_cell[level], -1))
        return at_cells[torch.arange(len(image), device=self.device), numbers]

    def _rows(self, raw: dict[str, Tensor]) -> AnchorRows:
        """Outputs of the head, from outputs of its last layers."""
        return AnchorRows(raw["logits"], raw["deltas"], raw.get("centreness"))

    @torch.no_grad()
    def candidates(self, outputs: OneStageOutputs) -> tuple[Tensor, Tensor, Tensor]:
        """See `Adapter.candidates`: one candidate per anchor."""
        scores = self._scores(outputs.logits, outputs.centreness).float()
        boxes = torch.stack([self._decode(deltas, outputs.anchors) for deltas in outputs.deltas]).float()
        return boxes, scores, scores.amax(dim=2)

    @torch.no_grad()
    def objects_at(
        self, outputs: OneStageOutputs, candidates: Tensor, class_ids: Tensor, geometry: Geometry
    ) -> Objects:
        """See `Adapter.objects_at`: anchors."""
        from torchvision.ops import clip_boxes_to_image

        boxes = self._decode(outputs.deltas[0, candidates], outputs.anchors[candidates])
        scores = self._scores(outputs.logits, outputs.centreness)[0, candidates, class_ids]
        asked = Candidates(clip_boxes_to_image(boxes, geometry.resized), scores, class_ids, candidates)
        level, _, cells = self._places(outputs, candidates)
        return self._objects(asked, geometry, outputs.logits.shape[2], level, cells)

    def selection(self, iou: float) -> Selection:
        """See `Adapter.selection`: the model's overlap threshold."""
        return Selection(overlap=self.network.nms_thresh)

    @torch.no_grad()
    def enters(self, outputs: OneStageOutputs, asked: Objects, conf: float) -> bool:
        """See `Adapter.enters`: the best `topk_candidates` of each level, or of each class, enter."""
        scores = self._scores(outputs.logits, outputs.centreness)[0]
        index, labels = self._candidates(scores, outputs, min(self.network.score_thresh, conf))
        return bool(((index == asked.index) & (labels == asked.class_ids)).any())

    def class_names(self, count: int) -> dict[int, str]:
        return dict(enumerate(class_names(list(range(count)), count, self.names)))
