"""Segmenters of the transformers library with mask queries: MaskFormer and its successors."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from detcam.adapters.base import ImageSize, LayerPlan, Selection
from detcam.adapters.shared.mask_scores import MASK_TARGETS
from detcam.adapters.shared.queries import QueryAdapter, query_objects, shares_to_source, strongest, with_mask_logits
from detcam.adapters.shared.scores import BOX_TARGETS, CLASS_TARGETS
from detcam.adapters.shared.segments import boxes_around
from detcam.adapters.transformers.base import (
    TransformersAdapter,
    longest_side,
    recorders_last,
    return_dicts,
    size_of,
    sizes_of,
)
from detcam.adapters.transformers.mask_kinds import BOXED, KINDS, grids, plans, processor_for
from detcam.adapters.transformers.mask_processing import PostProcessing
from detcam.boxes import corners
from detcam.errors import InputError
from detcam.geometry import Geometry
from detcam.types import Objects, image_index


@dataclass(frozen=True)
class MaskQueryOutputs:
    """Raw outputs for B images, Q queries and nc classes, "no object" included, with the graph."""

    logits: Tensor  # [B, Q, nc] class logits
    masks: Tensor  # [B, Q, h, w] mask logits
    boxes: Tensor | None  # [B, Q, 4] (cx, cy, w, h) as shares of the image, or None
    inside: Tensor  # [B, H, W] 1 on the image, 0 on padding
    maps: list[Tensor]  # outputs of the modules of a preset, [B, C, h, w] each

    def cells_inside(self) -> Tensor:
        """[B, h, w] bool: the cells of the masks with their centre on the image."""
        return interpolate(self.inside[:, None].float(), self.masks.shape[2:], mode="nearest-exact")[:, 0] > 0

    def scale(self) -> Tensor:
        """[B, 4] (width, height, width, height) of each image in the network's input, in pixels."""
        return sizes_of(self.inside).flip(1).repeat(1, 2)


