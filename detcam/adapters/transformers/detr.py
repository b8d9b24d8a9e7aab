"""Detection transformers of the transformers library: DETR and its successors, and YOLOS."""

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
from detcam.adapters.shared.queries import query_objects
from detcam.adapters.shared.scores import BOX_TARGETS, CLASS_TARGETS, class_score, side_score, sides_from_corner
from detcam.adapters.transformers.base import (
    checkpoint_processor,
    longest_side,
    made_for,
    require_architecture,
    size_of,
)
from detcam.boxes import corners
from detcam.geometry import Geometry
from detcam.types import Objects, image_index


@dataclass(frozen=True)
class DetrKind:
    """Facts of one architecture.

    Attributes:
        level: the module whose output are the maps, or tokens, that the queries read; {last} is the last block.
        entries: the module that projects the backbone's last map to the transformer's width, or a list of modules, one
            per map. It is a 1x1 convolution (but for extra, coarser levels), which mixes channels, not cells: gradient
            times activation summed over channels equals that at the backbone's output, except for the bias.
        processor: the class of the image processor.
        softmax: whether the classes share a softmax with a last class "no object".
        selected: whether the model selects queries from the image: then a number means another query in another image.
    """

    level: str
    entries: str
    processor: str
    softmax: bool = False
    selected: bool = False


_KINDS = {
    "detr": DetrKind("model.encoder", "model.input_projection", "DetrImageProcessor", softmax=True),
    "table-transformer": DetrKind("model.encoder", "model.input_projection", "DetrImageProcessor", softmax=True),
    "conditional_detr": DetrKind("model.encoder", "model.input_projection", "ConditionalDetrImageProcessor"),
    "dab-detr": DetrKind("model.encoder", "model.input_projection", "ConditionalDetrImageProcessor"),
    "deformable_detr": DetrKind("model.encoder", "model.input_proj", "DeformableDetrImageProcessor"),
    "rt_detr": DetrKind("model.encoder", "model.encoder_input_proj", "RTDetrImageProcessor", selected=True),
    "rt_detr_v2": DetrKind("model.encoder", "model.encoder_input_proj", "RTDetrImageProcessor", selected=True),
    "d_fine": DetrKind("model.encoder", "model.encoder_input_proj", "RTDetrImageProcessor", selected=True),
    # Detection tokens read the patches up to the last block, after its norm: before a norm, gradient times
    # activation, summed over channels, is zero at every cell, because scaling the input does not change the output.
    "yolos": DetrKind(
        "vit.encoder.layer.{last}.layernorm_before",
        "vit.embeddings.patch_embeddings.projection",
        "YolosImageProcessor",
        softmax=True,
    ),
}


@dataclass(frozen=True)
class DetrOutputs:
    """Raw outputs for B images, Q queries and nc classes ("no object" included), with the graph.

    Attributes:
        logits: [B, Q, nc] class logits.
        boxes: [B, Q, 4] (cx, cy, w, h) as shares of the image.
        sizes: [B, 2] (height, width) of each image in the network's input, in pixels.
    """

    logits: Tensor
    boxes: Tensor
    sizes: Tensor


