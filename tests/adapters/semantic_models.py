"""Small semantic segmenters with random weights that find several classes, and their libraries' own label maps."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support import random_picture
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad

from detcam import Explainer

CLASSES = 5
RECTANGLE = {"height": 96, "width": 128}
SQUARE = {"height": 96, "width": 96}


def _fcn() -> nn.Module:
    from torchvision.models import mobilenet_v3_small
    from torchvision.models._utils import IntermediateLayerGetter
    from torchvision.models.segmentation.fcn import FCN, FCNHead

    backbone = IntermediateLayerGetter(mobilenet_v3_small(weights=None).features, {"3": "aux", "8": "out"})
    return FCN(backbone, FCNHead(48, CLASSES), FCNHead(24, CLASSES))


def _torchvision(name: str) -> nn.Module:
    from torchvision.models import segmentation

    model: nn.Module = getattr(segmentation, name)(weights=None, weights_backbone=None, num_classes=CLASSES)
    return model


def fresh_segformer() -> nn.Module:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    return SegformerForSemanticSegmentation(
        SegformerConfig(
            num_labels=CLASSES,
            depths=[1, 1, 1, 1],
            hidden_sizes=[8, 16, 24, 32],
            num_attention_heads=[1, 2, 2, 4],
            decoder_hidden_size=16,
        )
    )


def _upernet(backbone: str) -> nn.Module:
    import transformers

    stages = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
    if backbone == "ConvNext":
        config = transformers.ConvNextConfig(hidden_sizes=[8, 16, 32, 40], depths=[1, 1, 1, 1], **stages)
    else:
        config = transformers.SwinConfig(
            embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 2, 2, 4], window_size=4, **stages
        )
    return transformers.UperNetForSemanticSegmentation(
        transformers.UperNetConfig(
            backbone_config=config, hidden_size=16, num_labels=CLASSES, auxiliary_channels=8, auxiliary_in_channels=32
        )
    )


def _beit() -> nn.Module:
    from transformers import BeitConfig, BeitForSemanticSegmentation

    return BeitForSemanticSegmentation(
        BeitConfig(
            image_size=96,
            patch_size=16,
            hidden_size=16,
            num_hidden_layers=4,
            num_attention_heads=2,
            intermediate_size=24,
            out_indices=[1, 2, 3, 4],
            use_relative_position_bias=True,
            layer_scale_init_value=1.0,
            auxiliary_channels=8,
            num_labels=CLASSES,
        )
    )


def _dpt(**more: Any) -> nn.Module:
    from transformers import DPTConfig, DPTForSemanticSegmentation

    settings: dict[str, Any] = {
        "image_size": 96,
        "hidden_size": 16,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "backbone_out_indices": [0, 1, 2, 3],
        "neck_hidden_sizes": [8, 12, 16, 16],
        "fusion_hidden_size": 12,
        "num_labels": CLASSES,
    }
    return DPTForSemanticSegmentation(DPTConfig(**settings | more))


def _dpt_hybrid() -> nn.Module:
    from transformers import BitConfig

    backbone = BitConfig(
        embedding_size=8,
        hidden_sizes=[32, 32, 64],
        depths=[1, 1, 1],
        num_groups=4,
        out_features=["stage1", "stage2", "stage3"],
        global_padding="same",
        embedding_dynamic_padding=True,
        layer_type="bottleneck",
    )
    return _dpt(
        is_hybrid=True,
        backbone_config=backbone,
        backbone_featmap_shape=[1, 64, 6, 6],
        neck_hidden_sizes=[32, 32, 16, 16],
        readout_type="project",
    )


def _mobilevit() -> nn.Module:
    from transformers import MobileViTConfig, MobileViTForSemanticSegmentation

    return MobileViTForSemanticSegmentation(
        MobileViTConfig(
            image_size=96,
            hidden_sizes=[16, 24, 32],
            neck_hidden_sizes=[8, 8, 12, 16, 16, 24, 32],
            num_attention_heads=2,
            output_stride=16,
            aspp_out_channels=16,
            num_labels=CLASSES,
        )
    )


def _mobilevitv2() -> nn.Module:
    from transformers import MobileViTV2Config, MobileViTV2ForSemanticSegmentation

    return MobileViTV2ForSemanticSegmentation(
        MobileViTV2Config(
            image_size=96,
            width_multiplier=0.25,
            n_attn_blocks=[1, 1, 1],
            output_stride=16,
            aspp_out_channels=16,
            num_labels=CLASSES,
        )
    )


def _smp(name: str, **more: Any) -> nn.Module:
    smp = pytest.importorskip("segmentation_models_pytorch")
    model: nn.Module = getattr(smp, name)("mobilenet_v2", encoder_weights=None, **{"classes": CLASSES, **more})
    return model


_MODELS: dict[str, Any] = {
    "fcn": _fcn,
    "deeplabv3": lambda: _torchvision("deeplabv3_mobilenet_v3_large"),
    "lraspp": lambda: _torchvision("lraspp_mobilenet_v3_large"),
    "segformer": fresh_segformer,
    "upernet-convnext": lambda: _upernet("ConvNext"),
    "upernet-swin": lambda: _upernet("Swin"),
    "beit": _beit,
    "dpt": _dpt,
    "dpt-hybrid": _dpt_hybrid,
    "mobilevit": _mobilevit,
    "mobilevitv2": _mobilevitv2,
    "smp-unet": lambda: _smp("Unet", decoder_channels=(32, 24, 16, 12, 8)),
    "smp-fpn": lambda: _smp("FPN", decoder_pyramid_channels=32, decoder_segmentation_channels=32),
    "smp-deeplabv3plus": lambda: _smp("DeepLabV3Plus", decoder_channels=16, activation="softmax2d"),
    "smp-binary": lambda: _smp("Unet", decoder_channels=(32, 24, 16, 12, 8), classes=1, aux_params={"classes": 2}),
}

_PROCESSORS: dict[str, tuple[str, dict[str, Any]]] = {
    "segformer": ("SegformerImageProcessor", {"size": RECTANGLE}),
    "upernet": ("SegformerImageProcessor", {"size": RECTANGLE}),
    "beit": ("BeitImageProcessor", {"size": RECTANGLE}),
    "dpt": ("DPTImageProcessor", {"size": SQUARE}),
    "mobilevit": ("MobileViTImageProcessor", {"size": {"shortest_edge": 96}, "crop_size": {"height": 96, "width": 80}}),
    "mobilevitv2": ("MobileViTImageProcessor", {"size": {"shortest_edge": 96}, "do_center_crop": False}),
}

KINDS = tuple(_MODELS)
TORCHVISION = ("fcn", "deeplabv3", "lraspp")
TRANSFORMERS = tuple(kind for kind in KINDS if kind.split("-")[0] in _PROCESSORS)


SMP = tuple(kind for kind in KINDS if kind.startswith("smp"))


def picture_for(kind: str, seed: int) -> np.ndarray:
    """[96, 128, 3] uint8; for models that need padding [90, 120, 3]."""
    return random_picture(seed, *((90, 120) if kind.startswith("smp") else (96, 128)))


def options(kind: str) -> dict[str, Any]:
    """What the explainer is given beside the model."""
    if kind in TORCHVISION:
        return {"imgsz": 96}
    return {"processor": processor_for(kind)} if kind in TRANSFORMERS else {}


def processor_for(kind: str) -> Any:
    import transformers

    name, settings = _PROCESSORS[kind.split("-")[0]]
    return getattr(transformers, name)(**settings)


def network_input(kind: str, picture: np.ndarray, dtype: torch.dtype = torch.float32) -> Tensor:
    """[1, 3, h, w] what the library's own preparation makes of a picture."""
    if kind in TRANSFORMERS:
        pixels: Tensor = processor_for(kind)(images=picture, return_tensors="pt")["pixel_values"]
    elif kind in TORCHVISION:
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        pixels = ((torch.from_numpy(picture) / 255 - mean) / std).permute(2, 0, 1)[None]
    else:
        pixels = torch.from_numpy(picture / 255).permute(2, 0, 1)[None]
        pixels = pad(pixels, (0, -picture.shape[1] % 32, 0, -picture.shape[0] % 32))
    return pixels.to(dtype)


