"""Classifiers: the library's own logits, the predicted class, CAM by formula, and the crop's exact place."""

import importlib
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support import fingerprint, random_picture
from torch import Tensor, nn

from detcam import Explainer
from detcam.adapters import Adapter, adapter_for
from detcam.engine import shadow
from detcam.errors import ModelError, TargetError

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


def adapted(module: nn.Module, imgsz: int | None = None, **options: Any) -> Adapter:
    return adapter_for(module)(shadow(module), module, imgsz, **options)


@pytest.mark.parametrize("model", MODELS)
def test_the_predicted_class_gets_a_map(model: str, seed: int) -> None:
    picture = random_picture(seed, 90, 140)
    module = built(model, seed)
    expected = library_logits(model, module, picture)
    before = fingerprint(module)
    explainer = Explainer(module, imgsz=MODELS[model])
    explanation = explainer(picture)
    evidence = Explainer(module, imgsz=MODELS[model], layers="evidence")(picture)
    assert fingerprint(module) == before
    assert len(explanation) == 1
    assert explanation.class_ids.tolist() == [int(expected.argmax())]
    torch.testing.assert_close(explanation.scores[0], expected.softmax(0).amax(), rtol=1e-4, atol=1e-6)
    assert explanation.boxes.tolist() == [[0, 0, 140, 90]]
    assert explanation.masks is None
    adapter = explainer.adapter
    logits = adapter.forward(adapter.prepare(picture)[0][None], 1).logits[0].detach()
    torch.testing.assert_close(logits - logits.logsumexp(0), expected - expected.logsumexp(0), rtol=1e-4, atol=1e-4)
    for each in (explanation, evidence):
        assert bool(each.maps[0].isfinite().all())
        assert bool(each.maps[0].any()), each.notes
        assert each.heatmaps.shape == (1, 90, 140)
    last = explainer.plan.names
    assert len(last) == 1
    assert not set(last) & set(evidence.settings["layers"]), "the stages before the last map"


EXPECTED = {
    "torchvision resnet18": ("layer4", ["layer1", "layer2", "layer3"]),
    "torchvision convnext_tiny": ("features", ["features.2.0", "features.4.0", "features.6.0"]),
    "torchvision vit_b_16": ("encoder.layers.encoder_layer_1", ["conv_proj"]),  # the last but one of three
    "transformers ViT": ("vit.layers.1", ["vit.embeddings.patch_embeddings.projection"]),
    "transformers Beit": ("beit.layers.2", ["beit.embeddings.patch_embeddings.projection"]),  # it averages the patches
    "ultralytics yolov8n-cls": ("model.9.conv", ["model.2", "model.4", "model.6"]),
}


@pytest.mark.parametrize("model", EXPECTED)
def test_presets_name_the_last_map_and_the_ends_of_stages(model: str, seed: int) -> None:
    adapter = adapted(built(model, seed), MODELS[model])
    last, earlier = EXPECTED[model]
    assert adapter.layers("level").names == (last,)
    assert list(adapter.layers("evidence").names) == earlier


def test_gradcam_is_cam_where_pooling_and_a_linear_layer_follow(seed: int) -> None:
    """CAM (Zhou 2016): sum over channels of the linear layer's weight times the last map; Grad-CAM pools 1 / cells."""
    picture = random_picture(seed, 120, 90)
    module: Any = built("torchvision resnet18", seed)
    maps: dict[str, Tensor] = {}
    explainer = Explainer(module, method="gradcam", imgsz=96)
    explanation = explainer(picture)
    handle = module.layer4.register_forward_hook(lambda m, a, out: maps.update(last=out[0]))
    with torch.no_grad():
        logits = module(explainer.adapter.prepare(picture)[0][None])[0]
    handle.remove()
    cells = maps["last"].shape[1] * maps["last"].shape[2]
    by_hand = sum(w * channel for w, channel in zip(module.fc.weight[logits.argmax()], maps["last"], strict=True))
    torch.testing.assert_close(explanation.maps[0], by_hand.detach() / cells, rtol=1e-4, atol=1e-6)


