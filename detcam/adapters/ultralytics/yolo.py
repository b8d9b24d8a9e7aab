"""Ultralytics YOLO: detection, instance segmentation, poses, rotated boxes, and classes from text; v3u to 26."""

import math
import os
from collections import defaultdict
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from detcam.adapters.base import Readout, Selection, sides_of
from detcam.adapters.shared.keypoints import KEYPOINT, keypoint_targets
from detcam.adapters.shared.mask_scores import MASK_PATHS, MASK_TARGETS
from detcam.adapters.shared.rotated_boxes import decode_rotated, hulls, rotated_to_source
from detcam.adapters.shared.scores import BOX_TARGETS, CLASS_TARGETS
from detcam.adapters.ultralytics.base import UltralyticsAdapter, head_of, kinds_of, module_of, require_parts
from detcam.adapters.ultralytics.yolo_head import YoloOutputs, has_mask, logits_of, point_scalars, readouts, scores
from detcam.errors import ModelError
from detcam.geometry import Geometry, letterbox
from detcam.images import unit_tensor
from detcam.types import Objects

READ = ("nc", "nl", "stride", "dfl", "reg_max")  # what boxes are read by, of Detect and of heads made like it
OTHER_TASKS = {
    "SemanticSegment": "classifies pixels: give its module (model.model) and adapter=detcam.adapters.LogitsAdapter()",
    "Depth": "estimates depth, which has no classes to explain: give a detect, segment, pose or obb model",
}


