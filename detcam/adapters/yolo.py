"""Ultralytics YOLO, detection and instance segmentation: v3u to 26, anchors or end-to-end heads."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from detcam.adapters.base import Adapter, LayerPlan, LocalScore
from detcam.errors import ModelError
from detcam.geometry import Geometry, letterbox
from detcam.types import Objects, image_index

CLASS_TARGETS = ("class", "prob", "margin")
SIDES = ("left", "top", "right", "bottom")
BOX_TARGETS = ("box", *SIDES)


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
    """

    logits: Tensor
    sides: Tensor
    decoded: Tensor
    cells: tuple[tuple[int, int], ...]
    coefficients: Tensor | None
    prototypes: Tensor | None


class YoloAdapter(Adapter):
    """YOLO detect and segment models of Ultralytics.

    The scalar is read before decoding: the class logit of the anchor that the kept box came from.

    Args:
        module: a private view of Ultralytics' DetectionModel or SegmentationModel.
        imgsz: the longest side of the network's input in pixels, or (height, width).
    """

    family = "ultralytics"
    models = "YOLO detect and segment: v3u, v5u, v6, v8, v9, v10, 11, 12, 26"
    install = 'pip install "detcam[ultralytics]"'
    targets = (*CLASS_TARGETS, *BOX_TARGETS, "mask")

    def __init__(self, module: nn.Module, imgsz: int | tuple[int, int]) -> None:
        self.module = module
        network: Any = module
        self.sequence = network.model  # the nn.Sequential of numbered layers
        self.backbone = len(network.yaml["backbone"])  # layers 0 .. backbone - 1; the neck and the head follow
        self.head = self.sequence[-1]
        self.task = "segment" if hasattr(self.head, "proto") else "detect"
        names = network.names
        self.names: dict[int, str] = dict(names) if isinstance(names, dict) else dict(enumerate(names))
        self.stride = max(int(self.head.stride.max()), 32)
        size = (imgsz, imgsz) if isinstance(imgsz, int) else imgsz
        self.size = tuple(-(-side // self.stride) * self.stride for side in size)
        missing = {"mask"} if self.task == "detect" else set()
        if len(self.names) < 2:
            missing.add("margin")  # there is no other class to compare with
        self.available = tuple(target for target in self.targets if target not in missing)
        self.levels = int(self.head.nl)
        self.head.shape = None  # cached anchors may be inference tensors: have them rebuilt
        self.head.export = False
        self.head.agnostic_nms = False  # an earlier predict call may have left it on
        parameter = next(module.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype

    @classmethod
    def serves(cls, model: Any) -> bool:
        """Whether `model` is an Ultralytics wrapper or module, or derived from one, by its origin alone."""
        return any(base.__module__.split(".")[0] == "ultralytics" for base in type(model).__mro__)

    @classmethod
    def unwrap(cls, model: Any) -> tuple[nn.Module, int | tuple[int, int]]:
        """The nn.Module inside a wrapper, and the input size that its predict call would use.

        Raises:
            ModelError: for a task without boxes, or weights in an exported format.
        """
        overrides = getattr(model, "overrides", None)
        module = model.model if overrides is not None else model  # a wrapper keeps its nn.Module in .model
        if not isinstance(module, nn.Module):
            raise ModelError(f"{module}: an exported model has no gradients: give the .pt weights it was made from")
        layers = getattr(module, "model", None)
        head = layers[-1] if isinstance(layers, nn.Sequential) else None
        if type(head).__name__ not in ("Detect", "v10Detect", "Segment", "Segment26"):
            raise ModelError(
                f"{type(module).__name__} with head {type(head).__name__} is no YOLO detector or instance "
                "segmenter: give a detect or segment model, e.g. yolov8n.pt or yolo11n-seg.pt"
            )
        arguments = getattr(module, "args", {})
        arguments = arguments if isinstance(arguments, dict) else vars(arguments)
        size = (overrides or {}).get("imgsz") or arguments.get("imgsz") or 640
        return module, size if isinstance(size, int) else (int(size[0]), int(size[-1]))

    def prepare(self, image: np.ndarray) -> tuple[Tensor, Geometry]:
        """See `Adapter.prepare`: the letterbox of Ultralytics' predict call."""
        padded, geometry = letterbox(image, (self.size[0], self.size[1]), self.stride)
        pixels = torch.from_numpy(padded).to(self.device).permute(2, 0, 1)
        return pixels.to(self.dtype).div_(255), geometry

    def forward(self, batch: Tensor, max_det: int) -> YoloOutputs:
        """See `Adapter.forward`."""
        self.head.max_det = max(max_det, 300)  # as predict sets it, for end-to-end heads
        decoded, predictions = self.module(batch)
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
        """For each picture: rows [N, 6] (xyxy, score, class) in network pixels, and their anchors [N]."""
        from ultralytics.utils.nms import non_max_suppression

        decoded, classes = outputs.decoded, outputs.logits.shape[1]
        if self.head.end2end:
            # The head's own top-k, run once more for the anchors that it does not return.
            probabilities = outputs.logits.detach().sigmoid().permute(0, 2, 1)
            anchors = self.head.get_topk_index(probabilities, self.head.max_det)[2]  # [B, n]
            keep = decoded[..., 4] > conf
            return [(d[k][:max_det, :6], a[k][:max_det]) for d, k, a in zip(decoded, keep, anchors, strict=True)]
        count = decoded.shape[2]
        index = torch.arange(count, device=decoded.device, dtype=torch.float32)  # exact up to 2^24 anchors
        tagged = torch.cat([decoded[:, : 4 + classes].float(), index.expand(len(decoded), 1, count)], dim=1)
        kept = non_max_suppression(tagged, conf, iou, max_det=max_det, nc=classes)
        return [(rows[:, :6], rows[:, 6].long()) for rows in kept]

    def _objects(self, outputs: YoloOutputs, image: int, rows: Tensor, anchors: Tensor, geometry: Geometry) -> Objects:
        boxes, class_ids = rows[:, :4].float(), rows[:, 5].long()
        counts = torch.tensor([h * w for h, w in outputs.cells], device=rows.device)
        level = torch.searchsorted(counts.cumsum(0) - 1, anchors)
        widths = torch.tensor([w for _, w in outputs.cells], device=rows.device)[level]
        place = anchors - (counts.cumsum(0) - counts)[level]
        masks = None
        if outputs.coefficients is not None and outputs.prototypes is not None:
            coefficients = outputs.coefficients[image][:, anchors].float()  # [K, N]
            masks = torch.einsum("kn,khw->nhw", coefficients, outputs.prototypes[image].float())
        objects = Objects(
            boxes=geometry.to_source(boxes),
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
        device = outputs.logits.device
        image = image_index(objects, device)
        anchor = torch.cat([o.index for o in objects])
        classes = torch.cat([o.class_ids for o in objects])
        if target in CLASS_TARGETS:
            return _class_score(outputs.logits[image, :, anchor], classes, target)
        if target in BOX_TARGETS:
            return _side_score(outputs.sides[image, :, anchor], target)
        return self._mask_score(outputs, objects)

    def _mask_score(self, outputs: YoloOutputs, objects: list[Objects]) -> Tensor:
        """[N] mean mask logit, coefficients . prototypes, over each object's fixed predicted mask."""
        assert outputs.coefficients is not None
        assert outputs.prototypes is not None
        scores = []
        for image, found in enumerate(objects):
            if not len(found):
                continue
            assert found.mask_logits is not None
            prototypes = outputs.prototypes[image]
            region = _mask_region(found, (prototypes.shape[1], prototypes.shape[2]), self.head.stride)
            # mean(c . P) over the region = c . mean(P): the region enters as one weight per cell.
            share = region / region.sum(dim=(1, 2), keepdim=True)
            pooled = torch.einsum("nhw,khw->nk", share.to(prototypes.dtype), prototypes)
            coefficients = outputs.coefficients[image][:, found.index].T  # [N, K]
            scores.append((pooled * coefficients).sum(dim=1))
        return torch.cat(scores) if scores else outputs.logits.new_zeros(0)

    def layers(self, preset: str) -> LayerPlan:
        """See `Adapter.layers`."""
        inputs = self._inputs_of(len(self.sequence) - 1)
        if preset == "level":
            return LayerPlan(tuple(f"model.{i}" for i in inputs), cut_all=True, fuse="own")
        # The neck reads the backbone's last layer and, through skips, earlier ones.
        beyond = range(self.backbone, len(self.sequence))
        doors = {i for layer in beyond for i in self._inputs_of(layer) if i < self.backbone}
        return LayerPlan(tuple(f"model.{i}" for i in sorted(doors)), cut_all=True, fuse="sum")

    def local(self, names: tuple[str, ...], level: int, target: str) -> LocalScore | None:
        """See `Adapter.local`: the layers between the cut and the head's input, then one branch of the head."""
        if target not in CLASS_TARGETS + BOX_TARGETS or not all(re.fullmatch(r"model\.\d+", n) for n in names):
            return None
        cut = [int(name.removeprefix("model.")) for name in names]
        door = self._inputs_of(len(self.sequence) - 1)[level]
        beside = sorted(self._beside(door, set(cut)))
        if -1 in beside or not any(self._depends(door, layer) for layer in cut):
            return None
        if any(
            m._forward_hooks or m._forward_pre_hooks for part in self.sequence[min(cut) + 1 :] for m in part.modules()
        ):
            return None  # a user's hook expects whole pictures
        known = [*cut, *beside]
        branches = self.head.one2one if self.head.end2end else self.head.one2many
        stride = int(self.head.stride[level])

        def replay(tensors: list[Tensor]) -> Tensor:
            features = self._output_of(door, dict(zip(known, tensors, strict=True)))
            if target in CLASS_TARGETS:
                return branches["cls_head"][level](features)
            sides = branches["box_head"][level](features)  # [n, 4 * bins, h, w]
            return self.head.dfl(sides.flatten(2)).unflatten(2, sides.shape[2:]) * stride

        def score(values: Tensor, classes: Tensor) -> Tensor:
            scalars = _class_score(values, classes, target) if target in CLASS_TARGETS else _side_score(values, target)
            return scalars if scalars.ndim == 2 else scalars[:, None]

        return LocalScore(tuple(f"model.{i}" for i in beside), replay, score, stride)

    def _beside(self, layer: int, cut: set[int]) -> set[int]:
        """The layers before the cut whose outputs `layer` needs beside those of the cut; -1 stands for the picture."""
        if layer in cut:
            return set()
        if layer < min(cut):  # layers run in order, so it cannot depend on the cut
            return {layer}
        return set().union(*(self._beside(source, cut) for source in self._inputs_of(layer)))

    def _depends(self, layer: int, source: int) -> bool:
        """Whether what `layer` puts out depends on what `source` puts out."""
        return layer == source or (layer > source and any(self._depends(i, source) for i in self._inputs_of(layer)))

    def _output_of(self, layer: int, known: dict[int, Tensor]) -> Tensor:
        """What `layer` puts out, given the outputs of some layers before it; adds what it computes to `known`."""
        if layer not in known:
            inputs = [self._output_of(source, known) for source in self._inputs_of(layer)]
            module = self.sequence[layer]
            known[layer] = module(inputs[0] if isinstance(module.f, int) else inputs)
        return known[layer]

    def _inputs_of(self, layer: int) -> list[int]:
        """The indices of the layers that feed `layer`, in its own order."""
        source: Any = self.sequence[layer].f
        sources = [source] if isinstance(source, int) else source
        return [layer + i if i < 0 else i for i in sources]


def _class_score(logits: Tensor, classes: Tensor, target: str) -> Tensor:
    """[N] logit, probability or margin (logit minus the best other logit) of `classes` [N] in `logits` [N, nc]."""
    own = logits.gather(1, classes[:, None]).squeeze(1)
    if target == "class":
        return own
    if target == "prob":
        return own.sigmoid()
    others = logits.scatter(1, classes[:, None], float("-inf"))
    return own - others.amax(dim=1)


def _side_score(sides: Tensor, target: str) -> Tensor:
    """All four sides [N, 4], or one of them [N]."""
    return sides if target == "box" else sides[:, SIDES.index(target)]


def _inside(boxes: Tensor, height: int, width: int) -> Tensor:
    """[N, height, width] bool: the cells whose index lies in [x1, x2) x [y1, y2), as Ultralytics crops masks."""
    x = torch.arange(width, device=boxes.device)
    y = torch.arange(height, device=boxes.device)
    x1, y1, x2, y2 = boxes.unbind(1)
    columns = (x >= x1[:, None]) & (x < x2[:, None])
    rows = (y >= y1[:, None]) & (y < y2[:, None])
    return rows[:, :, None] & columns[:, None, :]


def _with_mask(logits: Tensor, boxes: Tensor, network: tuple[int, int]) -> Tensor:
    """[N] bool: predict drops objects whose mask, upsampled to the network's input, is empty inside the box."""
    keep = torch.ones(len(logits), dtype=torch.bool, device=logits.device)
    for i in range(len(logits)):
        mask = interpolate(logits[i][None, None], network, mode="bilinear")[0] > 0
        keep[i] = (mask & _inside(boxes[i : i + 1], *network)).any()
    return keep


def _mask_region(objects: Objects, cells: tuple[int, int], strides: Tensor) -> Tensor:
    """[N, h, w] float: 1 on the predicted mask inside the box; the box's strongest cell if that is empty."""
    assert objects.mask_logits is not None
    scale = 2.0 / float(strides.min())  # prototypes have twice the resolution of the finest level
    inside = _inside(objects.network_boxes * scale, *cells)
    region = (objects.mask_logits > 0) & inside
    for i in (~region.flatten(1).any(dim=1)).nonzero().flatten().tolist():
        allowed = inside[i] if inside[i].any() else torch.ones_like(inside[i])
        best = objects.mask_logits[i].masked_fill(~allowed, float("-inf")).argmax()
        region[i].view(-1)[best] = True
    return region.float()