def test_targets_are_logit_probability_and_margin(seed: int) -> None:
    picture = random_picture(seed, 80, 80)
    adapter = adapted(built("torchvision resnet18", seed), 64)
    pixels, geometry = adapter.prepare(picture)
    outputs = adapter.forward(pixels[None], 1)
    objects = adapter.detect(outputs, [geometry], 0.9999, 0.7, 1)
    logits = sorted(outputs.logits[0].tolist())
    value = {target: adapter.score(outputs, objects, target).item() for target in adapter.available}
    assert value["class"] == pytest.approx(logits[-1])
    assert value["margin"] == pytest.approx(logits[-1] - logits[-2], abs=1e-5)
    assert value["prob"] == pytest.approx(np.exp(logits[-1]) / np.exp(logits).sum(), rel=1e-4)
    with pytest.raises(TargetError):
        Explainer(built("torchvision resnet18", seed), target="box")


@pytest.mark.parametrize("shape", [(90, 200), (301, 77)])
@pytest.mark.parametrize(
    "model",
    [
        "torchvision resnet18",
        "timm resnet18",
        "ultralytics yolov8n-cls",
        "transformers MobileNetV2",
        "transformers ConvNext",
    ],
)
def test_the_crop_maps_back_to_the_same_pixels(model: str, shape: tuple[int, int], seed: int) -> None:
    """A bright square in the picture lies in the network's input where the geometry says, within a pixel."""
    adapter = adapted(built(model, seed), MODELS[model])
    side, random = min(shape), np.random.default_rng(seed)
    top, left = (int((s - side) / 2 + random.uniform(0.2, 0.5) * side) for s in shape)
    size = side // 4
    picture = np.zeros((*shape, 3), np.uint8)
    dark = adapter.prepare(picture)[0]
    picture[top : top + size, left : left + size] = 255
    pixels, geometry = adapter.prepare(picture)
    light = (pixels - dark).sum(dim=0).clamp(min=0)
    assert geometry.network == tuple(light.shape)
    y = (light.sum(dim=1) * (torch.arange(light.shape[0]) + 0.5)).sum() / light.sum()
    x = (light.sum(dim=0) * (torch.arange(light.shape[1]) + 0.5)).sum() / light.sum()
    x1, y1, x2, y2 = geometry.to_network(torch.tensor([[left, top, left + size, top + size]]).float())[0].tolist()
    assert float(y) == pytest.approx((y1 + y2) / 2, abs=0.6)
    assert float(x) == pytest.approx((x1 + x2) / 2, abs=0.6)


def test_the_weights_own_transforms_may_be_given(seed: int) -> None:
    from torchvision.models import EfficientNet_B0_Weights

    picture = random_picture(seed, 150, 120)
    transforms = EfficientNet_B0_Weights.IMAGENET1K_V1.transforms()
    adapter = adapted(built("torchvision resnet18", seed), processor=transforms)
    expected = transforms(Image.fromarray(picture))
    torch.testing.assert_close(adapter.prepare(picture)[0], expected)
    with pytest.raises(ModelError, match="processor"):
        adapted(built("torchvision resnet18", seed), processor=object())


def test_a_batch_gives_what_single_pictures_give(seed: int) -> None:
    pictures = [random_picture(seed + i, 80, 100) for i in range(3)]
    explainer = Explainer(built("transformers ViT", seed))
    for one, alone in zip(explainer(pictures), map(explainer, pictures), strict=True):
        assert one.labels == alone.labels
        torch.testing.assert_close(one.maps[0], alone.maps[0], rtol=1e-4, atol=1e-6)


def test_names_of_imagenet(seed: int) -> None:
    from torchvision.models import ResNet18_Weights, resnet18

    explanation = Explainer(resnet18().eval(), imgsz=64)(random_picture(seed, 70, 70))
    names = ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
    assert explanation.labels == [names[int(explanation.class_ids[0])]]
    assert (
        Explainer(built("torchvision resnet18", seed), imgsz=64)(random_picture(seed, 70, 70)).labels[0][:6] == "class "
    )


def test_a_head_of_zeros_still_has_its_layers_and_says_why_the_map_is_zero(seed: int) -> None:
    module: Any = built("torchvision vit_b_16", seed)
    nn.init.zeros_(module.heads.head.weight)
    explanation = Explainer(module)(random_picture(seed, 70, 70))
    assert explanation.settings["layers"] == ["encoder.layers.encoder_layer_1"]
    assert explanation.notes[0] is not None
    assert not bool(explanation.heatmaps.any())
