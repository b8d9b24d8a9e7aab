"""OmDet-Turbo of the transformers library: a detector of phrases that also reads a task."""

import copy
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from detcam.adapters.base import LayerPlan, Selection
from detcam.adapters.shared.attention import AttentionPlan
from detcam.adapters.shared.queries import query_objects, strongest, whole_inputs
from detcam.adapters.transformers.detr import DetrKind
from detcam.adapters.transformers.text_prompted import PromptedAdapter, PromptedOutputs
from detcam.errors import MethodError
from detcam.geometry import Geometry
from detcam.types import Objects


class OmDetAdapter(PromptedAdapter):
    """OmDet-Turbo (Zhao et al. 2024, arXiv:2403.06892).

    The task is the processor's default, "Detect PHRASE, PHRASE.". The library keeps the best pairs of query and phrase
    and suppresses weaker boxes of the same phrase above the overlap `iou`. The model selects queries from the image.
    "level" are the maps that the decoder reads, "evidence" the maps that enter the hybrid encoder.
    """

    family = "transformers OmDet"
    models = "OmDet-Turbo; with text=[...]"
    served = "OmDetTurbo.*ForObjectDetection"
    kinds: ClassVar = {
        "omdet-turbo": DetrKind(
            "decoder.channel_projection_layers", "encoder.channel_projection_layers", "AutoProcessor", selected=True
        )
    }

    @classmethod
    def unwrap(cls, model: Any) -> nn.Module:
        """See `Adapter.unwrap`: with empty caches of text embeddings: cached ones may belong to a graph of the user."""
        module = copy.copy(super().unwrap(model))
        for name in ("language_cache_class", "language_cache_prompt"):
            cache: Any = getattr(module, name)
            setattr(module, name, type(cache)(cache.capacity))
        return module

    def _tokens(self, text: list[str]) -> dict[str, Tensor]:
        blank = np.zeros((32, 32, 3), np.uint8)  # the processor needs an image
        inputs = self.whole(images=blank, text=[text], return_tensors="pt")
        return {name: tensor for name, tensor in inputs.items() if name.startswith(("classes_", "tasks_"))}

    def forward(self, batch: Tensor, max_det: int) -> PromptedOutputs:
        texts = {name: tokens.repeat(len(batch), *[1] * (tokens.ndim - 1)) for name, tokens in self.inputs.items()}
        outputs = self.module(
            pixel_values=batch, output_attentions=False, output_hidden_states=False, return_dict=True, **texts
        )
        logits = outputs.decoder_class_logits
        return PromptedOutputs(logits, outputs.decoder_coord_logits, whole_inputs(batch), raw=logits)

    @torch.no_grad()
    def detect(self, outputs: Any, geometries: list[Geometry], conf: float, iou: float, max_det: int) -> list[Objects]:
        """See `Adapter.detect`: the processor's post-processing; queries are identified by logit and box."""
        raw = SimpleNamespace(
            decoder_coord_logits=outputs.boxes,
            decoder_class_logits=outputs.raw,
            classes_structure=self.inputs["classes_structure"].expand(len(geometries)),
        )
        results = self.whole.post_process_grounded_object_detection(
            raw, threshold=conf, nms_threshold=iou, target_sizes=[geometry.source for geometry in geometries]
        )
        candidates = self.candidates(outputs)[0]
        objects = []
        for image, (result, geometry) in enumerate(zip(results, geometries, strict=True)):
            best = strongest(result["scores"], max_det)
            boxes, scores, classes = result["boxes"][best].float(), result["scores"][best], result["labels"][best]
            of_queries = geometry.to_source(candidates[image])
            apart = (of_queries[None] - boxes[:, None]).abs().amax(dim=2).nan_to_num(torch.inf)  # [N, Q]
            same = torch.isclose(scores[:, None], outputs.raw[image].sigmoid()[:, classes].T)  # to rounding: of a batch
            queries = torch.where(same, apart, torch.inf).argmin(dim=1)
            objects.append(query_objects(boxes, scores, classes, queries, self.names, geometry))
        return objects

    def selection(self, iou: float) -> Selection:
        return Selection(overlap=iou)

    def attention(self) -> AttentionPlan:
        """Always a MethodError: queries and the task's words attend to each other, which no map can show."""
        raise MethodError(
            f"{self.family} models mix queries with the words of their task: use a method that reads gradients, e.g. "
            "'odam'"
        )

    def layers(self, preset: str) -> LayerPlan:
        """See `Adapter.layers`: every query reads all maps, so the maps of a plan are added."""
        parent = self.kind.level if preset == "level" else self.kind.entries
        count = len(self.entries)
        return LayerPlan(tuple(f"{parent}.{i}" for i in range(count)), cut_all=True, fuse="sum")
