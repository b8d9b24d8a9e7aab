"""Ultralytics YOLO: detection, instance segmentation, poses, turned boxes, and classes from text; v3u to 26."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from detcam.adapters.base import Adapter, LayerPlan, Readout, Selection
from detcam.adapters.shared.mask_scores import MASK_TARGETS
from detcam.adapters.shared.rotated_boxes import hulls, turned_boxes, turned_to_source
from detcam.adapters.ultralytics.yolo_head import (
    BOX_TARGETS,
    CLASS_TARGETS,
    PATHS,
    YoloOutputs,
    inside,
    readouts,
    scores,
)
from detcam.errors import ModelError
from detcam.geometry import Geometry, letterbox
from detcam.types import Objects

HEADS = (
    *("Detect", "v10Detect", "Segment", "Segment26", "Pose", "Pose26", "OBB", "OBB26"),
    *("WorldDetect", "YOLOEDetect", "YOLOESegment", "YOLOESegment26"),
)


class YoloAdapter(Adapter):
    """YOLO models of Ultralytics that find objects: detect, segment, pose, obb, YOLO-World and YOLOE.

    The scalar is read before decoding: the class logit of the anchor that the kept box came from. YOLO-World and YOLOE
    have the classes that were last set; their logit compares the anchor's embedding with that of the class's text.

    A turned box (obb) stands in `Objects.boxes` as its axis-aligned hull, which is `Results.obb.xyxy` and may leave the
    picture; the targets "left", "top", "right" and "bottom" are distances along the box's own axes.

    `module` is a view of Ultralytics' DetectionModel or one derived from it; `imgsz` is the longest side of the
    network's input in pixels.
    """

    family = "ultralytics"
    models = "YOLO detect, segment, pose, obb: v3u, v5u, v6, v8, v9, v10, 11, 12, 26; YOLO-World, YOLOE"
    install = 'pip install "detcam[ultralytics]"'
    targets = (*CLASS_TARGETS, *BOX_TARGETS, *MASK_TARGETS, *PATHS)

    def __init__(self, module: nn.Module, model: Any, imgsz: int | None = None, processor: Any = None) -> None:
        self.module = module
        self.imgsz = imgsz or predict_size(model)
        network: Any = module
        self.sequence = network.model  # the nn.Sequential of numbered layers
        self.backbone = len(network.yaml["backbone"])  # layers 0 .. backbone - 1; the neck and the head follow
        self.head = self.sequence[-1]
        self.task = _task(self.head)
        names = network.names
        self.names: dict[int, str] = dict(names) if isinstance(names, dict) else dict(enumerate(names))
        self.stride = max(int(self.head.stride.max()), 32)
        size = (self.imgsz, self.imgsz) if isinstance(self.imgsz, int) else self.imgsz
        self.size = tuple(-(-side // self.stride) * self.stride for side in size)
        missing = set() if self.task == "segment" else {*MASK_TARGETS, *PATHS}
        if len(self.names) < 2:
            missing.add("margin")  # there is no other class to compare with
        self.available = tuple(target for target in self.targets if target not in missing)
        self.levels = int(self.head.nl)
        self.head.shape = None  # cached anchors may be inference tensors: have them rebuilt
        self.head.export = False
        # YOLOE's predict call suppresses across classes, the others' does not; an earlier call may have left it on.
        self.head.agnostic_nms = self.agnostic = type(self.head).__name__.startswith("YOLOE")
        # What the branches put out level by level, which the head itself hands on only concatenated.
        self._maps: defaultdict[str, list[Tensor]] = defaultdict(list)
        branches = self.head.one2one if self.head.end2end else self.head.one2many
        for name in branches.keys() & {"box_head", "cls_head", "mask_head"}:
            for part in branches[name]:
                part.register_forward_hook(partial(self._keep, name))
        # What compares the embeddings that the class branch puts out with those of texts, for each level.
        is_world = type(self.head).__name__ == "WorldDetect"
        self.contrast: nn.ModuleList | None = self.head.cv4 if is_world else branches.get("contrastive_head")
        self._texts: Tensor | None = None
        self._features: list[Tensor] = []
        for part in self.contrast or ():
            part.register_forward_pre_hook(self._keep_texts)
        if type(self.head).__name__ == "YOLOESegment26":  # it detaches what its prototypes are made of
            self.head.register_forward_pre_hook(self._keep_features)
            self.head.proto.register_forward_pre_hook(lambda module, args: (self._features,))
        parameter = next(module.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype

    @classmethod
    def serves(cls, model: Any) -> bool:
        """See `Adapter.serves`: an Ultralytics wrapper or module, or derived from one."""
        return any(base.__module__.split(".")[0] == "ultralytics" for base in type(model).__mro__)

    @classmethod
    def unwrap(cls, model: Any) -> nn.Module:
        """See `Adapter.unwrap`: an error for tasks without boxes, and for weights in an exported format."""
        module = module_of(model)
        if not isinstance(module, nn.Module):
            raise ModelError(f"{module}: an exported model has no gradients: give the .pt weights it was made from")
        layers = getattr(module, "model", None)
        head = layers[-1] if isinstance(layers, nn.Sequential) else None
        if type(head).__name__ not in HEADS:
            raise ModelError(
                f"{type(module).__name__} with head {type(head).__name__} finds no objects: give a detect, segment, "
                "pose or obb model, e.g. yolov8n.pt or yolo11n-seg.pt"
            )
        if hasattr(head, "lrpc"):
            raise ModelError(
                f"{type(module).__name__} with head {type(head).__name__} is prompt-free, which detcam does not "
                "explain: give the model with prompts, after set_classes"
            )
        return module

    def prepare(self, image: np.ndarray) -> tuple[Tensor, Geometry]:
        """See `Adapter.prepare`: the letterbox of Ultralytics' predict call."""
        padded, geometry = letterbox(image, (self.size[0], self.size[1]), self.stride)
        pixels = torch.from_numpy(padded).to(self.device).permute(2, 0, 1)
        return pixels.to(self.dtype).div_(255), geometry

    def _keep(self, name: str, module: nn.Module, args: object, output: Tensor) -> None:
        self._maps[name].append(output)

    def _keep_texts(self, module: nn.Module, args: tuple[Tensor, Tensor]) -> None:
        self._texts = args[1].detach()

    def _keep_features(self, module: nn.Module, args: tuple[list[Tensor]]) -> None:
        self._features = list(args[0])

    def forward(self, batch: Tensor, max_det: int) -> YoloOutputs:
        """See `Adapter.forward`."""
        self.head.max_det = max(max_det, 300)  # as predict sets it, for end-to-end heads
        self._maps.clear()
        decoded, predictions = self.module(batch)
        maps, self._maps = self._maps, defaultdict(list)  # kept here, they would keep the whole graph alive
        texts, self._texts, self._features = self._texts, None, []
        prototypes = None
        if self.task == "segment":
            decoded, prototypes = decoded  # the live prototypes: those inside `predictions` may be detached
        if "one2one" in predictions:
            predictions = predictions["one2one" if self.head.end2end else "one2many"]
        cells = tuple((int(f.shape[2]), int(f.shape[3])) for f in predictions["feats"])
        return YoloOutputs(
            logits=predictions["scores"],
            sides=self.head.dfl(predictions["boxes"]) * self.head.strides,
            decoded=decoded.detach(),
            cells=cells,
            coefficients=predictions.get("mask_coefficient"),
            prototypes=prototypes,
            maps=maps,
            texts=texts,
            angles=predictions.get("angle"),
        )

    @torch.no_grad()
    def detect(
        self, outputs: YoloOutputs, geometries: list[Geometry], conf: float, iou: float, max_det: int
    ) -> list[Objects]:
        """See `Adapter.detect`: Ultralytics' own non-maximum suppression, with the anchor carried along."""
        rows = self._kept_rows(outputs, conf, iou, max_det)
        return [
            self._objects(outputs, image, row, anchors, geometries[image]) for image, (row, anchors) in enumerate(rows)
        ]

    def _kept_rows(self, outputs: YoloOutputs, conf: float, iou: float, max_det: int) -> list[tuple[Tensor, Tensor]]:
        """For each picture: rows [N, 6 or 7] in network pixels, and their anchors [N].

        A row is xyxy, score and class; for a turned box it is its centre and size, score, class and angle in radians.
        """
        from ultralytics.utils.nms import non_max_suppression

        decoded, classes = outputs.decoded, outputs.logits.shape[1]
        turned = self.task == "obb"
        if self.head.end2end:
            # The head's own top-k, run once more for the anchors that it does not return.
            probabilities = outputs.logits.detach().sigmoid().permute(0, 2, 1)
            anchors = self.head.get_topk_index(probabilities, self.head.max_det)[2]  # [B, n]
            keep = decoded[..., 4] > conf
            rows = [d[k][:max_det, : 6 + turned] for d, k in zip(decoded, keep, strict=True)]
            return [(row, a[k][:max_det]) for row, k, a in zip(rows, keep, anchors, strict=True)]
        count = decoded.shape[2]
        index = torch.arange(count, device=decoded.device, dtype=torch.float32)  # exact up to 2^24 anchors
        tagged = [decoded[:, : 4 + classes].float(), index.expand(len(decoded), 1, count)]
        if turned:
            tagged.append(decoded[:, -1:].float())
        options: dict[str, Any] = {"agnostic": self.agnostic, "max_det": max_det, "nc": classes, "rotated": turned}
        # Without its limit of time: on a busy machine that silently leaves out the pictures at the end.
        kept = non_max_suppression(torch.cat(tagged, 1), conf, iou, **options, max_time_img=math.inf)
        return [(torch.cat([rows[:, :6], rows[:, 7:]], dim=1), rows[:, 6].long()) for rows in kept]

    def _objects(self, outputs: YoloOutputs, image: int, rows: Tensor, anchors: Tensor, geometry: Geometry) -> Objects:
        boxes, class_ids = rows[:, :4].float(), rows[:, 5].long()
        sources = geometry.to_source(boxes)
        if rows.shape[1] == 7:
            turned = torch.cat([boxes, rows[:, 6:].float()], dim=1)
            boxes, sources = hulls(turned), hulls(turned_to_source(turned, geometry))
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
        keep = boxes.isfinite().all(dim=1)  # a broken model's NaN stays inside
        if masks is not None:
            keep &= _with_mask(masks, boxes, geometry.network)
        return objects.select(keep.nonzero().flatten())

    def score(self, outputs: YoloOutputs, objects: list[Objects], target: str) -> Tensor:
        """See `Adapter.score`."""
        return scores(outputs, objects, target, self.head)

    def readouts(self, outputs: YoloOutputs, objects: list[Objects], target: str) -> list[Readout]:
        """See `Adapter.readouts`."""
        return readouts(outputs, objects, target, self.head, self.contrast)

    @torch.no_grad()
    def candidates(self, outputs: YoloOutputs) -> tuple[Tensor, Tensor, Tensor]:
        """See `Adapter.candidates`: one for every anchor; YOLO has no objectness beside the classes since v6."""
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
            turned = turned_boxes(sides, outputs.angles.detach().float(), centre)  # [B, 5, A]
            boxes = hulls(turned.transpose(1, 2).flatten(0, 1)).unflatten(0, (len(sides), -1)).transpose(1, 2)
        probabilities = outputs.logits.detach().float().sigmoid().transpose(1, 2)
        return boxes.transpose(1, 2), probabilities, probabilities.amax(dim=2)

    def layers(self, preset: str) -> LayerPlan:
        """See `Adapter.layers`."""
        inputs = self._inputs_of(len(self.sequence) - 1)
        if preset == "level":
            return LayerPlan(tuple(f"model.{i}" for i in inputs), cut_all=True, fuse="level")
        # The neck reads the backbone's last layer and, through skips, earlier ones.
        beyond = range(self.backbone, len(self.sequence))
        doors = {i for layer in beyond for i in self._inputs_of(layer) if i < self.backbone}
        return LayerPlan(tuple(f"model.{i}" for i in sorted(doors)), cut_all=True, fuse="sum")

    def _inputs_of(self, layer: int) -> list[int]:
        """The indices of the layers that feed `layer`, in its own order."""
        source: Any = self.sequence[layer].f
        sources = [source] if isinstance(source, int) else source
        return [layer + i if i < 0 else i for i in sources]

    @torch.no_grad()
    def objects_at(self, outputs: YoloOutputs, candidates: Tensor, class_ids: Tensor, geometry: Geometry) -> Objects:
        """See `Adapter.objects_at`: one for every anchor, also where its mask is empty."""
        boxes, probabilities, _ = self.candidates(outputs)
        scores = probabilities[0, candidates, class_ids]
        rows = torch.cat([boxes[0, candidates], scores[:, None], class_ids[:, None].float()], dim=1)
        found = self._objects(replace(outputs, coefficients=None), 0, rows, candidates, geometry)
        if outputs.coefficients is None or outputs.prototypes is None:
            return found
        coefficients, prototypes = outputs.coefficients[0][:, candidates].float(), outputs.prototypes[0].float()
        return replace(found, mask_logits=torch.einsum("kn,khw->nhw", coefficients, prototypes))

    def selection(self, iou: float) -> Selection:
        """See `Adapter.selection`: end-to-end heads suppress nothing; hulls overlap less than turned boxes, or more."""
        if self.head.end2end:
            return Selection()
        return Selection(one_class=True, overlap=0.0 if self.task == "obb" else iou)


