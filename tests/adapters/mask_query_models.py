"""Small segmenters with mask queries and random weights, and what the library's own calls return for a picture."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detr_models import CLASSES, EDGES, QUERIES, WIDTH, _plain
from support import random_picture
from torch import Tensor, nn

from detcam.adapters.transformers.mask_queries import MaskQueryAdapter
from detcam.geometry import Geometry
from detcam.types import Objects

KINDS = ("maskformer", "mask2former", "oneformer", "eomt", "eomt_dinov3", "detr", "conditional_detr")
ALONE = ("maskformer", "mask2former", "eomt", "eomt_dinov3")  # a query's segment does not depend on the others
SIDE = 128  # of EoMT's input


def _swin() -> Any:
    from transformers import SwinConfig

    return SwinConfig(
        image_size=128,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )


def _resnet() -> Any:
    from transformers import ResNetConfig

    return ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16, 16, 24],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )


def _deformable() -> dict[str, Any]:
    """What Mask2Former's and OneFormer's pixel decoders share."""
    return {"num_labels": CLASSES, "num_queries": QUERIES, "encoder_layers": 1, "num_attention_heads": 4}


def _detr() -> dict[str, Any]:
    return _plain("d_model") | {"backbone_config": _resnet(), "encoder_attention_heads": 8}


def _eomt(**more: Any) -> dict[str, Any]:
    return {
        "num_labels": CLASSES,
        "num_queries": QUERIES,
        "hidden_size": WIDTH,
        "num_hidden_layers": 4,
        "num_blocks": 2,
        "num_attention_heads": 4,
        "num_upscale_blocks": 1,
        "image_size": SIDE,
        **more,
    }


def _built(kind: str) -> nn.Module:
    import transformers as t

    match kind:
        case "maskformer":
            decoder = t.DetrConfig(**_plain("d_model"))
            config = t.MaskFormerConfig(
                backbone_config=_swin(),
                decoder_config=decoder,
                num_labels=CLASSES,
                fpn_feature_size=WIDTH,
                mask_feature_size=WIDTH,
            )
            return t.MaskFormerForInstanceSegmentation(config)
        case "mask2former":
            config = t.Mask2FormerConfig(
                backbone_config=_resnet(),
                feature_size=WIDTH,
                mask_feature_size=WIDTH,
                hidden_dim=WIDTH,
                encoder_feedforward_dim=48,
                dim_feedforward=48,
                decoder_layers=4,
                **_deformable(),
            )
            return t.Mask2FormerForUniversalSegmentation(config)
        case "oneformer":
            config = t.OneFormerConfig(
                backbone_config=_swin(),
                conv_dim=WIDTH,
                mask_dim=WIDTH,
                hidden_dim=WIDTH,
                encoder_feedforward_dim=48,
                dim_feedforward=48,
                decoder_layers=4,
                query_dec_layers=1,
                text_encoder_width=16,
                text_encoder_num_layers=1,
                task_seq_len=8,
                **_deformable(),
            )
            return t.OneFormerForUniversalSegmentation(config)
        case "eomt":
            model = t.EomtForUniversalSegmentation(t.EomtConfig(**_eomt(mlp_ratio=2)))
            model.attn_mask_probs.zero_()  # as training leaves it; those of eomt_dinov3 mask, as while training
            return model
        case "eomt_dinov3":
            return t.EomtDinov3ForUniversalSegmentation(t.EomtDinov3Config(**_eomt(intermediate_size=48)))
        case "detr":
            return t.DetrForSegmentation(t.DetrConfig(**_detr()))
        case "conditional_detr":
            return t.ConditionalDetrForSegmentation(t.ConditionalDetrConfig(**_detr()))
    raise ValueError(kind)


def random_segmenter(kind: str, seed: int, folder: Path) -> tuple[nn.Module, Any]:
    """A small model in eval mode whose queries differ, and its processor; drawn until the library finds a segment.

    In bfloat16, too: where queries compete, rounding may leave none.
    """
    processor, picture = processor_of(kind, folder), random_picture(seed, 120, 160)
    for draw in itertools.count(seed):
        torch.manual_seed(draw)
        model = _built(kind).eval()
        _spread(model)
        _make_sure(model, partial(raw_of, model, processor, picture))
        versions = [model] if torch.get_default_dtype() == torch.float64 else [model, copy.deepcopy(model).bfloat16()]
        clear = {"overlap_mask_area_threshold": 0.9}  # 0.8 by default: what passes this passes that whatever rounds
        if all(segments_of(version, processor, picture, 0.0, **clear)["segments_info"] for version in versions):
            return model, processor
    raise AssertionError


@torch.no_grad()
def _spread(model: nn.Module) -> None:
    """Draw weights so that signals keep a natural size and queries differ; fresh weights leave most of them alike."""
    norms = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, (0.3 if "sampling_offsets" in name else 1.0) * module.in_features**-0.5)
            if module.bias is not None and "sampling_offsets" not in name:  # fresh ones point in all directions
                nn.init.normal_(module.bias, 0, 0.3)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, 0, 1.5)
        elif isinstance(module, nn.BatchNorm2d):
            module.train().momentum = 1.0  # one forward in training sets the statistics
            nn.init.normal_(module.bias, 0.2, 0.2)
            norms.append(module)
    if norms:
        model(torch.rand(2, 3, 96, 128))
    model.eval()


@torch.no_grad()
def _make_sure(model: Any, raw: Callable[[], tuple[Tensor, Tensor]]) -> None:
    """Have queries be sure of a class, and DETR's attend to different places: only such segments are kept."""
    detr = getattr(model, "detr", getattr(model, "conditional_detr", None))
    if detr is not None:
        classes = detr.class_labels_classifier
        logits = raw()[0]
        # The surest query is for its class rather than for "no object", by the spread of the logits.
        classes.bias[-1] += (logits[:, :-1].amax(dim=1) - logits[:, -1]).max() - logits.std()
        logits = raw()[0]
        gains = torch.linspace(0.2, 20, 200, dtype=logits.dtype)
        best = torch.stack([(gain * logits).softmax(1)[:, :-1].max() for gain in gains])
        gain = gains[(best - 0.9).abs().argmin()]
        classes.weight.mul_(gain)
        classes.bias.mul_(gain)
        for linear in (model.bbox_attention.q_proj, model.bbox_attention.k_proj):
            linear.weight.mul_(3)
        model.mask_head.output_conv.weight.mul_(4)
        model.mask_head.output_conv.bias -= raw()[1].quantile(0.6)
    elif hasattr(model, "class_predictor"):
        model.class_predictor.weight.mul_(2)
        model.class_predictor.bias[-1] -= 2
    else:
        head = model.model.transformer_module.decoder.class_embed
        head.weight.mul_(2)
        head.bias[-1] -= 2


