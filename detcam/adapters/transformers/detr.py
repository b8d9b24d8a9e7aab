"""Detection transformers of the transformers library: DETR and what followed it, and YOLOS."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from detcam.adapters.base import Adapter, LayerPlan, Selection
from detcam.adapters.shared.attention import AttentionPlan, attention_plan
from detcam.adapters.shared.queries import (
    BOX_TARGETS,
    CLASS_TARGETS,
    class_score,
    corners,
    query_objects,
    side_score,
)
from detcam.adapters.transformers.base import (
    checkpoint_processor,
    longest_side,
    made_for,
    require_architecture,
    size_of,
)
from detcam.geometry import Geometry
from detcam.types import Objects, image_index


@dataclass(frozen=True)
class DetrKind:
    """What sets one architecture apart.

    Attributes:
        level: the module that puts out the maps, or the tokens, that the queries read; {last} is the last block.
        doors: the module that projects the backbone's last map to the transformer's width, or a list of one for each
            map. A 1x1 convolution there (but for extra, coarser levels) mixes channels and no cells, so gradient times
            activation summed over channels is what it is at the backbone's own output, but for the bias.
        processor: the class of its image processor.
        softmax: whether the classes share a softmax with a last one that stands for "no object".
        chosen: whether queries are chosen from the picture, so that a number means another query in another picture.
    """

    level: str
    doors: str
    processor: str
    softmax: bool = False
    chosen: bool = False


_KINDS = {
    "detr": DetrKind("model.encoder", "model.input_projection", "DetrImageProcessor", softmax=True),
    "table-transformer": DetrKind("model.encoder", "model.input_projection", "DetrImageProcessor", softmax=True),
    "conditional_detr": DetrKind("model.encoder", "model.input_projection", "ConditionalDetrImageProcessor"),
    "dab-detr": DetrKind("model.encoder", "model.input_projection", "ConditionalDetrImageProcessor"),
    "deformable_detr": DetrKind("model.encoder", "model.input_proj", "DeformableDetrImageProcessor"),
    "rt_detr": DetrKind("model.encoder", "model.encoder_input_proj", "RTDetrImageProcessor", chosen=True),
    "rt_detr_v2": DetrKind("model.encoder", "model.encoder_input_proj", "RTDetrImageProcessor", chosen=True),
    "d_fine": DetrKind("model.encoder", "model.encoder_input_proj", "RTDetrImageProcessor", chosen=True),
    # Detection tokens read the patches up to the last block, as its norm puts them out: before a norm, gradient
    # times activation, summed over channels, is zero at every cell, because what a norm puts out keeps its size.
    "yolos": DetrKind(
        "vit.encoder.layer.{last}.layernorm_before",
        "vit.embeddings.patch_embeddings.projection",
        "YolosImageProcessor",
        softmax=True,
    ),
}


@dataclass(frozen=True)
class DetrOutputs:
    """Raw outputs for B pictures, Q queries and nc classes ("no object" included), with the graph.

    Attributes:
        logits: [B, Q, nc] class logits.
        boxes: [B, Q, 4] (cx, cy, w, h) as shares of the picture.
        sizes: [B, 2] (height, width) of each picture in the network's input, in pixels.
    """

    logits: Tensor
    boxes: Tensor
    sizes: Tensor


class DetrAdapter(Adapter):
    """Object detectors with queries of the transformers library.

    The scalar is the class logit of the kept query. Where classes have a sigmoid each, the library keeps the best
    (query, class) pairs, so two objects may share a query. There is no non-maximum suppression: `iou` has no effect.
    Of more than `max_det` objects the best are kept, in the library's order.

    `module` is a view of the model; `imgsz` is the longest side of the network's input in pixels; `processor` is the
    model's image processor, by default that of its checkpoint if it lies on this machine, else its architecture's.
    """

    family = "transformers detection"
    models = "DETR, Table Transformer, Conditional DETR, DAB-DETR, Deformable DETR, RT-DETR, RT-DETRv2, D-FINE, YOLOS"
    install = 'pip install "detcam[transformers]"'
    targets = (*CLASS_TARGETS, *BOX_TARGETS)
    levels = 1
    task = "detect"

    def __init__(self, module: nn.Module, model: Any, imgsz: int | None = None, processor: Any = None) -> None:
        self.module = module
        network: Any = module
        self.kind = _KINDS[network.config.model_type]
        self.processor = processor or _processor(network.config, self.kind)
        self.resize = {} if imgsz is None else {"size": longest_side(self.processor.size, imgsz)}
        self.imgsz = imgsz or size_of(self.processor)
        self.names: dict[int, str] = {int(i): name for i, name in network.config.id2label.items()}
        # Of one class there is no other to compare with, unless there is "no object".
        several = len(self.names) > 1 or self.kind.softmax
        self.available = tuple(target for target in self.targets if target != "margin" or several)
        self.stable = not (self.kind.chosen or getattr(network.config, "two_stage", False))
        self.masked = "pixel_mask" in inspect.signature(module.forward).parameters
        self._watch_doors()

    def _watch_doors(self) -> None:
        """Finish the construction: remember the (h, w) that each door put out in the last forward."""
        parameter = next(self.module.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        doors = self.module.get_submodule(self.kind.doors)
        self.doors = [self.kind.doors]
        if isinstance(doors, nn.ModuleList):
            self.doors = [f"{self.kind.doors}.{i}" for i in range(len(doors))]
        self.cells: dict[str, tuple[int, int]] = {}
        for name in self.doors:
            self.module.get_submodule(name).register_forward_hook(self._remember(name))

    def _remember(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            self.cells[name] = (output.shape[2], output.shape[3])

        return hook

    @classmethod
    def serves(cls, model: Any) -> bool:
        """See `Adapter.serves`: a model of transformers for object detection, or derived from one."""
        return made_for(model, "ObjectDetection")

    @classmethod
    def unwrap(cls, model: Any) -> nn.Module:
        """See `Adapter.unwrap`: an error for architectures that are not in the table."""
        require_architecture(model, _KINDS)
        module: nn.Module = model
        return module

    def prepare(self, image: np.ndarray) -> tuple[Tensor, Geometry]:
        """See `Adapter.prepare`: what the image processor makes of it; a fourth channel is 0 on padding, if any."""
        data = self.processor(images=image, input_data_format="channels_last", return_tensors="pt", **self.resize)
        pixels = data["pixel_values"][0].to(self.device, self.dtype)
        network = resized = (pixels.shape[1], pixels.shape[2])
        if "pixel_mask" in data and not bool(data["pixel_mask"].all()):
            mask = data["pixel_mask"][0].to(pixels)
            resized = int(mask[:, 0].sum()), int(mask[0].sum())
            pixels = torch.cat([pixels, mask[None]])
        return pixels, Geometry((image.shape[0], image.shape[1]), resized, (0, 0), network)

    def forward(self, batch: Tensor, max_det: int) -> DetrOutputs:
        """See `Adapter.forward`."""
        inside = batch[:, 3] if batch.shape[1] > 3 else torch.ones_like(batch[:, 0])
        masks = {"pixel_mask": inside.long()} if self.masked else {}
        outputs = self.module(
            pixel_values=batch[:, :3],
            output_attentions=False,
            output_hidden_states=False,
            return_dict=True,
            **masks,
        )
        sizes = torch.stack([inside[:, :, 0].sum(dim=1), inside[:, 0].sum(dim=1)], dim=1)
        return DetrOutputs(outputs.logits, outputs.pred_boxes, sizes)

    @torch.no_grad()
    def detect(
        self, outputs: DetrOutputs, geometries: list[Geometry], conf: float, iou: float, max_det: int
    ) -> list[Objects]:
        """See `Adapter.detect`: the image processor's own post-processing, with the query carried along."""
        post_process = self.processor.post_process_object_detection
        sources = [geometry.source for geometry in geometries]
        results = post_process(_namespace(outputs.logits, outputs.boxes), threshold=conf, target_sizes=sources)
        # The selection looks at logits only, so boxes of no size at x = query pass through it to the same places.
        tags = torch.zeros_like(outputs.boxes, dtype=torch.float32)
        tags[..., 0] = torch.arange(tags.shape[1], device=tags.device)
        tagged = post_process(_namespace(outputs.logits, tags), threshold=conf, target_sizes=None)
        found = []
        for result, tag, geometry in zip(results, tagged, geometries, strict=True):
            best = result["scores"].argsort(descending=True, stable=True)[:max_det].sort().values
            boxes, query = result["boxes"][best].float(), tag["boxes"][best, 0].long()
            scores, classes = result["scores"][best], result["labels"][best]
            found.append(query_objects(boxes, scores, classes, query, self.names, geometry))
        return found

    def score(self, outputs: DetrOutputs, objects: list[Objects], target: str) -> Tensor:
        """See `Adapter.score`."""
        image = image_index(objects, outputs.logits.device)
        query = torch.cat([o.index for o in objects])
        if target in BOX_TARGETS:
            sizes = outputs.sizes[image].flip(1).repeat(1, 2)  # (width, height, width, height)
            return side_score(outputs.boxes[image, query] * sizes, target)
        classes = torch.cat([o.class_ids for o in objects])
        return class_score(outputs.logits[image, query], classes, target, self.kind.softmax)

    @torch.no_grad()
    def candidates(self, outputs: DetrOutputs) -> tuple[Tensor, Tensor, Tensor]:
        """See `Adapter.candidates`: one for every query."""
        logits = outputs.logits.float()
        probabilities = logits.softmax(dim=2)[..., :-1] if self.kind.softmax else logits.sigmoid()
        boxes = outputs.boxes.float() * outputs.sizes.flip(1).repeat(1, 2)[:, None]
        return corners(boxes.flatten(0, 1)).view_as(boxes), probabilities, probabilities.amax(dim=2)

    @torch.no_grad()
    def objects_at(self, outputs: DetrOutputs, candidates: Tensor, class_ids: Tensor, geometry: Geometry) -> Objects:
        """See `Adapter.objects_at`: queries."""
        height, width = geometry.source
        shares = outputs.boxes[0, candidates].float()
        scores = self.candidates(outputs)[1][0, candidates, class_ids]
        boxes = corners(shares) * shares.new_tensor([width, height] * 2)
        return query_objects(boxes, scores, class_ids, candidates, self.names, geometry)

    def selection(self, iou: float) -> Selection:
        """See `Adapter.selection`: with a shared softmax each query counts once."""
        return Selection(one_class=self.kind.softmax)

    def layers(self, preset: str) -> LayerPlan:
        """See `Adapter.layers`: every query reads all of the maps, so those of one plan are added."""
        if preset == "evidence":
            return LayerPlan(tuple(self.doors), cut_all=True, fuse="sum")
        network: Any = self.module
        last = getattr(network.config, "num_hidden_layers", 0) - 1
        return LayerPlan((self.kind.level.format(last=last),), cut_all=True, fuse="sum")

    def attention(self) -> AttentionPlan:
        """See `Adapter.attention`."""
        return attention_plan(self.module, self.family)

    def grids(self, tokens: int, size: tuple[int, int]) -> list[tuple[int, int, int]]:
        """See `Adapter.grids`: the maps of all doors one after the other, alone or behind a class token."""
        maps = [self.cells[name] for name in self.doors if name in self.cells]
        network: Any = self.module
        beside = tokens - sum(rows * columns for rows, columns in maps)
        if beside not in (0, 1 + getattr(network.config, "num_detection_tokens", -1)):
            return []
        grids, start = [], min(beside, 1)
        for rows, columns in maps:
            grids.append((start, rows, columns))
            start += rows * columns
        return grids


def _namespace(logits: Tensor, boxes: Tensor) -> Any:
    return SimpleNamespace(logits=logits, pred_boxes=boxes)


def _processor(config: Any, kind: DetrKind) -> Any:
    """The image processor of the checkpoint if it lies on this machine, else the default one of the architecture."""
    import transformers

    return checkpoint_processor(config) or getattr(transformers, kind.processor)()
