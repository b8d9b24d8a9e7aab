"""RT-DETR of Ultralytics: a convolutional backbone, a hybrid encoder, and a decoder of queries."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from detcam.adapters.base import sides_of
from detcam.adapters.shared.deformable import GainSampling
from detcam.adapters.shared.queries import QueryAdapter, QueryOutputs, query_objects, shares_to_source, whole_inputs
from detcam.adapters.ultralytics.base import UltralyticsAdapter, head_of, kinds_of, module_of, require_parts
from detcam.geometry import Geometry, resize
from detcam.images import unit_tensor
from detcam.types import Objects

HEAD = "RTDETRDecoder"


class RtdetrAdapter(UltralyticsAdapter, QueryAdapter):
    """RT-DETR models of Ultralytics.

    The scalar is the class logit of the kept query. The decoder keeps the best pairs of query and class, so two objects
    may share a query. There is no non-maximum suppression: `iou` has no effect.

    `module` is a view of Ultralytics' RTDETRDetectionModel; `imgsz` is the side of the square input in pixels, to which
    images are stretched.
    """

    family = "ultralytics RT-DETR"
    models = "RT-DETR: l, x, ResNet-50, ResNet-101, and YOLO backbones with its decoder"
    fuse = "sum"  # every query reads all maps
    stable = False  # the encoder selects the queries

    def __init__(self, module: Any, model: Any, imgsz: int | None = None, processor: Any = None) -> None:
        super().__init__(module, model, imgsz, processor)
        self.size = sides_of(self.imgsz, max(int(module.stride.max()), 32))
        self.available = self._available(len(self.names))
        self.head.shapes = None  # rebuild the anchors: cached ones may be on another device

    @classmethod
    def serves(cls, model: Any) -> bool:
        """See `Adapter.serves`: an Ultralytics wrapper or module whose last layer is RT-DETR's decoder."""
        return super().serves(model) and HEAD in kinds_of(head_of(model))

    @classmethod
    def unwrap(cls, model: Any) -> nn.Module:
        module: nn.Module = module_of(model)
        require_parts(module, ("nc", "postprocess"))
        return module

    def prepare(self, image: np.ndarray) -> tuple[Tensor, Geometry]:
        """See `Adapter.prepare`: stretched to the network's input, as Ultralytics' predict call does."""
        pixels = unit_tensor(resize(self.fit(image), self.size), self.device, self.dtype)
        return pixels, Geometry((image.shape[0], image.shape[1]), self.size, (0, 0), self.size)

    def forward(self, batch: Tensor, max_det: int) -> QueryOutputs:
        _, (boxes, logits, *_) = self.module(batch)  # each has the decoder layer in front
        return QueryOutputs(logits[-1], boxes[-1], whole_inputs(batch))

    @torch.no_grad()
    def detect(
        self, outputs: QueryOutputs, geometries: list[Geometry], conf: float, iou: float, max_det: int
    ) -> list[Objects]:
        """See `Adapter.detect`: the decoder's selection, run a second time to get the query of each object."""
        scores = outputs.logits.sigmoid()
        rows = self.head.postprocess(outputs.boxes, scores)  # [B, k, 6]: (cx, cy, w, h), score, class
        queries = torch.arange(scores.shape[1], device=scores.device, dtype=torch.float32)
        tagged = queries[None, :, None].expand(*scores.shape[:2], 4)
        index = self.head.postprocess(tagged, scores)[..., 0].long()  # the same selection
        objects = []
        for row, query, geometry in zip(rows, index, geometries, strict=True):
            keep = (row[:, 4] > conf).nonzero().flatten()[:max_det]
            boxes = shares_to_source(row[keep, :4], geometry)
            objects.append(query_objects(boxes, row[keep, 4], row[keep, 5].long(), query[keep], self.names, geometry))
        return objects

    @torch.no_grad()
    def objects_at(self, outputs: QueryOutputs, candidates: Tensor, class_ids: Tensor, geometry: Geometry) -> Objects:
        """See `Adapter.objects_at`: queries."""
        boxes = shares_to_source(outputs.boxes[0, candidates], geometry)
        scores = outputs.logits[0, candidates, class_ids].float().sigmoid()
        return query_objects(boxes, scores, class_ids, candidates, self.names, geometry)

    @torch.no_grad()
    def gain_forward(self, maps: list[Tensor]) -> Callable[[list[Tensor]], QueryOutputs]:
        """See `Adapter.gain_forward`: the decoder; `detcam.adapters.shared.deformable` says why that is cheaper."""
        head = self.head
        memory, shapes = head._get_encoder_input(list(maps))  # [1, cells, hidden]
        _, anchors = head._get_decoder_input(memory, shapes)[:2]  # fills the head's cache of anchors
        empty = torch.cat([p(m.new_zeros(1, m.shape[1], 1, 1)) for p, m in zip(head.input_proj, maps, strict=True)])
        empty = empty.flatten(1)  # [levels, hidden]: projections of an empty map
        ranks = head.enc_score_head(head.enc_output(head.valid_mask * memory)).amax(dim=2)
        best = ranks.topk(anchors.shape[1], dim=1).indices[0]
        counts = torch.tensor([h * w for h, w in shapes], device=memory.device)
        fixed = empty.repeat_interleave(counts, dim=0)[best]  # [queries, hidden]
        valid = head.valid_mask[0, best].to(memory)

        def run(gains: list[Tensor]) -> QueryOutputs:
            gain = torch.cat([g.flatten(1) for g in gains], dim=1)
            chosen = (memory[0, best] - fixed) * gain[0, best, None] + fixed
            content = head.enc_output(valid * chosen)[None]
            boxes = head.enc_bbox_head(content) + head.anchors[:, best]
            if head.learnt_init_query:
                content = head.tgt_embed.weight[None, : len(best)]
            with _attention_with_gains(head.decoder, gain, empty):
                boxes, logits = head.decoder(
                    content, boxes, memory, shapes, head.dec_bbox_head, head.dec_score_head, head.query_pos_head
                )
            return QueryOutputs(logits[-1], boxes[-1], torch.tensor([self.size], device=memory.device))

        return run