@torch.no_grad()
def returned(kind: str, model: nn.Module, picture: np.ndarray) -> Tensor:
    """[1, nc, h, w] the logits that the model itself returns for a picture."""
    output: Any = model(network_input(kind, picture, next(model.parameters()).dtype))
    if kind in TRANSFORMERS:
        return output.logits
    output = output["out"] if kind in TORCHVISION else output[0] if isinstance(output, tuple) else output
    return output


def label_map(kind: str, model: nn.Module, picture: np.ndarray) -> tuple[Tensor, Tensor]:
    """The library's own label map [H, W] and the logits behind it [nc, H, W]; -1 beside what was cropped."""
    output = returned(kind, model, picture)
    source = (picture.shape[0], picture.shape[1])
    if kind in TRANSFORMERS:
        size = (96, 80) if kind == "mobilevit" else source
        post_process = processor_for(kind).post_process_semantic_segmentation
        labels = post_process(SimpleNamespace(logits=output), target_sizes=[size])[0]
        logits = interpolate(output, size, mode="bilinear")[0]
        beside = (source[1] - size[1]) // 2
        return pad(labels, (beside, beside), value=-1), pad(logits, (beside, beside))
    output = output[0, :, : source[0], : source[1]]
    if kind == "smp-deeplabv3plus":  # whose activation is the softmax
        output = output.log()
    if kind == "smp-binary":
        return (output[0] > 0).long(), torch.cat([torch.zeros_like(output), output])
    return output.argmax(0), output