def processor_of(kind: str, folder: Path) -> Any:
    """The architecture's processor, for pictures of about 96 x 128 pixels; OneFormer's keeps its words in `folder`."""
    import transformers as t

    match kind:
        case "maskformer":
            return t.MaskFormerImageProcessor(size=EDGES)
        case "mask2former":
            return t.Mask2FormerImageProcessor(size=EDGES)
        case "oneformer":
            return _oneformer_processor(folder)
        case "detr":
            return t.DetrImageProcessor(size=EDGES)
        case "conditional_detr":
            return t.ConditionalDetrImageProcessor(size=EDGES)
    return t.EomtImageProcessor(size={"shortest_edge": SIDE, "longest_edge": SIDE}, do_pad=True)


def _oneformer_processor(folder: Path) -> Any:
    import transformers as t

    words = ["the</w>", "task</w>", "is</w>", "instance</w>", "panoptic</w>", "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    classes = {str(i): {"name": f"thing {i}", "isthing": 1} for i in range(CLASSES)}
    (folder / "classes.json").write_text(json.dumps(classes))
    tokenizer = t.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    images = t.OneFormerImageProcessor(size=EDGES, repo_path=str(folder), class_info_file="classes.json", num_text=2)
    return t.OneFormerProcessor(images, tokenizer, max_seq_length=8, task_seq_length=8)


def inputs_of(processor: Any, picture: np.ndarray, segments: str) -> Any:
    task = {"task_inputs": [segments]} if type(processor).__name__ == "OneFormerProcessor" else {}
    return processor(images=picture, return_tensors="pt", **task)


def _outputs(model: nn.Module, processor: Any, picture: np.ndarray, segments: str) -> Any:
    inputs = inputs_of(processor, picture, segments)
    return model(**{**inputs, "pixel_values": inputs["pixel_values"].to(next(model.parameters()).dtype)})


@torch.no_grad()
def segments_of(
    model: nn.Module, processor: Any, picture: np.ndarray, conf: float, segments: str = "instance", **options: Any
) -> dict[str, Any]:
    """What the library's own pre- and post-processing find in one picture."""
    outputs = _outputs(model, processor, picture, segments)
    call = getattr(processor, f"post_process_{segments}_segmentation")
    result: dict[str, Any] = call(outputs, threshold=conf, target_sizes=[picture.shape[:2]], **options)[0]
    return result


def raw_of(model: nn.Module, processor: Any, picture: np.ndarray, segments: str = "instance") -> tuple[Tensor, Tensor]:
    """[Q, nc + 1] class logits and [Q, h, w] mask logits of one picture."""
    with torch.no_grad():
        outputs = _outputs(model, processor, picture, segments)
    if "pred_masks" in outputs:
        return outputs.logits[0], outputs.pred_masks[0]
    return outputs.class_queries_logits[0], outputs.masks_queries_logits[0]


def least_score(
    kind: str, model: nn.Module, options: dict[str, Any], picture: np.ndarray, segments: str = "instance"
) -> float:
    """What leaves one query where queries compete, so that it surely wins, and most of them elsewhere."""
    if kind in ALONE and segments == "instance":
        return 0.02
    best = raw_of(model, options["processor"], picture, segments)[0].softmax(1)[:, :-1].flatten().topk(2).values
    return float(best.mean())


def keep_local(module: nn.Module) -> None:
    """Leave out the attention between places, and the norms of DETR's encoder.

    Behind these a cell that hardly changed may differ as much as one that did.
    """
    for name, part in list(module.named_modules()):
        queries = "transformer_module" in name or "decoder.layers" in name
        if name.endswith(("o_proj", "out_proj", "output_proj")) and not queries:
            nn.init.zeros_(part.weight)
            nn.init.zeros_(part.bias)
        if "detr.model.encoder" in name and isinstance(part, nn.LayerNorm):
            module.set_submodule(name, nn.Identity())


class FirstQuery(MaskQueryAdapter):
    """Takes the first query for the one object, whatever it says."""

    def detect(self, outputs: Any, geometries: list[Geometry], conf: float, iou: float, max_det: int) -> list[Objects]:
        first = torch.zeros(1, dtype=torch.int64)
        return [self.objects_at(outputs, first, first, geometry) for geometry in geometries]
