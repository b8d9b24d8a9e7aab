"""Ultralytics YOLO, detection and instance segmentation: v3u to 26, anchors or end-to-end heads."""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from detcam.adapters.base import Adapter, LayerPlan, Readout
from detcam.adapters.yolo_scores import BOX_TARGETS, CLASS_TARGETS, YoloOutputs, inside, readouts, scores
from detcam.errors import ModelError
from detcam.geometry import Geometry, letterbox
from detcam.types import Objects


class YoloAdapter(Adapter):
    """YOLO detect and segment models of Ultralytics.

    The scalar is read before decoding: the class logit of the anchor that the kept box came from.

    `module` is a view of Ultralytics' DetectionModel or SegmentationModel; `imgsz` is the longest side of the
    network's input in pixels.
    """

    family = "ultralytics"
    models = "YOLO detect and segment: v3u, v5u, v6, v8, v9, v10, 11, 12, 26"
    install = 'pip install "detcam[ultralytics]"'
    targets = (*CLASS_TARGETS, *BOX_TARGETS, "mask")

    def __init__(self, module: nn.Module, model: Any, imgsz: int | None = None, processor: Any = None) -> None:
        self.module = module
        self.imgsz = imgsz or _predict_size(model)
        network: Any = module
        self.sequence = network.model  # the nn.Sequential of numbered layers
        self.backbone = len(network.yaml["backbone"])  # layers 0 .. backbone - 1; the neck and the head follow
        self.head = self.sequence[-1]
        self.task = "segment" if hasattr(self.head, "proto") else "detect"
        names = network.names
        self.names: dict[int, str] = dict(names) if isinstance(names, dict) else dict(enumerate(names))
        self.stride = max(int(self.head.stride.max()), 32)
        size = (self.imgsz, self.imgsz) if isinstance(self.imgsz, int) else self.imgsz
        self.size = tuple(-(-side // self.stride) * self.stride for side in size)
        missing = {"mask"} if self.task == "detect" else set()
        if len(self.names) < 2:
            missing.add("margin")  # there is no other class to compare with
        self.available = tuple(target for target in self.targets if target not in missing)
        self.levels = int(self.head.nl)
        self.head.shape = None  # cached anchors may be inference tensors: have them rebuilt
        self.head.export = False
        self.head.agnostic_nms = False  # an earlier predict call may have left it on
        # What the branches put out level by level, which the head itself hands on only concatenated.
        self._maps: defaultdict[str, list[Tensor]] = defaultdict(list)
        for name, branch in (self.head.one2one if self.head.end2end else self.head.one2many).items():
            for part in branch:
                part.register_forward_hook(partial(self._keep, name))
        parameter = next(module.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype

    @classmethod
    def serves(cls, model: Any) -> bool:
        """See `Adapter.serves`: an Ultralytics wrapper or module, or derived from one."""
        return any(base.__module__.split(".")[0] == "ultralytics" for base in type(model).__mro__)

    @classmethod
    def unwrap(cls, model: Any) -> nn.Module:
        """See `Adapter.unwrap`: an error for tasks without boxes, and for weights in an exported format."""
        module = _module_of(model)
        if not isinstance(module, nn.Module):
            raise ModelError(f"{module}: an exported model has no gradients: give the .pt weights it was made from")
        layers = getattr(module, "model", None)
        head = layers[-1] if isinstance(layers, nn.Sequential) else None
        if type(head).__name__ not in ("Detect", "v10Detect", "Segment", "Segment26"):
            raise ModelError(
                f"{type(module).__name__} with head {type(head).__name__} is no YOLO detector or instance "
                "segmenter: give a detect or segment model, e.g. yolov8n.pt or yolo11n-seg.pt"
            )
        return module

    def prepare(self, image: np.ndarray) -> tuple[Tensor, Geometry]:
        """See `Adapter.prepare`: the letterbox of Ultralytics' predict call."""
        padded, geometry = letterbox(image, (self.size[0], self.size[1]), self.stride)
        pixels = torch.from_numpy(padded).to(self.device).permute(2, 0, 1)
        return pixels.to(self.dtype).div_(255), geometry

    def _keep(self, name: str, module: nn.Module, args: object, output: Tensor) -> None:
        self._maps[name].append(output)

    def forward(self, batch: Tensor, max_det: int) -> YoloOutputs:
        """See `Adapter.forward`."""
        self.head.max_det = max(max_det, 300)  # as predict sets it, for end-to-end heads
        self._maps.clear()
        decoded, predictions = self.module(batch)
        maps, self._maps = self._maps, defaultdict(list)  # kept here, they would keep the whole graph alive
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
        return scores(outputs, objects, target, self.head)

    def readouts(self, outputs: YoloOutputs, objects: list[Objects], target: str) -> list[Readout]:
        """See `Adapter.readouts`."""
        return readouts(outputs, objects, target, self.head)

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
        boxes = torch.cat([centre - sides[:, :2], centre + sides[:, 2:]], dim=1)  # [B, 4, A]
        probabilities = outputs.logits.detach().float().sigmoid().transpose(1, 2)
        return boxes.transpose(1, 2), probabilities, probabilities.amax(dim=2)

    def layers(self, preset: str) -> LayerPlan:
        """See `Adapter.layers`."""
        inputs = self._inputs_of(len(self.sequence) - 1)
        if preset == "level":
            return LayerPlan(tuple(f"model.{i}" for i in inputs), cut_all=True, fuse="own")
        # The neck reads the backbone's last layer and, through skips, earlier ones.
        beyond = range(self.backbone, len(self.sequence))
        doors = {i for layer in beyond for i in self._inputs_of(layer) if i < self.backbone}
        return LayerPlan(tuple(f"model.{i}" for i in sorted(doors)), cut_all=True, fuse="sum")

    def _inputs_of(self, layer: int) -> list[int]:
        """The indices of the layers that feed `layer`, in its own order."""
        source: Any = self.sequence[layer].f
        sources = [source] if isinstance(source, int) else source
        return [layer + i if i < 0 else i for i in sources]


def _module_of(model: Any) -> Any:
    """A wrapper keeps its nn.Module, or the path of an exported model, in .model."""
    return model.model if hasattr(model, "overrides") else model


def _predict_size(model: Any) -> int | tuple[int, int]:
    """The input size that the model's own predict call would use: one number, or (height, width)."""
    arguments = getattr(_module_of(model), "args", {})
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
