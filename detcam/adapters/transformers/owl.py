"""OWL-ViT and OWLv2 of the transformers library: a vision transformer with a candidate object per patch."""

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from detcam.adapters.base import ImageSize, LayerPlan
from detcam.adapters.shared.queries import query_objects, whole_inputs
from detcam.adapters.transformers.base import size_of
from detcam.adapters.transformers.detr import DetrKind
from detcam.adapters.transformers.text_prompted import PromptedAdapter, PromptedOutputs
from detcam.boxes import corners
from detcam.errors import InputError
from detcam.geometry import Geometry
from detcam.types import Objects


class OwlAdapter(PromptedAdapter):
    """OWL-ViT (Minderer et al. 2022, arXiv:2205.06230) and OWLv2 (Minderer et al. 2023, arXiv:2306.09683).

    Each patch has a box and a logit for every phrase; the library keeps the best phrase of each patch, and there is no
    non-maximum suppression: `iou` has no effect. Class and box are read from a single patch after the last block, whose
    map there would be a single cell; so "level" is the input of attention in the last block, "evidence" the input of
    the first block. Both are outputs of a norm: at the input of a norm, gradient times activation is zero.
    """

    family = "transformers OWL"
    models = "OWL-ViT, OWLv2; with text=[...]"
    served = "(OwlViT|Owlv2).*ForObjectDetection"
    kinds: ClassVar = {
        name: DetrKind(f"{name}.vision_model", f"{name}.vision_model.embeddings.patch_embedding", "AutoProcessor")
        for name in ("owlvit", "owlv2")
    }

    def _resized(self, imgsz: ImageSize | None) -> dict[str, Any]:
        if imgsz is not None:
            size = size_of(self.processor)
            raise InputError(f"imgsz: this model takes {size} only, got {imgsz}: leave imgsz out")
        return {}

    def prepare(self, image: np.ndarray) -> tuple[Tensor, Geometry]:
        """See `Adapter.prepare`: OWL-ViT stretches; OWLv2 first pads to a square, at the right and at the bottom."""
        pixels, geometry = super().prepare(image)
        if self.processor.do_pad and self.kind is self.kinds["owlv2"]:
            longest = max(geometry.source)
            height, width = (
                max(round(side * network / longest), 1)
                for side, network in zip(geometry.source, geometry.network, strict=True)
            )
            geometry = Geometry(geometry.source, (height, width), (0, 0), geometry.network)
        return pixels, geometry

    def _tokens(self, text: list[str]) -> dict[str, Tensor]:
        inputs = self.whole(text=[text], return_tensors="pt")
        return {name: inputs[name] for name in ("input_ids", "attention_mask")}

    def forward(self, batch: Tensor, max_det: int) -> PromptedOutputs:
        texts = {name: tokens.repeat(len(batch), 1) for name, tokens in self.inputs.items()}
        outputs = self.module(pixel_values=batch, return_dict=True, **texts)
        return PromptedOutputs(outputs.logits, outputs.pred_boxes, whole_inputs(batch), raw=outputs.logits)

    @torch.no_grad()
    def objects_at(self, outputs: Any, candidates: Tensor, class_ids: Tensor, geometry: Geometry) -> Objects:
        """See `Adapter.objects_at`: patches."""
        scores = self.candidates(outputs)[1][0, candidates, class_ids]
        shares = corners(outputs.boxes[0, candidates].float())
        sides = zip(geometry.network, geometry.source, geometry.resized, strict=True)
        scale = [network * source / resized for network, source, resized in sides]  # (height, width)
        boxes = shares * shares.new_tensor([scale[1], scale[0]] * 2)
        return query_objects(boxes, scores, class_ids, candidates, self.names, geometry)

    def layers(self, preset: str) -> LayerPlan:
        blocks: Any = self.module.get_submodule(f"{self.kind.level}.encoder.layers")
        name = "pre_layernorm" if preset == "evidence" else f"encoder.layers.{len(blocks) - 1}.layer_norm1"
        return LayerPlan((f"{self.kind.level}.{name}",), cut_all=True, fuse="sum")

    def grids(self, tokens: int, size: tuple[int, int]) -> list[tuple[int, int, int]]:
        """See `Adapter.grids`: the patches after the class token."""
        rows, columns = self.cells.get(self.entries[0], (0, 0))
        return [(1, rows, columns)] if rows and tokens == 1 + rows * columns else []
