"""Detection transformers of the transformers library: DETR and its successors, and YOLOS."""

import inspect
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from detcam.adapters.base import ImageSize, LayerPlan, Selection
from detcam.adapters.shared.queries import QueryAdapter, QueryOutputs, query_objects, strongest
from detcam.adapters.transformers.base import TransformersAdapter, default_processor, longest_side, size_of, sizes_of
from detcam.boxes import corners
from detcam.geometry import Geometry
from detcam.types import Objects


@dataclass(frozen=True)
class DetrKind:
    """Facts of one architecture."""

    level: str  # the module whose output are the maps, or tokens, that the queries read; {last} is the last block
    # The module that projects the backbone's last map to the transformer's width, or a list of modules, one per map. It
    # is a 1x1 convolution (but for extra, coarser levels), which mixes channels, not cells: gradient times activation
    # summed over channels equals that at the backbone's output, except for the bias.
    entries: str
    processor: str  # the class of the image processor
    softmax: bool = False  # whether the classes share a softmax with a last class "no object"
    # Whether the model selects queries from the image: then a number means another query in another image.
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


class DetrAdapter(TransformersAdapter, QueryAdapter):
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
    served = ".*ForObjectDetection"
    kinds: ClassVar = _KINDS

    def __init__(self, module: Any, model: Any, imgsz: ImageSize | None = None, processor: Any = None) -> None:
        super().__init__(module, model, imgsz, processor)
        self.kind = self.kinds[self.config.model_type]
        self.softmax = self.kind.softmax
        self.processor = processor or default_processor(self.config, self.kind.processor)
        self.resize = self._resized(imgsz)
        self.imgsz = imgsz or size_of(self.processor)
        self.available = self._available(len(self.names) + self.softmax)  # "no object" is a class too
        self.stable = not (self.kind.selected or getattr(self.config, "two_stage", False))
        self.masked = "pixel_mask" in inspect.signature(module.forward).parameters
        entries = module.get_submodule(self.kind.entries)
        self.entries = [self.kind.entries]
        if isinstance(entries, nn.ModuleList):
            self.entries = [f"{self.kind.entries}.{i}" for i in range(len(entries))]
        self.cells: dict[str, tuple[int, int]] = {}  # the (h, w) of the output of each entry in the last forward
        for name in self.entries:
            module.get_submodule(name).register_forward_hook(partial(self._remember, name))

    def _resized(self, imgsz: ImageSize | None) -> dict[str, Any]:
        """The options of the image processor for an input of `imgsz` pixels."""
        return {} if imgsz is None else longest_side(self.processor, imgsz)

    def _remember(self, name: str, module: nn.Module, args: Any, output: Tensor) -> None:
        self.cells[name] = (output.shape[2], output.shape[3])

    def forward(self, batch: Tensor, max_det: int) -> QueryOutputs:
        inside = batch[:, self.channels] if batch.shape[1] > self.channels else torch.ones_like(batch[:, 0])
        inputs = {"pixel_values": batch[:, : self.channels]}
        if self.masked:
            inputs["pixel_mask"] = inside.long()
        outputs = self.module(output_attentions=False, output_hidden_states=False, return_dict=True, **inputs)
        return QueryOutputs(outputs.logits, outputs.pred_boxes, sizes_of(inside))

    @torch.no_grad()
    def detect(
        self, outputs: QueryOutputs, geometries: list[Geometry], conf: float, iou: float, max_det: int
    ) -> list[Objects]:
        """See `Adapter.detect`: the processor's post-processing, run a second time to get the query of each object."""
        sources = [geometry.source for geometry in geometries]
        results = self._post_process(outputs, outputs.boxes, conf, sources)
        # The selection depends on logits only: boxes of size 0 at x = query are kept in the same places.
        tags = torch.zeros_like(outputs.boxes, dtype=torch.float32)
        tags[..., 0] = torch.arange(tags.shape[1], device=tags.device)
        tagged = self._post_process(outputs, tags, conf, None)
        objects = []
        for logits, result, tag, geometry in zip(outputs.logits, results, tagged, geometries, strict=True):
            best = strongest(result["scores"], max_det)
            boxes, queries, scores = result["boxes"][best].float(), tag["boxes"][best, 0].long(), result["scores"][best]
            classes = self._classes(result, best, logits[queries])
            objects.append(query_objects(boxes, scores, classes, queries, self.names, geometry))
        return objects

    def _post_process(self, outputs: Any, boxes: Tensor, conf: float, sizes: list[tuple[int, int]] | None) -> list[Any]:
        """The post-processing of the library: for each image "scores" and "boxes" of the kept queries."""
        raw = SimpleNamespace(logits=outputs.logits, pred_boxes=boxes)
        return self.processor.post_process_object_detection(raw, threshold=conf, target_sizes=sizes)

    def _classes(self, result: Any, best: Tensor, logits: Tensor) -> Tensor:
        """[n] int64: the classes of the rows `best` of a result, from queries with `logits` [n, nc]."""
        return result["labels"][best]

    @torch.no_grad()
    def candidates(self, outputs: QueryOutputs) -> tuple[Tensor, Tensor, Tensor]:
        """See `Adapter.candidates`: one candidate per query."""
        logits = outputs.logits.float()
        probabilities = logits.softmax(dim=2)[..., :-1] if self.softmax else logits.sigmoid()
        boxes = outputs.boxes.float() * outputs.scale()[:, None]
        return corners(boxes.flatten(0, 1)).view_as(boxes), probabilities, probabilities.amax(dim=2)

    def selection(self, iou: float) -> Selection:
        """See `Adapter.selection`: with a shared softmax each query counts once."""
        return Selection(one_class=self.softmax)

    def layers(self, preset: str) -> LayerPlan:
        """See `Adapter.layers`: every query reads all maps, so the maps of a plan are added."""
        if preset == "evidence":
            return LayerPlan(tuple(self.entries), cut_all=True, fuse="sum")
        last = getattr(self.config, "num_hidden_layers", 0) - 1
        return LayerPlan((self.kind.level.format(last=last),), cut_all=True, fuse="sum")

    def grids(self, tokens: int, size: tuple[int, int]) -> list[tuple[int, int, int]]:
        """See `Adapter.grids`: the maps of all entries in turn, alone or after a class token."""
        maps = [self.cells[name] for name in self.entries if name in self.cells]
        extra = tokens - sum(rows * columns for rows, columns in maps)
        if extra not in (0, 1 + getattr(self.config, "num_detection_tokens", -1)):
            return []
        grids, start = [], min(extra, 1)
        for rows, columns in maps:
            grids.append((start, rows, columns))
            start += rows * columns
        return grids
