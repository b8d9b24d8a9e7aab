"""Small detection transformers with random weights, and what their libraries' own calls return for a picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

CLASSES = 5
QUERIES = 12
WIDTH = 32
SIDE = {"height": 96, "width": 128}  # what processors stretch to
EDGES = {"shortest_edge": 96, "longest_edge": 128}  # what processors that keep the aspect scale to


def _resnet(stages: list[str]) -> Any:
    from transformers import ResNetConfig

    return ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 16, 24], depths=[1, 1, 1, 1], layer_type="basic", out_features=stages
    )


def _plain(width: str, **more: Any) -> dict[str, Any]:
    return {
        "backbone": None,
        "use_pretrained_backbone": False,
        "use_timm_backbone": False,
        "backbone_config": _resnet(["stage4"]),
        "num_queries": QUERIES,
        "num_labels": CLASSES,
        width: WIDTH,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        **more,
    }


def _deformable(**more: Any) -> dict[str, Any]:
    return _plain(
        "d_model",
        backbone_config=_resnet(["stage2", "stage3", "stage4"]),
        num_feature_levels=4,
        decoder_n_points=2,
        encoder_n_points=2,
        **more,
    )


def _hybrid(**more: Any) -> dict[str, Any]:
    return {
        "num_labels": CLASSES,
        "num_queries": QUERIES,
        "d_model": WIDTH,
        "encoder_hidden_dim": WIDTH,
        "encoder_in_channels": [16, 16, 24],
        "decoder_in_channels": [WIDTH] * 3,
        "feat_strides": [8, 16, 32],
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "decoder_layers": 2,
        "num_denoising": 0,
        "hidden_expansion": 0.5,
        **more,
    }


def _rt_resnet() -> Any:
    from transformers import RTDetrResNetConfig

    return RTDetrResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16, 16, 24],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )


def _hgnet() -> Any:
    from transformers import HGNetV2Config

    return HGNetV2Config(
        embedding_size=8,
        hidden_sizes=[8, 16, 16, 24],
        depths=[1, 1, 1, 1],
        stem_channels=[3, 8, 8],
        stage_in_channels=[8, 8, 16, 16],
        stage_mid_channels=[8, 8, 8, 8],
        stage_out_channels=[8, 16, 16, 24],
        stage_num_blocks=[1, 1, 1, 1],
        stage_downsample=[False, True, True, True],
        stage_light_block=[False, False, True, True],
        stage_kernel_size=[3, 3, 3, 3],
        stage_numb_of_layers=[2, 2, 2, 2],
        out_features=["stage2", "stage3", "stage4"],
    )


def _configuration(kind: str) -> tuple[str, str, dict[str, Any]]:
    """The prefix of the model's classes, its image processor's class, and the arguments of its configuration."""
    match kind:
        case "detr" | "detr-learned":
            learned = {"position_embedding_type": "learned"} if kind == "detr-learned" else {}
            return "Detr", "DetrImageProcessor", _plain("d_model", **learned)
        case "table-transformer":
            return "TableTransformer", "DetrImageProcessor", _plain("d_model")
        case "conditional_detr":
            return "ConditionalDetr", "ConditionalDetrImageProcessor", _plain("d_model")
        case "dab-detr":
            return "DabDetr", "ConditionalDetrImageProcessor", _plain("hidden_size")
        case "deformable_detr":
            return "DeformableDetr", "DeformableDetrImageProcessor", _deformable()
        case "deformable_detr-two-stage":
            stages = {"two_stage": True, "with_box_refine": True, "two_stage_num_proposals": QUERIES}
            return "DeformableDetr", "DeformableDetrImageProcessor", _deformable(**stages)
        case "rt_detr":
            return "RTDetr", "RTDetrImageProcessor", _hybrid(backbone_config=_rt_resnet())
        case "rt_detr_v2":
            return "RTDetrV2", "RTDetrImageProcessor", _hybrid(backbone_config=_rt_resnet())
        case "d_fine":
            return "DFine", "RTDetrImageProcessor", _hybrid(backbone_config=_hgnet(), decoder_n_points=[3, 4, 3])
        case "yolos":
            arguments = {
                "hidden_size": WIDTH,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "intermediate_size": 48,
                "image_size": [96, 128],
                "patch_size": 16,
                "num_detection_tokens": QUERIES,
                "num_labels": CLASSES,
            }
            return "Yolos", "YolosImageProcessor", arguments
    raise ValueError(kind)


KINDS = (
    "detr",
    "detr-learned",
    "table-transformer",
    "conditional_detr",
    "dab-detr",
    "deformable_detr",
    "deformable_detr-two-stage",
    "rt_detr",
    "rt_detr_v2",
    "d_fine",
    "yolos",
)


def random_detr(kind: str, seed: int) -> tuple[nn.Module, Any]:
    """A small model in eval mode and its image processor, which makes inputs of 96 x 128 pixels of 3:4 pictures."""
    import transformers

    torch.manual_seed(seed)
    prefix, processor, arguments = _configuration(kind)
    model = getattr(transformers, f"{prefix}ForObjectDetection")(getattr(transformers, f"{prefix}Config")(**arguments))
    spread(model.eval())
    return model, image_processor(processor)


def image_processor(name: str) -> Any:
    import transformers

    kind = getattr(transformers, name)
    return kind(size=SIDE if name.startswith("RTDetr") else EDGES)


@torch.no_grad()
def spread(model: nn.Module, gain: float = 1.0) -> None:
    """Draw weights so that signals keep a natural size and queries differ; fresh weights leave most of them alike."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, nn.Linear):
            own = 0.3 if "sampling_offsets" in name else gain
            nn.init.normal_(module.weight, 0, own * module.in_features**-0.5)
            if "sampling_offsets" not in name:  # fresh ones point in all directions
                nn.init.normal_(module.bias, 0, 0.3)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, 0, 1.5)
    for name, parameter in model.named_parameters():
        if "tokens" in name or "position_embeddings" in name:  # of YOLOS
            nn.init.normal_(parameter, 0, 1)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.train().momentum = 1.0  # one forward in training sets the statistics
        nn.init.normal_(norm.bias, 0.2, 0.2)
    if norms:
        model(torch.rand(2, 3, SIDE["height"], SIDE["width"]))
    model.eval()


def random_rtdetr(config: str, seed: int) -> nn.Module:
    """An RT-DETR of Ultralytics in eval mode."""
    from ultralytics.nn.tasks import RTDETRDetectionModel

    torch.manual_seed(seed)
    model = RTDETRDetectionModel(config, nc=CLASSES, verbose=False).eval()
    model.names = {i: f"thing {i}" for i in range(CLASSES)}
    model.model[-1].num_queries = 40
    spread(model, gain=0.8)  # its decoder is deep: rounding must not grow
    return model


def middle(scores: Tensor) -> float:
    """A threshold in the widest gap of the middle third of the scores, so that rounding decides nothing."""
    ordered = scores.sort().values
    third = len(ordered) // 3
    gaps = ordered[third : 2 * third + 1].diff()
    best = third + int(gaps.argmax())
    return float((ordered[best] + ordered[best + 1]) / 2)


def detections(model: nn.Module, processor: Any, picture: np.ndarray, threshold: float) -> dict[str, Tensor]:
    """What the library's own pre- and post-processing find in one picture."""
    inputs = processor(images=picture, return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs)
    return processor.post_process_object_detection(outputs, threshold=threshold, target_sizes=[picture.shape[:2]])[0]
