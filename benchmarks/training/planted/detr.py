"""A detection transformer of the planted scenes: RT-DETR of transformers on a small ResNet."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import ResNetConfig, RTDetrConfig, RTDetrForObjectDetection, RTDetrImageProcessor
from transformers.loss.loss_rt_detr import RTDetrHungarianMatcher

from benchmarks.training.planted.scenes import Batch
from benchmarks.training.planted.training import STARTS_FROM, Family, Losses, Start, packed
from detcam import zoo
from detcam.scenes.planted import SIZE
from detcam.scenes.planted_parts import SYMBOLS

WIDTH = 32  # channels of encoder and decoder
OWN_WEIGHT = 0.2  # of RT-DETR's loss, which is a sum over layers and denoising groups, mostly about boxes
PROCESSOR = RTDetrImageProcessor(size={"height": SIZE, "width": SIZE})


def configuration() -> RTDetrConfig:
    """The model's configuration: maps of strides 8 and 16, attention between all cells of the second."""
    backbone = ResNetConfig(
        embedding_size=16,
        hidden_sizes=[16, 24, 40],
        depths=[1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3"],
    )
    config = RTDetrConfig(
        backbone_config=backbone,
        freeze_backbone_batch_norms=False,
        encoder_in_channels=[24, 40],
        feat_strides=[8, 16],
        encode_proj_layers=[1],
        num_feature_levels=2,
        d_model=WIDTH,
        encoder_hidden_dim=WIDTH,
        decoder_in_channels=[WIDTH] * 2,
        encoder_ffn_dim=WIDTH,
        decoder_ffn_dim=WIDTH,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        decoder_layers=2,
        hidden_expansion=0.5,
        num_queries=12,
        num_denoising=12,
    )
    names = dict(enumerate(SYMBOLS))
    config.id2label, config.label2id = names, {name: i for i, name in names.items()}
    return config


class Detr(Family):
    """RT-DETR: a sigmoid for each class; queries are the encoder's best cells."""

    name, library = "detr", "transformers"
    steps: ClassVar[dict[str, int]] = {"mark": 500, "beacon": 500, "context": 400}
    rate = 2e-3
    channels = WIDTH

    def build(self) -> nn.Module:
        """See `Family.build`."""
        return RTDetrForObjectDetection(configuration())

    def start(self, variant: str, work: Path) -> Start:
        """See `Family.start`: the backbone of the segmenter, as such models always start from a trained one."""
        weights = torch.load(work / f"{variant}_semantic.pt", weights_only=True)
        backbone = {name: value for name, value in weights.items() if name.startswith("backbone.")}
        known = self.build().state_dict()
        renamed = {f"model.backbone.model{name.removeprefix('backbone')}": value for name, value in backbone.items()}
        weights = {name: value for name, value in renamed.items() if name in known}
        if variant not in STARTS_FROM:
            return Start("backbone of semantic", weights)
        first = super().start(variant, work)
        return Start(f"backbone of semantic, rest of {first.name}", first.weights | weights)

    def losses(self, model: Any, batch: Batch) -> Losses:
        """See `Family.losses`; the places are the queries that are matched to the objects."""
        targets = []
        for boxes, class_ids in zip(batch.boxes, batch.class_ids, strict=True):
            middle, side = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
            targets.append({"class_labels": class_ids, "boxes": torch.cat([middle, side], dim=1) / SIZE})
        outputs = model(pixel_values=batch.images, labels=targets)
        queries = model.config.num_queries
        last = {"logits": outputs.logits[:, -queries:], "pred_boxes": outputs.pred_boxes[:, -queries:]}  # no denoising
        matched = [query[owner.argsort()] for query, owner in RTDetrHungarianMatcher(model.config)(last, targets)]
        image = torch.cat([torch.full((len(query),), i) for i, query in enumerate(matched)])
        logits, features = last["logits"][image, torch.cat(matched)], outputs.encoder_last_hidden_state[0]
        classes = cross_entropy(logits, torch.cat(batch.class_ids))
        shown = torch.maximum(batch.causes, batch.labels)
        return Losses(OWN_WEIGHT * outputs.loss + classes, logits, image, features, shown)

    def save(self, name: str, weights: dict[str, Tensor]) -> dict[str, Any]:
        """See `Family.save`."""
        configuration().save_pretrained(zoo.FOLDER / name)
        PROCESSOR.save_pretrained(zoo.FOLDER / name)
        (zoo.FOLDER / name / "model.safetensors").write_bytes(packed(weights))
        return {"library": self.library, "class": RTDetrForObjectDetection.__name__}
