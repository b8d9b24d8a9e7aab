"""Random classifiers of four libraries, and the logits of each library's own call."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

CLASSES = 7


def torchvision_model(name: str) -> nn.Module:
    models = pytest.importorskip("torchvision.models")
    options = {"init_weights": False, "aux_logits": False} if name == "googlenet" else {}
    if name == "vit_b_16":
        from torchvision.models import VisionTransformer

        model = VisionTransformer(64, 16, 3, 2, 32, 32, num_classes=CLASSES)
        nn.init.normal_(model.heads.head.weight)  # torchvision starts it at zero
        return model
    return models.get_model(name, weights=None, num_classes=CLASSES, **options)


def transformers_model(name: str) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    vit = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    staged = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1]}
    configs = {
        "ViT": {**vit, "image_size": 64},
        "DeiT": {**vit, "image_size": 64},
        "Beit": {**vit, "image_size": 64},
        "Dinov2": {**vit, "image_size": 56, "patch_size": 14},
        "Swin": {"embed_dim": 16, "depths": [1, 1, 2], "num_heads": [1, 2, 2], "window_size": 2, "image_size": 64},
        "ConvNext": staged,
        "ResNet": {**staged, "embedding_size": 8, "layer_type": "basic"},
        "MobileNetV2": {"image_size": 64},
        "PvtV2": {**staged, "num_attention_heads": [1, 1, 2, 2], "image_size": 64},
        "PoolFormer": staged,
    }
    config = getattr(transformers, f"{name}Config")(num_labels=CLASSES, **configs[name])
    return getattr(transformers, f"{name}ForImageClassification")(config)


def timm_model(name: str) -> nn.Module:
    return pytest.importorskip("timm").create_model(name, num_classes=CLASSES)


def ultralytics_model(name: str) -> nn.Module:
    pytest.importorskip("ultralytics")
    from ultralytics.nn.tasks import ClassificationModel

    return ClassificationModel(f"{name}.yaml", nc=CLASSES, verbose=False)


MAKERS = {
    "torchvision": torchvision_model,
    "transformers": transformers_model,
    "timm": timm_model,
    "ultralytics": ultralytics_model,
}
MODELS = {
    **{f"torchvision {n}": 64 for n in ("resnet18", "densenet121", "squeezenet1_1", "mobilenet_v3_small")},
    **{f"torchvision {n}": 64 for n in ("convnext_tiny", "regnet_y_400mf", "shufflenet_v2_x0_5", "swin_t")},
    "torchvision googlenet": 96,
    "torchvision vit_b_16": None,
    **{f"transformers {n}": None for n in ("ViT", "DeiT", "Beit", "Dinov2", "Swin", "ConvNext", "ResNet")},
    **{f"transformers {n}": None for n in ("MobileNetV2", "PvtV2", "PoolFormer")},
    **{f"timm {n}": 96 for n in ("resnet18", "convnext_atto", "mobilevit_xxs")},
    "timm vit_tiny_patch16_224": None,
    **{f"ultralytics {n}": 64 for n in ("yolov8n-cls", "yolo11n-cls", "yolo26n-cls")},
}


ADAPTERS = {
    "torchvision": "TorchvisionClassifier",
    "transformers": "TransformersClassifier",
    "timm": "TimmClassifier",
    "ultralytics": "UltralyticsClassifier",
}
QUICK = ("torchvision resnet18", "transformers ViT", "timm resnet18", "ultralytics yolov8n-cls")


def built(model: str, seed: int) -> nn.Module:
    """The model with random weights; normalisation as if it had seen data, so that signals keep their size."""
    torch.manual_seed(seed)
    library, name = model.split()
    module = MAKERS[library](name)
    for part in module.modules():
        if isinstance(part, (nn.Linear, nn.Conv2d)) and library != "torchvision":
            nn.init.kaiming_normal_(part.weight, nonlinearity="linear")
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
    if norms:
        with torch.no_grad():  # the statistics of one batch of noise
            module.train()(torch.randn(4, 3, MODELS[model] or 64, MODELS[model] or 64))
    return module.eval()


def library_logits(model: str, module: nn.Module, picture: np.ndarray) -> Tensor:
    """[K] logits of the library's own way from a picture."""
    library, size = model.split()[0], MODELS[model]
    image = Image.fromarray(picture)
    if library == "ultralytics":
        from ultralytics import YOLO

        wrapper = YOLO("yolov8n-cls.yaml", task="classify")
        wrapper.model = module
        bgr = np.ascontiguousarray(picture[:, :, ::-1])
        probabilities = wrapper.predict(bgr, imgsz=size, verbose=False, device="cpu")[0].probs.data
        return probabilities.log()
    with torch.no_grad():
        if library == "torchvision":
            from torchvision.transforms._presets import ImageClassification

            side = size or 64
            return module(ImageClassification(crop_size=side, resize_size=round(side * 8 / 7))(image)[None])[0]
        if library == "timm":
            from timm.data import create_transform, resolve_data_config

            sized = {"input_size": (3, size, size)} if size else {}
            return module(create_transform(**resolve_data_config(sized, model=module))(image)[None])[0]
        names = importlib.import_module("transformers.models.auto.image_processing_auto").IMAGE_PROCESSOR_MAPPING_NAMES
        processor = getattr(importlib.import_module("transformers"), names[module.config.model_type]["torchvision"])()
        side = getattr(module.config, "image_size", None)
        options: dict[str, Any] = {}
        if isinstance(side, int):
            square = {"height": side, "width": side}
            options = {"size": {"shortest_edge": side} if "shortest_edge" in dict(processor.size) else square}
            if getattr(processor, "do_center_crop", False):
                options["crop_size"] = square
        return module(**processor(image, return_tensors="pt", **options)).logits[0]
