"""The networks of `benchmarks/architectures.py`: small, with random weights, of every family of four libraries."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

Size = tuple[int, int]  # (height, width) in pixels
CLASSES = 7
SIZES: tuple[Size, ...] = ((64, 96), (64, 64), (128, 192), (128, 128), (224, 224), (256, 256))
LARGEST = 150_000_000  # parameters; a larger network is another size of the same class
ONE_WIDTH = ("beit", "cait", "convit", "deepseek_vit", "deit", "eva", "gemma4_vit", "mlp_mixer", "naflexvit",
             "qwen3_vit", "tnt", "vision_transformer", "vision_transformer_relpos", "vision_transformer_sam",
             "xcit")  # fmt: skip
# At 64 x 64 pixels the relations of 16 x 16 tokens have the shape of a map of stride 4.
OWN: dict[str, tuple[Size, ...]] = {"convit": ((224, 224),)}
SMP_DECODERS = ("Unet", "UnetPlusPlus", "MAnet", "Linknet", "FPN", "PSPNet", "PAN", "DeepLabV3", "DeepLabV3Plus")
SMP_ENCODERS = ("resnet18", "mobilenet_v2", "efficientnet-b0", "mit_b0", "tu-convnext_atto", "tu-swin_s3_tiny_224")
DPT_ENCODERS = (
    "tu-vit_tiny_patch16_224",
    "tu-deit_tiny_distilled_patch16_224",
    "tu-vit_small_patch14_reg4_dinov2",
    "tu-vit_small_patch16_18x2_224",
    "tu-flexivit_small",
    "tu-beit_base_patch16_224",
)


@dataclass(frozen=True)
class Case:
    """A network to sweep: how it is made for an input size, and what the Explainer is given beside it."""

    library: str
    family: str
    name: str
    make: Callable[[Size], Any]
    options: Callable[[Any, Size], dict[str, Any]] = lambda model, size: {"imgsz": size}
    sizes: tuple[Size, ...] = SIZES

    @property
    def key(self) -> str:
        return f"{self.library}/{self.family}/{self.name}"


def cases() -> Iterator[Case]:
    """All cases, in turn of each kind, so that a sweep that is cut short has some of all."""
    kinds = (timm_cases, torchvision_classifiers, torchvision_segmenters, smp_cases, torchvision_detectors,
             transformers_cases, ultralytics_cases)  # fmt: skip
    for together in itertools.zip_longest(*(kind() for kind in kinds)):
        yield from filter(None, together)


def parameters(make: Callable[[], Any]) -> int | None:
    """The number of parameters of a model, counted without memory for them; None if it cannot be built so."""
    with contextlib.suppress(Exception), torch.device("meta"):
        return sum(p.numel() for p in make().parameters())
    return None


@torch.no_grad()
def alive(model: nn.Module, batch: Tensor) -> nn.Module:
    """In eval mode, with weights that let signals and gradients through: what starts at zero is drawn."""
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and not parameter.any():
            nn.init.normal_(parameter, 0, 0.02)
        elif any(part in name for part in ("gamma", "scale", "ls1", "ls2")) and parameter.abs().amax() < 1e-2:
            parameter.fill_(0.5)
        elif parameter.ndim == 1 and name.endswith("weight") and not parameter.any():
            nn.init.uniform_(parameter, 0.5, 1)
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    model.eval()
    for norm in norms:
        norm.train()
        norm.momentum = None
    if norms:
        with contextlib.suppress(Exception):
            model(batch)
    return model.eval()


# ----- timm


def timm_cases() -> Iterator[Case]:
    """The smallest model of each module of timm.models, and some that are laid out differently within a module."""
    import timm

    for module in timm.list_modules():
        names = [name for name in timm.list_models(module=module) if not name.startswith("test_")]
        if names:
            sizes = OWN.get(module, SIZES)
            yield Case("timm", module, "smallest", partial(timm_model, smallest(names)), sizes=sizes)
    for name in ("vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "vit_small_patch16_dinov3", "gcresnext26ts",
                 "vit_medium_patch16_reg4_gap_256", "eva02_tiny_patch14_224", "maxvit_rmlp_pico_rw_256",
                 "coatnet_pico_rw_224", "mobilevitv2_050", "poolformer_s12", "caformer_s18", "gmlp_s16_224",
                 "resmlp_12_224", "lambda_resnet26t", "halonet26t", "botnet26t_256"):  # fmt: skip
        yield Case(
            "timm", timm.models.model_entrypoint(name).__module__.split(".")[-1], name, partial(timm_model, name)
        )


SMALL = ("zepto", "atto", "femto", "pico", "nano", "xxs", "xxtiny", "xx_small", "tiny", "_xs", "xsmall", "x_small",
         "_t0", "_s0", "_b0", "b0", "_f0", "_m0", "_0", "_050", "_t", "t1", "mini", "_s", "small", "lite", "10",
         "16", "18", "26", "11", "34", "x0_5", "_n")  # fmt: skip


def smallest(names: list[str]) -> str:
    """The name that says the smallest size."""
    return min(names, key=lambda name: (next((i for i, s in enumerate(SMALL) if s in name), 99), len(name), name))


def timm_model(name: str, size: Size) -> nn.Module:
    """A model of timm with random weights; a transformer of one width has 3 blocks, a fixed input size is `size`."""
    import timm

    torch.manual_seed(0)
    module = timm.models.model_entrypoint(name).__module__.split(".")[-1]
    depths: list[dict[str, Any]] = [{"depth": 3}] if module in ONE_WIDTH else []
    for more in [{**depth, **sized} for depth in [*depths, {}] for sized in ({"img_size": size}, {})]:
        with contextlib.suppress(TypeError):
            return timm.create_model(name, num_classes=CLASSES, **more)
    raise TypeError(name)


# ----- torchvision


def torchvision_classifiers() -> Iterator[Case]:
    from torchvision import models

    special: dict[str, dict[str, Any]] = {
        "googlenet": {"init_weights": False, "aux_logits": False},
        "inception_v3": {"init_weights": False, "aux_logits": False},
    }
    for name in models.list_models(module=models):
        module = models.get_model_builder(name).__module__.split(".")[-1]
        build = partial(models.get_model, name, weights=None, num_classes=CLASSES, **special.get(name, {}))
        if (parameters(build) or 0) <= LARGEST:
            sizes = ((224, 448), (224, 224)) if name == "maxvit_t" else SIZES
            yield Case("torchvision", module, name, partial(_sized, build), sizes=sizes)


def _sized(build: Callable[..., nn.Module], size: Size) -> nn.Module:
    torch.manual_seed(0)
    sizes: list[dict[str, Any]] = [{"image_size": size[0]}, {"input_size": size}, {}]
    for more in sizes if size[0] == size[1] else sizes[1:]:
        with contextlib.suppress(TypeError):
            return build(**more)
    raise TypeError


def torchvision_segmenters() -> Iterator[Case]:
    from torchvision import models

    for name in models.list_models(module=models.segmentation):
        build = partial(models.get_model, name, weights=None, weights_backbone=None, num_classes=CLASSES)
        yield Case("torchvision", "segmentation", name, partial(_sized, build))


def torchvision_backbone(kind: str) -> nn.Module:
    """A small Swin or ConvNeXt with a feature pyramid, as people build them: maps [B, C, h, w] by name."""
    from torchvision.models import ConvNeXt, SwinTransformer
    from torchvision.models.convnext import CNBlockConfig
    from torchvision.ops import FeaturePyramidNetwork

    class Backbone(nn.Module):
        out_channels = 32

        def __init__(self) -> None:
            super().__init__()
            widths = (16, 32, 64, 128)
            if kind == "swin":
                self.body = SwinTransformer([4, 4], 16, [1, 1, 2, 1], [1, 2, 4, 8], [7, 7]).features
            else:
                settings = [CNBlockConfig(w, n, 1) for w, n in zip(widths, (*widths[1:], None), strict=True)]
                self.body = ConvNeXt(settings, layer_scale=0.5).features
            self.pyramid = FeaturePyramidNetwork(list(widths), 32)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            maps = {}
            for i, stage in enumerate(self.body):
                x = stage(x)
                if i % 2:
                    maps[str(i // 2)] = x.permute(0, 3, 1, 2) if kind == "swin" else x
            return self.pyramid(maps)  # type: ignore[no-any-return]

    return Backbone()


def torchvision_detectors() -> Iterator[Case]:
    for kind in ("faster", "mask", "keypoint", "retinanet", "fcos", "ssd"):
        for backbone in ("swin", "convnext"):
            yield Case("torchvision", f"detection {kind}", backbone, partial(torchvision_detector, kind, backbone))


def torchvision_detector(kind: str, backbone: str, size: Size) -> nn.Module:
    from torchvision.models import detection as d
    from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
    from torchvision.ops import MultiScaleRoIAlign

    torch.manual_seed(0)
    maps = torchvision_backbone(backbone)
    sizes = {"min_size": size[0], "max_size": size[1], "num_classes": 4}
    if kind == "ssd":
        return d.SSD(maps, DefaultBoxGenerator([[2]] * 4), (size[1], size[0]), 4)
    ratios = ((1.0,),) * 4
    anchors = AnchorGenerator(((16,), (24,), (32,), (48,)), ratios)
    if kind in ("retinanet", "fcos"):
        made: nn.Module = {"retinanet": d.RetinaNet, "fcos": d.FCOS}[kind](maps, anchor_generator=anchors, **sizes)
        return made
    pool = {f"{kind}_roi_pool": MultiScaleRoIAlign(["0", "1", "2", "3"], 14, 2)} if kind != "faster" else {}
    pool["box_roi_pool"] = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2, canonical_scale=48)
    owner: Any = {"faster": d.FasterRCNN, "mask": d.MaskRCNN, "keypoint": d.KeypointRCNN}[kind]
    return owner(maps, rpn_anchor_generator=anchors, **pool, **sizes)  # type: ignore[no-any-return]


# ----- segmentation-models-pytorch


def smp_cases() -> Iterator[Case]:
    for decoder in (*SMP_DECODERS, "UPerNet", "Segformer"):
        for encoder in SMP_ENCODERS:
            yield Case("smp", decoder, encoder, partial(smp_model, decoder, encoder), _unsized)
    for encoder in DPT_ENCODERS:
        yield Case("smp", "DPT", encoder, partial(smp_model, "DPT", encoder), _unsized)


def _unsized(model: Any, size: Size) -> dict[str, Any]:
    return {}


def smp_model(decoder: str, encoder: str, size: Size) -> nn.Module:
    import segmentation_models_pytorch as smp

    torch.manual_seed(0)
    build = partial(getattr(smp, decoder), encoder, encoder_weights=None, classes=CLASSES)
    sized = {"img_size": size} if "swin" in encoder else {}
    return build(**sized)  # type: ignore[no-any-return]


# ----- transformers and Ultralytics


def transformers_cases() -> Iterator[Case]:
    from benchmarks.architecture_detectors import KINDS, processed, transformers_model

    for kind in KINDS:
        for backbone in ("Swin", "ConvNext"):
            make = partial(transformers_model, kind, backbone)
            yield Case("transformers", kind, backbone, make, partial(processed, kind))


def ultralytics_cases() -> Iterator[Case]:
    from benchmarks.architecture_detectors import ultralytics_model

    for head in ("Detect", "Segment", "RTDETRDecoder"):
        for backbone in ("swin_t", "convnext_tiny"):
            yield Case("ultralytics", head, backbone, partial(ultralytics_model, head, backbone))