class DetrAdapter(Adapter):
    """Object detectors with queries of the transformers library.

    The scalar is the class logit of the kept query. If each class has a sigmoid, the library keeps the best pairs of
    query and class, so two objects may share a query. There is no non-maximum suppression: `iou` has no effect. Of more
    than `max_det` objects the best are kept, in the library's order.

    `module` is a view of the model; `imgsz` is the longest side of the network's input in pixels; `processor` is the
    model's image processor. Default: the processor of its checkpoint if that is on this machine, else of its
    architecture.
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
        several = len(self.names) > 1 or self.kind.softmax  # "no object" is a class too
        self.available = tuple(t for t in self.targets if t != "margin" or several)  # a margin needs two classes
        self.stable = not (self.kind.selected or getattr(network.config, "two_stage", False))
        self.masked = "pixel_mask" in inspect.signature(module.forward).parameters
        self._watch_entries()

    def _watch_entries(self) -> None:
        """Finish the construction: record the (h, w) of each entry's output in the last forward."""
        parameter = next(self.module.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        entries = self.module.get_submodule(self.kind.entries)
        self.entries = [self.kind.entries]
        if isinstance(entries, nn.ModuleList):
            self.entries = [f"{self.kind.entries}.{i}" for i in range(len(entries))]
        self.cells: dict[str, tuple[int, int]] = {}
        for name in self.entries:
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
        """See `Adapter.prepare`: by the image processor; a fourth channel is 0 on padding, if there is padding."""
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
        """See `Adapter.detect`: the processor's post-processing, run a second time to get the query of each object."""
        post_process = self.processor.post_process_object_detection
        sources = [geometry.source for geometry in geometries]
        results = post_process(_namespace(outputs.logits, outputs.boxes), threshold=conf, target_sizes=sources)
        # The selection depends on logits only: boxes of size 0 at x = query are kept in the same places.
        tags = torch.zeros_like(outputs.boxes, dtype=torch.float32)
        tags[..., 0] = torch.arange(tags.shape[1], device=tags.device)
        tagged = post_process(_namespace(outputs.logits, tags), threshold=conf, target_sizes=None)
        objects = []
        for result, tag, geometry in zip(results, tagged, geometries, strict=True):
            best = result["scores"].argsort(descending=True, stable=True)[:max_det].sort().values
            boxes, query = result["boxes"][best].float(), tag["boxes"][best, 0].long()
            scores, classes = result["scores"][best], result["labels"][best]
            objects.append(query_objects(boxes, scores, classes, query, self.names, geometry))
        return objects

    def score(self, outputs: DetrOutputs, objects: list[Objects], target: str) -> Tensor:
        """See `Adapter.score`."""
        image = image_index(objects, outputs.logits.device)
        query = torch.cat([o.index for o in objects])
        if target in BOX_TARGETS:
            sizes = outputs.sizes[image].flip(1).repeat(1, 2)  # (width, height, width, height)
            return side_score(sides_from_corner(outputs.boxes[image, query] * sizes), target)
        classes = torch.cat([o.class_ids for o in objects])
        softmax = self.kind.softmax
        return class_score(outputs.logits[image, query], classes, target, softmax, background=-1 if softmax else None)

    @torch.no_grad()
    def candidates(self, outputs: DetrOutputs) -> tuple[Tensor, Tensor, Tensor]:
        """See `Adapter.candidates`: one candidate per query."""
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
        """See `Adapter.layers`: every query reads all maps, so the maps of a plan are added."""
        if preset == "evidence":
            return LayerPlan(tuple(self.entries), cut_all=True, fuse="sum")
        network: Any = self.module
        last = getattr(network.config, "num_hidden_layers", 0) - 1
        return LayerPlan((self.kind.level.format(last=last),), cut_all=True, fuse="sum")

    def attention(self) -> AttentionPlan:
        """See `Adapter.attention`."""
        return attention_plan(self.module, self.family)

    def grids(self, tokens: int, size: tuple[int, int]) -> list[tuple[int, int, int]]:
        """See `Adapter.grids`: the maps of all entries in turn, alone or after a class token."""
        maps = [self.cells[name] for name in self.entries if name in self.cells]
        network: Any = self.module
        extra = tokens - sum(rows * columns for rows, columns in maps)
        if extra not in (0, 1 + getattr(network.config, "num_detection_tokens", -1)):
            return []
        grids, start = [], min(extra, 1)
        for rows, columns in maps:
            grids.append((start, rows, columns))
            start += rows * columns
        return grids


def _namespace(logits: Tensor, boxes: Tensor) -> Any:
    return SimpleNamespace(logits=logits, pred_boxes=boxes)


def _processor(config: Any, kind: DetrKind) -> Any:
    """The image processor of the checkpoint if it is on this machine, else the default of the architecture."""
    import transformers

    return checkpoint_processor(config) or getattr(transformers, kind.processor)()