class YoloAdapter(UltralyticsAdapter):
    """YOLO models of Ultralytics for objects: detect, segment, pose, obb, YOLO-World and YOLOE.

    The scalar is read before decoding: the class logit of the kept box's anchor. YOLO-World and YOLOE have the classes
    that were last set; their logit compares the anchor's embedding with the embedding of the class's text.

    For a rotated box (obb), `Objects.boxes` has the axis-aligned hull, which is `Results.obb.xyxy` and may leave the
    image; the targets "left", "top", "right" and "bottom" are distances along the axes of the box.

    `module` is a view of Ultralytics' DetectionModel or a derived class; `imgsz` is the longest side of the network's
    input in pixels.
    """

    family = "ultralytics"
    models = "YOLO detect, segment, pose, obb: v3u, v5u, v6, v8, v9, v10, 11, 12, 26; YOLO-World, YOLOE"
    targets = (*CLASS_TARGETS, *BOX_TARGETS, *MASK_TARGETS, *MASK_PATHS, KEYPOINT)
    fuse = "level"

    def __init__(self, module: Any, model: Any, imgsz: int | None = None, processor: Any = None) -> None:
        super().__init__(module, model, imgsz, processor)
        self.task = _task(self.head)
        self.stride = max(int(self.head.stride.max()), 32)
        self.size = sides_of(self.imgsz, self.stride)
        masks = () if self.task == "segment" else (*MASK_TARGETS, *MASK_PATHS)
        points, given = getattr(self.head, "kpt_shape", (0,))[0], getattr(module, "kpt_names", None)
        self.keypoints = keypoint_targets(int(points), self.names.values(), given)
        self.available = (*self._available(len(self.names), KEYPOINT, *masks), *self.keypoints)
        self.levels, kinds = int(self.head.nl), kinds_of(self.head)
        self.end2end = bool(getattr(self.head, "end2end", False))
        self.head.shape = None  # rebuild the anchors: cached ones may be inference tensors
        # YOLOE's predict call suppresses across classes, unlike the others; an earlier call may have set the flag.
        self.head.agnostic_nms = self.agnostic = "YOLOEDetect" in kinds
        # Outputs of the branches level by level; the head returns them concatenated.
        self._maps: defaultdict[str, list[Tensor]] = defaultdict(list)
        branches: Any = getattr(self.head, "one2one" if self.end2end else "one2many", None)  # edited heads lack some
        branches = branches if isinstance(branches, dict) else {}
        if "kpts_head" in branches:  # of YOLO26, behind its pose branch
            branches = {**branches, "pose_head": branches["kpts_head"]}
        for name in branches.keys() & {"box_head", "cls_head", "mask_head", "pose_head"}:
            for part in dict.fromkeys(branches[name]):  # levels may share a branch, which then runs once for each
                part.register_forward_hook(partial(self._keep, name))
        # Modules that compare embeddings of the class branch with embeddings of texts, one per level.
        contrast = self.head.cv4 if "WorldDetect" in kinds else branches.get("contrastive_head")
        self.contrast: nn.ModuleList | None = contrast
        self._texts: Tensor | None = None
        self._dense: Tensor | None = None  # [B, A, 4 + nc + K] what an end-to-end head selects from
        if self.end2end:
            self.head.postprocess = partial(self._keep_dense, self.head.postprocess)
        self._features: list[Tensor] = []
        for part in self.contrast or ():
            part.register_forward_pre_hook(self._keep_texts)
        if "YOLOESegment26" in kinds:  # it detaches the features of its prototypes
            self.head.register_forward_pre_hook(self._keep_features)
            self.head.proto.register_forward_pre_hook(lambda module, args: (self._features,))

    @classmethod
    def unwrap(cls, model: Any) -> nn.Module:
        """See `Adapter.unwrap`: an error for tasks without boxes, and for exported formats."""
        module = module_of(model)
        if isinstance(module, (str, os.PathLike)):
            if str(module).endswith((".pt", ".yaml")):
                raise ModelError(f"{type(model).__name__} has not loaded {module} yet: give YOLO({str(module)!r})")
            raise ModelError(
                f"{module}: an exported model has no gradients: give the .pt weights that it was exported from"
            )
        head = head_of(module)
        if head is None:
            raise ModelError(f"{type(model).__name__} of ultralytics holds no network: give the YOLO(...) that made it")
        name = type(head).__name__
        if other := kinds_of(head) & OTHER_TASKS.keys():
            raise ModelError(f"{type(module).__name__} with head {name} {OTHER_TASKS[other.pop()]}")
        require_parts(module, (*READ, "get_topk_index") if getattr(head, "end2end", False) else READ)
        if hasattr(head, "lrpc"):
            raise ModelError(
                f"{type(module).__name__} with head {name} is prompt-free, which detcam does not "
                "explain: give the model with prompts, after set_classes"
            )
        return module

    def prepare(self, image: np.ndarray) -> tuple[Tensor, Geometry]:
        """See `Adapter.prepare`: the letterbox of Ultralytics' predict call."""
        padded, geometry = letterbox(self.fit(image), self.size, self.stride)
        return unit_tensor(padded, self.device, self.dtype), geometry

    def _keep(self, name: str, module: nn.Module, args: object, output: Tensor) -> None:
        self._maps[name].append(output)

    def _keep_dense(self, postprocess: Any, dense: Tensor, *args: Any) -> Tensor:
        self._dense = dense
        selected: Tensor = postprocess(dense, *args)
        return selected

    def _keep_texts(self, module: nn.Module, args: tuple[Tensor, Tensor]) -> None:
        self._texts = args[1].detach()

    def _keep_features(self, module: nn.Module, args: tuple[list[Tensor]]) -> None:
        self._features = list(args[0])

    def forward(self, batch: Tensor, max_det: int) -> YoloOutputs:
        self.head.max_det = max(max_det, 300)  # as in predict, for end-to-end heads
        self._maps.clear()
        returned = self.module(batch)
        if not isinstance(returned, tuple):
            raise ModelError(
                f"head {type(self.head).__name__} returns {type(returned).__name__} alone: return (decoded, raw) "
                "as Ultralytics' heads do, or give adapter=CallableAdapter(...)"
            )
        decoded, raw = returned
        maps, self._maps = self._maps, defaultdict(list)  # else the adapter would keep the graph alive
        texts, self._texts, self._features = self._texts, None, []
        if isinstance(raw, dict) and "one2one" in raw:
            raw = raw["one2one" if self.end2end else "one2many"]
        predictions = raw if isinstance(raw, dict) else self._named(raw)
        prototypes = predictions.get("proto")
        if isinstance(decoded, tuple):
            decoded, prototypes = decoded  # those inside `predictions` may be detached
        dense, self._dense = decoded if self._dense is None else self._dense.transpose(1, 2), None
        cells = tuple((int(f.shape[2]), int(f.shape[3])) for f in predictions["feats"])
        strides = [stride.expand(h * w) for stride, (h, w) in zip(self.head.stride, cells, strict=True)]
        first = 4 + predictions["scores"].shape[1]  # channel behind the scores
        logits = logits_of(predictions["scores"], dense[:, 4:first])
        return YoloOutputs(
            logits=logits,
            sides=self.head.dfl(predictions["boxes"]) * torch.cat(strides).to(batch),
            decoded=decoded.detach(),
            cells=cells,
            coefficients=predictions.get("mask_coefficient"),
            prototypes=prototypes,
            maps=maps,
            raw={
                "cls_head": logits,
                "box_head": predictions["boxes"],
                "mask_head": predictions.get("mask_coefficient"),
                "pose_head": predictions.get("kpts"),
            },
            texts=texts,
            angles=predictions.get("angle"),
            keypoints=point_scalars(predictions.get("kpts"), dense[:, first:], self.head, self.keypoints),
        )

    def _named(self, raw: Any) -> dict[str, Any]:
        """The outputs of heads before Ultralytics 8.4 by today's names: boxes and logits in one map for each level."""
        maps, *extra = raw if isinstance(raw, tuple) else (raw,)
        flat = torch.cat([level.flatten(2) for level in maps], dim=2)
        boxes, logits = flat.split((4 * self.head.reg_max, self.head.nc), dim=1)
        names = {"segment": ("mask_coefficient", "proto"), "obb": ("angle",), "pose": ("kpts",)}.get(self.task, ())
        return {"boxes": boxes, "scores": logits, "feats": maps, **dict(zip(names, extra, strict=False))}

    @torch.no_grad()
    def detect(
        self, outputs: YoloOutputs, geometries: list[Geometry], conf: float, iou: float, max_det: int
    ) -> list[Objects]:
        """See `Adapter.detect`: Ultralytics' non-maximum suppression, with the anchor's number as an extra column."""
        detected = []
        rows = self._kept_rows(outputs, conf, iou, max_det)
        for image, ((row, anchors), geometry) in enumerate(zip(rows, geometries, strict=True)):
            objects = self._objects(outputs, image, row, anchors, geometry)
            if objects.mask_logits is not None and hasattr(self.head, "forward_head"):  # predict keeps them before 8.4
                keep = has_mask(objects.mask_logits, objects.network_boxes, geometry.network)
                objects = objects.select(keep.nonzero().flatten())
            detected.append(objects)
        return detected

    def _kept_rows(self, outputs: YoloOutputs, conf: float, iou: float, max_det: int) -> list[tuple[Tensor, Tensor]]:
        """For each image: rows [N, 6 or 7] in network pixels, and their anchors [N].

        A row is xyxy, score and class; for a rotated box: centre, size, score, class and angle in radians.
        """
        try:
            from ultralytics.utils.nms import non_max_suppression
        except ImportError:  # before 8.3.190
            from ultralytics.utils.ops import non_max_suppression

        decoded, classes = outputs.decoded, outputs.logits.shape[1]
        rotated = self.task == "obb"
        if self.end2end:
            # The head's top-k, run a second time for the anchors, which the head does not return.
            probabilities = outputs.logits.detach().sigmoid().permute(0, 2, 1)
            anchors = self.head.get_topk_index(probabilities, self.head.max_det)[2].flatten(1)  # [B, n]
            keep = decoded[..., 4] > conf
            rows = [d[k][:max_det, : 6 + rotated] for d, k in zip(decoded, keep, strict=True)]
            return [(row, a[k][:max_det]) for row, k, a in zip(rows, keep, anchors, strict=True)]
        count = decoded.shape[2]
        index = torch.arange(count, device=decoded.device, dtype=torch.float32)  # exact up to 2^24 anchors
        tagged = [decoded[:, : 4 + classes].float(), index.expand(len(decoded), 1, count)]
        if rotated:
            tagged.append(decoded[:, -1:].float())
        options: dict[str, Any] = {"agnostic": self.agnostic, "max_det": max_det, "nc": classes, "rotated": rotated}
        # Without the time limit, which on a busy machine silently drops the last images of a batch.
        kept = non_max_suppression(torch.cat(tagged, 1), conf, iou, **options, max_time_img=math.inf)
        return [(torch.cat([rows[:, :6], rows[:, 7:]], dim=1), rows[:, 6].long()) for rows in kept]

    def _objects(self, outputs: YoloOutputs, image: int, rows: Tensor, anchors: Tensor, geometry: Geometry) -> Objects:
        boxes, class_ids = rows[:, :4].float(), rows[:, 5].long()
        sources = geometry.to_source(boxes)
        if rows.shape[1] == 7:
            rotated = torch.cat([boxes, rows[:, 6:].float()], dim=1)
            boxes, sources = hulls(rotated), hulls(rotated_to_source(rotated, geometry))
        counts = torch.tensor([h * w for h, w in outputs.cells], device=rows.device)
        level = torch.searchsorted(counts.cumsum(0) - 1, anchors)
        widths = torch.tensor([w for _, w in outputs.cells], device=rows.device)[level]
        place = anchors - (counts.cumsum(0) - counts)[level]
        masks = None
        if outputs.coefficients is not None and outputs.prototypes is not None:
            coefficients = outputs.coefficients[image][:, anchors].float()  # [K, N]
            masks = torch.einsum("kn,khw->nhw", coefficients, outputs.prototypes[image].float())
        objects = Objects(
            boxes=sources,
            scores=rows[:, 4].float(),
            class_ids=class_ids,
            labels=tuple(self.names[c] for c in class_ids.tolist()),
            index=anchors,
            level=level,
            cells=torch.stack([place // widths, place % widths], dim=1),
            network_boxes=boxes,
            mask_logits=masks,
        )
        # The NaN of a broken model never leaves the package.
        return objects.select(boxes.isfinite().all(dim=1).nonzero().flatten())

    def score(self, outputs: YoloOutputs, objects: list[Objects], target: str) -> Tensor:
        return scores(outputs, objects, target, self.head)

    def readouts(self, outputs: YoloOutputs, objects: list[Objects], target: str) -> list[Readout] | None:
        return readouts(outputs, objects, target, self.head, self.contrast)

    @torch.no_grad()
    def candidates(self, outputs: YoloOutputs) -> tuple[Tensor, Tensor, Tensor]:
        """See `Adapter.candidates`: one candidate per anchor; since v6 YOLO has no objectness."""
        centres = []
        for (height, width), stride in zip(outputs.cells, self.head.stride.tolist(), strict=True):
            y = (torch.arange(height, device=outputs.sides.device) + 0.5) * stride
            x = (torch.arange(width, device=outputs.sides.device) + 0.5) * stride
            centres.append(torch.stack([x.repeat(height), y.repeat_interleave(width)]))
        centre = torch.cat(centres, dim=1)  # [2, A]
        sides = outputs.sides.detach().float()
        if outputs.angles is None:
            boxes = torch.cat([centre - sides[:, :2], centre + sides[:, 2:]], dim=1)  # [B, 4, A]
        else:
            rotated = decode_rotated(sides, outputs.angles.detach().float(), centre)  # [B, 5, A]
            boxes = hulls(rotated.transpose(1, 2).flatten(0, 1)).unflatten(0, (len(sides), -1)).transpose(1, 2)
        probabilities = outputs.logits.detach().float().sigmoid().transpose(1, 2)
        return boxes.transpose(1, 2), probabilities, probabilities.amax(dim=2)

    @torch.no_grad()
    def objects_at(self, outputs: YoloOutputs, candidates: Tensor, class_ids: Tensor, geometry: Geometry) -> Objects:
        """See `Adapter.objects_at`: anchors, also those with an empty mask."""
        boxes, probabilities, _ = self.candidates(outputs)
        scores = probabilities[0, candidates, class_ids]
        rows = torch.cat([boxes[0, candidates], scores[:, None], class_ids[:, None].float()], dim=1)
        return self._objects(outputs, 0, rows, candidates, geometry)

    def selection(self, iou: float) -> Selection:
        """See `Adapter.selection`: end-to-end heads suppress nothing; for rotated boxes any overlap of hulls may."""
        if self.end2end:
            return Selection()
        return Selection(one_class=True, overlap=0.0 if self.task == "obb" else iou)


def _task(head: Any) -> str:
    """Ultralytics' name of a head's task, told by an attribute that only such heads have."""
    signs = {"segment": "proto", "pose": "kpt_shape", "obb": "ne"}
    return next((task for task, sign in signs.items() if hasattr(head, sign)), "detect")