@contextmanager
def _attention_with_gains(decoder: Any, gain: Tensor, empty: Tensor) -> Iterator[None]:
    """Context in which the cross-attention of a private view's decoder reads its maps with gains."""
    attentions = [layer.cross_attn for layer in decoder.layers]
    for attention in attentions:
        attention.forward = partial(_attend, attention, gain, empty)
    try:
        yield
    finally:
        for attention in attentions:
            del attention.forward


def _attend(
    attention: Any,
    gain: Tensor,  # [1, cells]
    empty: Tensor,  # [levels, hidden]
    query: Tensor,  # [1, Q, hidden]
    reference: Tensor,  # [1, Q, 1, 4]
    memory: Tensor,  # [1, cells, hidden]
    shapes: list[list[int]],
    mask: Tensor | None = None,
) -> Tensor:
    """Multi-scale deformable attention (Zhu 2021, equation 3), with boxes as references and gains at the cells."""
    heads = attention.n_heads
    with torch.no_grad():
        values = attention.value_proj(memory).unflatten(2, (heads, -1))
        biases = attention.value_proj(empty).unflatten(1, (heads, -1))
    offsets = attention.sampling_offsets(query).unflatten(2, (heads, -1, 2))
    weights = attention.attention_weights(query).unflatten(2, (heads, -1)).softmax(dim=-1)
    box = reference[:, :, None]  # [1, Q, 1, 1, 4]
    places = box[..., :2] + offsets / attention.n_points * box[..., 2:] * 0.5
    levels = tuple((int(h), int(w)) for h, w in shapes)
    samples = GainSampling.apply(values, biases, gain, places, weights, levels)[0]
    return attention.output_proj(samples.flatten(2))
