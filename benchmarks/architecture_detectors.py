"""Detectors and mask models of transformers and Ultralytics with a Swin or a ConvNeXt, for `architectures.py`."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

Size = tuple[int, int]
CLASSES = 5
QUERIES = 12
WIDTH = 32
DETRS = ("Detr", "TableTransformer", "ConditionalDetr", "DabDetr", "DeformableDetr", "RTDetr", "RTDetrV2", "DFine")
MASKS = ("MaskFormer", "Mask2Former")
KINDS = (*DETRS, *MASKS, "DetrSegmentation", "UperNet")


def backbone_of(kind: str, stages: list[str], size: Size) -> Any:
    """The configuration of a small Swin or ConvNeXt that puts out `stages`."""
    import transformers

    widths = {"depths": [1, 1, 1, 1], "out_features": stages}
    if kind == "Swin":
        return transformers.SwinConfig(image_size=size, embed_dim=8, num_heads=[1, 2, 2, 4], window_size=4, **widths)
    return transformers.ConvNextConfig(hidden_sizes=[8, 16, 32, 64], layer_scale_init_value=0.5, **widths)


def transformers_model(kind: str, backbone: str, size: Size) -> nn.Module:
    """A small model of transformers with random weights."""
    import transformers as t

    torch.manual_seed(0)
    deep = ["stage4"] if kind in ("Detr", "TableTransformer", "ConditionalDetr", "DabDetr") else None
    four = kind in (*MASKS, "DetrSegmentation", "UperNet")
    stages = deep or [f"stage{i}" for i in range(1 if four else 2, 5)]
    config = backbone_of(backbone, stages, size)
    small = {"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
             "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "num_labels": CLASSES, "num_queries": QUERIES}  # fmt: skip
    plain = {**small, "backbone_config": config, "use_timm_backbone": False, "use_pretrained_backbone": False}
    width = {"hidden_size" if kind == "DabDetr" else "d_model": WIDTH}
    match kind:
        case "UperNet":
            more = {"hidden_size": 16, "num_labels": CLASSES, "auxiliary_channels": 8, "auxiliary_in_channels": 32}
            model = t.UperNetForSemanticSegmentation(t.UperNetConfig(backbone_config=config, **more))
        case "DetrSegmentation":
            heads = {"encoder_attention_heads": 8}
            model = t.DetrForSegmentation(t.DetrConfig(**plain | width | heads))
        case "MaskFormer":
            decoder = t.DetrConfig(**plain | width)
            sizes = {"fpn_feature_size": WIDTH, "mask_feature_size": WIDTH, "num_labels": CLASSES}
            settings = t.MaskFormerConfig(backbone_config=config, decoder_config=decoder, **sizes)
            model = t.MaskFormerForInstanceSegmentation(settings)
        case "Mask2Former":
            sizes = {"feature_size": WIDTH, "mask_feature_size": WIDTH, "hidden_dim": WIDTH, "num_labels": CLASSES,
                     "encoder_feedforward_dim": 48, "dim_feedforward": 48, "decoder_layers": 4, "encoder_layers": 1,
                     "num_queries": QUERIES, "num_attention_heads": 4}  # fmt: skip
            model = t.Mask2FormerForUniversalSegmentation(t.Mask2FormerConfig(backbone_config=config, **sizes))
        case "RTDetr" | "RTDetrV2" | "DFine":
            hybrid = {**small, **width, "backbone_config": config, "encoder_hidden_dim": WIDTH, "num_denoising": 0,
                      "encoder_in_channels": [16, 32, 64], "decoder_in_channels": [WIDTH] * 3, "hidden_expansion": 0.5,
                      "feat_strides": [8, 16, 32], "encoder_layers": 1}  # fmt: skip
            hybrid |= {"decoder_n_points": [3, 4, 3]} if kind == "DFine" else {}
            model = getattr(t, f"{kind}ForObjectDetection")(getattr(t, f"{kind}Config")(**hybrid))
        case _:
            levels = {"num_feature_levels": 4, "decoder_n_points": 2, "encoder_n_points": 2}
            more = levels if kind == "DeformableDetr" else {}
            model = getattr(t, f"{kind}ForObjectDetection")(getattr(t, f"{kind}Config")(**plain | width | more))
    spread(model)
    return model.eval()  # type: ignore[no-any-return]


@torch.no_grad()
def spread(model: nn.Module) -> None:
    """Weights with which queries differ and are sure of a class."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, nn.Linear) and "sampling_offsets" not in name:
            nn.init.normal_(module.weight, 0, 1.2 * module.in_features**-0.5)
            if module.bias is not None:
                nn.init.normal_(module.bias, 0, 0.3)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, 0, 1.5)
    for name in ("class_predictor", "class_labels_classifier"):
        for path, module in model.named_modules():
            if path.endswith(name) and isinstance(module, nn.Linear):
                module.weight.mul_(3)
                module.bias[-1] -= 6


def processed(kind: str, model: Any, size: Size) -> dict[str, Any]:
    """The image processor, which leaves pictures of `size` as they are."""
    import transformers as t

    names = {"UperNet": "SegformerImageProcessor", "MaskFormer": "MaskFormerImageProcessor",
             "Mask2Former": "Mask2FormerImageProcessor"}  # fmt: skip
    exact = {"height": size[0], "width": size[1]}
    edges = {"shortest_edge": min(size), "longest_edge": max(size)}
    name = names.get(kind, "RTDetrImageProcessor" if kind in ("RTDetr", "RTDetrV2", "DFine") else "DetrImageProcessor")
    processor = getattr(t, name)(size=edges if kind in MASKS else exact)
    return {"processor": processor}


def ultralytics_model(head: str, backbone: str, size: Size) -> nn.Module:
    """A YOLO or RT-DETR whose YAML names a backbone of torchvision; the Swin's maps are turned by a Permute."""
    from ultralytics.nn import tasks

    torch.manual_seed(0)
    widths = [192, 384, 768]
    rows: list[list[Any]] = [[-1, 1, "TorchVision", [768, backbone, None, True, 2, True]]]
    maps = []
    for width, stage in zip(widths, (4, 6, 8), strict=True):
        rows.append([0, 1, "Index", [width, stage]])
        if backbone.startswith("swin"):
            rows.append([-1, 1, "torchvision.ops.Permute", [[0, 3, 1, 2]]])
        rows.append([-1, 1, "Conv", [32, 1, 1]])
        maps.append(len(rows) - 1)
    arguments = {"Detect": ["nc"], "Segment": ["nc", 8, 16], "RTDETRDecoder": ["nc", 32, 12, 4, 4, 2]}[head]
    config = {"nc": CLASSES, "backbone": rows, "head": [[maps, 1, head, arguments]], "scales": {"n": [1, 1, 1024]}}
    kinds = {"Detect": tasks.DetectionModel, "Segment": tasks.SegmentationModel}
    model: nn.Module = kinds.get(head, tasks.RTDETRDetectionModel)(config, ch=3, nc=CLASSES, verbose=False)
    return model.eval()