def random_segmenter(kind: str, seed: int) -> nn.Module:
    """In eval mode; signals keep a natural size, and every class has about the same share of `picture_for`."""
    torch.manual_seed(seed)
    model = _MODELS[kind]()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, nn.Linear):
            nn.init.xavier_normal_(module.weight)
    normalised = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in normalised:
        nn.init.uniform_(norm.weight, 0.5, 1.0)
        nn.init.normal_(norm.bias, 0.2, 0.2)
        norm.momentum = 1.0
    pictures = [picture_for(kind, seed + i) for i in range(4)]
    model.eval()
    for norm in normalised:
        norm.train()
    with torch.no_grad():
        model(torch.cat([network_input(kind, picture) for picture in pictures]))
    model.eval()
    for norm in normalised:
        norm.momentum = 0.1
    _balance(model, kind, pictures[0])
    return model


@torch.no_grad()
def _balance(model: nn.Module, kind: str, picture: np.ndarray) -> None:
    """Shift and scale the classifiers so that the logits of each class have mean 0 and deviation 2."""
    last = classifiers(model, kind)
    outputs: list[Tensor] = []
    watched = model.get_submodule("classifier") if kind == "lraspp" else last[0]
    handle = watched.register_forward_hook(lambda module, args, output: outputs.append(output[0].flatten(1)))
    model(network_input(kind, picture))
    handle.remove()
    mean, scale = outputs[0].mean(dim=1), 2 / outputs[0].std(dim=1)
    total = sum(conv.bias for conv in last)
    for conv in last:
        conv.weight *= scale[:, None, None, None]
        conv.bias.zero_()
    last[0].bias += (total - mean) * scale


def classifiers(model: Any, kind: str) -> list[Any]:
    """The last convolutions, whose outputs add up to the logits."""
    if kind == "lraspp":
        return [model.classifier.low_classifier, model.classifier.high_classifier]
    if kind in TORCHVISION:
        return [model.classifier[-1]]
    if kind.startswith("smp"):
        return [model.segmentation_head[0]]
    if kind.startswith("dpt"):
        return [model.head.head[4]]
    head = model.segmentation_head if kind.startswith("mobilevit") else model.decode_head
    return [getattr(head.classifier, "convolution", head.classifier)]


def explain(kind: str, model: nn.Module, picture: np.ndarray, **more: Any) -> Any:
    return Explainer(model, **{"conf": 0.0, **options(kind), **more})(picture)