def _task(head: Any) -> str:
    """Ultralytics' name for what a head does, told by what only such heads have."""
    signs = {"segment": "proto", "pose": "kpt_shape", "obb": "ne"}
    return next((task for task, sign in signs.items() if hasattr(head, sign)), "detect")


def module_of(model: Any) -> Any:
    """A wrapper keeps its nn.Module, or the path of an exported model, in .model."""
    return model.model if hasattr(model, "overrides") else model


def predict_size(model: Any) -> int | tuple[int, int]:
    """The input size that the model's own predict call would use: one number, or (height, width)."""
    arguments = getattr(module_of(model), "args", {})
    arguments = arguments if isinstance(arguments, dict) else vars(arguments)
    size = getattr(model, "overrides", {}).get("imgsz") or arguments.get("imgsz") or 640
    return size if isinstance(size, int) else (int(size[0]), int(size[-1]))


def _with_mask(logits: Tensor, boxes: Tensor, network: tuple[int, int]) -> Tensor:
    """[N] bool: predict drops objects whose mask, upsampled to the network's input, is empty inside the box."""
    keep = torch.ones(len(logits), dtype=torch.bool, device=logits.device)
    for i in range(len(logits)):
        mask = interpolate(logits[i][None, None], network, mode="bilinear")[0] > 0
        keep[i] = (mask & inside(boxes[i : i + 1], *network)).any()
    return keep