class MaskQueryAdapter(TransformersAdapter, QueryAdapter):
    """MaskFormer, Mask2Former, OneFormer, EoMT and DETR with masks, of the transformers library.

    Objects are the queries that the image processor's `post_process_instance_segmentation` keeps, or, for a checkpoint
    with "panoptic" in its name, `post_process_panoptic_segmentation`, where queries compete for pixels; see
    `PanopticAdapter`. Stuff is not fused: each query is an object. Boxes are the outer edges of the masks, except for
    DETR, which predicts boxes. The scalar is the class logit of the query, or for the target "mask" the mean mask logit
    over the query's binary mask. There is no non-maximum suppression: `iou` has no effect.

    If a decoder attends only to a mask (Mask2Former, OneFormer, EoMT), the mask's threshold passes no gradient: the map
    shows what was read inside the mask, not what placed its border.

    `module` is a view of the model; `imgsz` is the longest side of the network's input in pixels; `processor` is the
    model's processor. Default: the processor of its checkpoint if that is on this machine, else of its architecture.
    """

    family = "transformers instance segmentation"
    models = "MaskFormer, Mask2Former, OneFormer, EoMT, EoMT-DINOv3, DETR and Conditional DETR with masks"
    served = ".*For(Universal|Instance)?Segmentation"
    kinds = KINDS
    targets = (*CLASS_TARGETS, *BOX_TARGETS, *MASK_TARGETS)
    task = "segment"
    softmax = True
    clipped = True
    wanted: ClassVar[str | None] = None  # "instance" or "panoptic"; None: told by the checkpoint's name

    def __init__(self, module: Any, model: Any, imgsz: ImageSize | None = None, processor: Any = None) -> None:
        super().__init__(module, model, imgsz, processor)
        self.processor = processor or processor_for(self.config)
        self.segmentation = self.wanted or ("panoptic" if "panoptic" in self.config._name_or_path else "instance")
        self.imgsz = imgsz or size_of(getattr(self.processor, "image_processor", self.processor))
        self.resize = self._resizing(imgsz)
        self.post_process = PostProcessing(
            self.processor, self.segmentation, label_ids_to_fuse=set(), size=self.resize.get("size")
        )
        self.boxed = self.config.model_type in BOXED
        self.available = self._available(len(self.names) + 1, *(() if self.boxed else BOX_TARGETS))
        return_dicts(module)
        self.plans = plans(self.config)
        self._maps: dict[str, list[Tensor]] = {}
        self._task: dict[str, Tensor] = {}
        for name in {*self.plans["level"], *self.plans["evidence"]}:
            module.get_submodule(name).register_forward_hook(partial(self._record, name))

    def _resizing(self, imgsz: ImageSize | None) -> dict[str, Any]:
        """The options of the processor for an input of `imgsz` pixels."""
        if self.config.model_type.startswith("eomt"):  # a fixed size, with padding
            side = self.config.image_size
            if imgsz not in (None, side):
                raise InputError(f"imgsz: this model takes images of {side} x {side} pixels only, got {imgsz}")
            return {"size": {"shortest_edge": side, "longest_edge": side}, "do_pad": True, "do_split_image": False}
        task: dict[str, Any] = {"task_inputs": [self.segmentation]} if self.config.model_type == "oneformer" else {}
        if imgsz is None:
            return task
        return task | longest_side(getattr(self.processor, "image_processor", self.processor), imgsz)

    def _record(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        self._maps.setdefault(name, []).extend(_maps(output))

    def _processed(self, image: np.ndarray, **changes: Any) -> Any:
        data = super()._processed(image, **changes)
        if "task_inputs" in data:  # OneFormer
            self._task = {"task_inputs": data["task_inputs"].to(self.device)}
        if "do_pad" in self.resize and "pixel_mask" not in data:  # EoMT
            height, width = super()._processed(image, do_pad=False)["pixel_values"].shape[2:]
            data["pixel_mask"] = torch.zeros_like(data["pixel_values"][:, 0])
            data["pixel_mask"][:, :height, :width] = 1
        return data

    def forward(self, batch: Tensor, max_det: int) -> MaskQueryOutputs:
        inside = batch[:, self.channels] if batch.shape[1] > self.channels else torch.ones_like(batch[:, 0])
        more = {"pixel_mask": inside.long()} if self.boxed else {}
        more |= {name: tokens.expand(len(batch), -1) for name, tokens in self._task.items()}
        recorders_last(self.module, __name__)
        self._maps.clear()
        outputs = self.module(pixel_values=batch[:, : self.channels], **more)
        maps, self._maps = self._maps, {}  # else the adapter would keep the graph alive
        read = [part for name in self.plans["evidence"] for part in maps[name]]
        if not any(part.requires_grad for part in read):
            read = [part for name in self.plans["level"] for part in maps[name]]
        if self.boxed:
            return MaskQueryOutputs(outputs.logits, outputs.pred_masks, outputs.pred_boxes, inside, read)
        return MaskQueryOutputs(outputs.class_queries_logits, outputs.masks_queries_logits, None, inside, read)

    @torch.no_grad()
    def detect(
        self, outputs: MaskQueryOutputs, geometries: list[Geometry], conf: float, iou: float, max_det: int
    ) -> list[Objects]:
        """See `Adapter.detect`: the processor's post-processing; of more than `max_det` segments the best."""
        kept = []
        for i, geometry in enumerate(geometries):
            segments = self.post_process(outputs.logits[i], outputs.masks[i], geometry.source, conf)
            queries, masks = segments.queries, segments.masks
            if outputs.boxes is None:
                boxes = boxes_around(masks)
            else:
                boxes = shares_to_source(outputs.boxes[i, queries], geometry)
            objects = query_objects(boxes, segments.scores, segments.classes, queries, self.names, geometry, masks)
            objects = with_mask_logits(objects, outputs.masks, i)
            kept.append(objects.select(strongest(objects.scores, max_det)))
        return kept

    def score(self, outputs: MaskQueryOutputs, objects: list[Objects], target: str) -> Tensor:
        scalars = super().score(outputs, objects, target)
        return _joined(scalars, outputs.maps, image_index(objects, outputs.logits.device))

    @torch.no_grad()
    def candidates(self, outputs: MaskQueryOutputs) -> tuple[Tensor, Tensor, Tensor]:
        """See `Adapter.candidates`: one candidate per query.

        If queries are kept independently, probabilities are multiplied by the mask's confidence, like the scores.
        """
        probabilities = outputs.logits.float().softmax(dim=2)[..., :-1]
        masks = outputs.masks.float()
        binary = (masks > 0) & outputs.cells_inside()[:, None]
        if self.post_process.independent:
            confidence = (masks.sigmoid() * binary).sum(dim=(2, 3)) / binary.sum(dim=(2, 3)).clamp(min=1)
            probabilities = probabilities * confidence[..., None]
        if outputs.boxes is not None:
            boxes = corners(outputs.boxes.flatten(0, 1).float()).view_as(outputs.boxes) * outputs.scale()[:, None]
        else:
            (height, width), cells = outputs.inside.shape[1:], masks.shape[2:]
            boxes = boxes_around(binary.flatten(0, 1)) * binary.flatten(0, 1).any(dim=(1, 2))[:, None]
            boxes = boxes.unflatten(0, masks.shape[:2])
            boxes = boxes * boxes.new_tensor([width / cells[1], height / cells[0]] * 2)
        return boxes, probabilities, probabilities.amax(dim=2)

    def selection(self, iou: float) -> Selection:
        """See `Adapter.selection`: if queries compete for pixels, each counts once."""
        return Selection(one_class=not self.post_process.independent)

    def layers(self, preset: str) -> LayerPlan:
        """See `Adapter.layers`: every query reads all maps, so the maps of a plan are added."""
        return LayerPlan(self.plans[preset], cut_all=True, fuse="sum")

    def grids(self, tokens: int, size: tuple[int, int]) -> list[tuple[int, int, int]]:
        """See `Adapter.grids`: a stage of the backbone, its last three stages, or patches after other tokens."""
        return grids(self.config, tokens, size)


class PanopticAdapter(MaskQueryAdapter):
    """The same models with panoptic post-processing: `Explainer(model, adapter=PanopticAdapter)`."""

    wanted = "panoptic"


def _maps(output: Any) -> Iterator[Tensor]:
    """All maps [B, C, h, w] and tokens [B, L, C] in the output of a module."""
    if isinstance(output, Tensor):
        if output.ndim in (3, 4) and output.is_floating_point():
            yield output
    elif isinstance(output, (Mapping, tuple, list)):
        for part in output.values() if isinstance(output, Mapping) else output:
            yield from _maps(part)


def _joined(scalars: Tensor, maps: list[Tensor], image: Tensor) -> Tensor:
    """The same scalars, with a gradient of zero instead of None at maps that they do not depend on.

    MaskFormer reads its classes from the backbone's last map only, and its masks from all maps.
    """
    for part in maps:
        if part.requires_grad:
            place = part[image].flatten(1)[:, 0].view(-1, *[1] * (scalars.ndim - 1))
            scalars = torch.where(torch.zeros_like(scalars, dtype=torch.bool), place.to(scalars.dtype), scalars)
    return scalars
