"""Images of one, four or thirteen channels, of 16 bits and of floats: what each library's own preparation sees."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from support import random_picture
from torch import nn

from detcam import Explainer, explain_results
from detcam.adapters import adapter_for
from detcam.adapters.shared.channels import cycled, input_channels
from detcam.engine import shadow
from detcam.errors import ImageError
from detcam.explanation import Explanation

SIZE = (48, 64)


def bands(seed: int, channels: int, dtype: str = "uint8") -> np.ndarray:
    """[48, 64, channels] random values of a type."""
    levels = np.random.default_rng(seed).integers(0, 256, (*SIZE, channels))
    return {"uint8": levels.astype(np.uint8), "uint16": (levels * 16).astype(np.uint16)}.get(
        dtype, (levels * 16 / 65535).astype(np.float32)
    )


def adapter_of(model: nn.Module, **options: Any) -> Any:
    model.eval()
    return adapter_for(model)(shadow(model), model, **options)


def unet(channels: int) -> nn.Module:
    smp = pytest.importorskip("segmentation_models_pytorch")
    options = {"encoder_depth": 3, "decoder_channels": (8, 8, 8), "encoder_weights": None}
    return smp.Unet("resnet18", in_channels=channels, classes=3, **options)


def segformer(channels: int) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    sizes = {"depths": [1] * 4, "hidden_sizes": [8] * 4, "num_attention_heads": [1] * 4, "decoder_hidden_size": 8}
    config = transformers.SegformerConfig(num_channels=channels, num_labels=3, **sizes)
    return transformers.SegformerForSemanticSegmentation(config)


def resnet(channels: int) -> nn.Module:
    torchvision = pytest.importorskip("torchvision")
    model = torchvision.models.resnet18(num_classes=3)
    model.conv1 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
    return model


def faster_rcnn(channels: int) -> nn.Module:
    detection = pytest.importorskip("torchvision").models.detection
    scales = {"image_mean": [0.5] * channels, "image_std": [0.25] * channels, "min_size": 48}
    model = detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=3, **scales
    )
    model.backbone.body["0"][0] = nn.Conv2d(channels, 16, 3, 2, 1, bias=False)
    return model


def lraspp(channels: int) -> nn.Module:
    model = pytest.importorskip("torchvision").models.segmentation.lraspp_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=3
    )
    model.backbone["0"][0] = nn.Conv2d(channels, 16, 3, 2, 1, bias=False)
    return model


FAMILIES = {"smp": unet, "segformer": segformer, "resnet": resnet, "rcnn": faster_rcnn, "lraspp": lraspp}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("channels", [1, 4, 13])
def test_the_model_runs_on_its_own_number_of_channels(family: str, channels: int, seed: int) -> None:
    adapter = adapter_of(FAMILIES[family](channels))
    assert adapter.channels == channels
    wide = adapter.prepare(bands(seed, channels))[0]
    assert wide.shape[0] == channels
    assert all(len(values) == channels for values in adapter.scales().values())
    with torch.no_grad():
        adapter.forward(wide[None], 3)
    other = 3 if channels == 13 else 5
    with pytest.raises(ImageError, match=f"has {other} channels .*, the model reads {channels}: ") as caught:
        adapter.prepare(bands(seed, other))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_nothing_is_rounded_to_8_bits(family: str, dtype: str, seed: int) -> None:
    """The preparation is linear in the values, so 12 bits in 16 give the picture's difference from black scaled."""
    adapter = adapter_of(FAMILIES[family](4))
    black = adapter.prepare(bands(seed, 4, dtype) * 0)[0].double()
    deep = adapter.prepare(bands(seed, 4, dtype))[0].double() - black
    fine = np.float32(bands(seed, 4)) / 255
    expected = (adapter.prepare(fine)[0].double() - black) * (16 * 255 / 65535)
    torch.testing.assert_close(deep, expected, rtol=1e-3, atol=2e-5)


def test_a_float_tensor_gives_the_models_own_answer(seed: int) -> None:
    torch.manual_seed(seed)
    model = unet(3).eval()
    picture = torch.from_numpy(random_picture(seed, 64, 96)).permute(2, 0, 1).float() / 255 * (4095 / 65535)
    with torch.no_grad():
        own = model(((picture - 0.03) / 0.01)[None])[0].argmax(0)
    seen: list[np.ndarray] = []

    def processor(image: np.ndarray) -> np.ndarray:
        seen.append(image)
        return ((image if image.dtype.kind == "f" else image / 255) - 0.03) / 0.01

    explanation = Explainer(model, conf=0, processor=processor)(picture)
    assert np.array_equal(seen[0], picture.permute(1, 2, 0).numpy())
    labels = torch.full(own.shape, -1)
    assert explanation.masks is not None
    for label, mask in zip(explanation.class_ids.tolist(), explanation.masks, strict=True):
        labels[mask] = label
    assert torch.equal(labels, own)
    assert explanation.shown is not None
    assert explanation.to_dict()["image"]["shown"] == explanation.shown
    assert explanation.picture is not None
    assert np.array_equal(explanation.picture, picture.permute(1, 2, 0).numpy()), "a check explains it again"


@pytest.mark.parametrize(
    ("channels", "picture", "processor"),
    [
        (1, 1, lambda image: image[:, :, :1] / 255.0),
        (1, 1, lambda image: image[:, :, 0] / 255.0),
        (1, 3, lambda image: cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[:, :, None] / 255.0),
        (4, 3, lambda image: np.dstack([image, image[:, :, :1]]) / 255.0),
        (4, 13, lambda image: image[:, :, 2:6] / 255.0),
        (3, 1, lambda image: image / 255.0),
    ],
)
def test_processors_that_change_the_channels(channels: int, picture: int, processor: Any, seed: int) -> None:
    image = bands(seed, picture)
    adapter = adapter_of(unet(channels), processor=processor)
    given = np.repeat(image, 3, axis=2) if (channels, picture) == (3, 1) else image
    expected = np.atleast_3d(processor(given)).transpose(2, 0, 1)
    assert np.array_equal(adapter.prepare(image)[0][:, : SIZE[0], : SIZE[1]].numpy(), expected.astype(np.float32))
    assert adapter.stem().names == ("encoder.relu",), "found without the processor"
    short = adapter_of(unet(channels), processor=lambda image: np.zeros((*image.shape[:2], 2)))
    with pytest.raises(ImageError, match=rf"processor: made \[48, 64, 2\] .*, the model reads {channels} channels"):
        short.prepare(image)


def test_the_librarys_own_processor_and_16_bits(seed: int) -> None:
    smp = pytest.importorskip("segmentation_models_pytorch")
    scales = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    own = partial(smp.encoders.preprocess_input, **scales, input_space="RGB", input_range=[0, 1])
    adapter = adapter_of(unet(3), processor=own)
    deep = adapter.prepare(bands(seed, 3, "uint16"))[0][:, : SIZE[0], : SIZE[1]]
    expected = own(bands(seed, 3, "uint16") / 65535).transpose(2, 0, 1)
    np.testing.assert_allclose(deep.numpy(), expected, rtol=1e-4, atol=1e-5)
    assert adapter.scales() == scales


def test_the_scales_in_force_are_in_the_settings(seed: int) -> None:
    explainer = Explainer(unet(3).eval(), method="gradcam", layers="level")
    assert explainer.settings["mean"] == [0.0] * 3
    assert explainer.settings["std"] == [1.0] * 3
    assert explainer(bands(seed, 3)).to_dict()["settings"]["std"] == [1.0] * 3
    imagenet = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    for family in ("segformer", "resnet", "lraspp"):
        assert adapter_of(FAMILIES[family](3)).scales() == imagenet
    assert adapter_of(faster_rcnn(4)).scales() == {"mean": [0.5] * 4, "std": [0.25] * 4}
    assert cycled([1, 2, 3], 5) == [1, 2, 3, 1, 2]
    assert input_channels(nn.Sequential(nn.PixelUnshuffle(4), nn.Conv2d(48, 8, 1))) == 3
    assert input_channels(nn.Linear(2, 2)) == 3


def yolo(channels: int, seed: int) -> Any:
    ultralytics = pytest.importorskip("ultralytics")
    from ultralytics.nn.tasks import DetectionModel

    torch.manual_seed(seed)
    wrapper = ultralytics.YOLO("yolov8n.yaml")
    wrapper.model = DetectionModel("yolov8n.yaml", ch=channels, nc=80, verbose=False)
    wrapper.model.args = {}
    return wrapper


def same(explanation: Explanation, result: Any) -> None:
    assert len(explanation) == len(result) > 0
    torch.testing.assert_close(explanation.boxes, result.boxes.xyxy, rtol=0, atol=1e-3)
    torch.testing.assert_close(explanation.scores, result.boxes.conf, rtol=0, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 4])
def test_yolo_of_other_channels_as_predict(channels: int, seed: int, tmp_path: Path) -> None:
    model = yolo(channels, seed)
    image = bands(seed, channels)
    colour = random_picture(seed, *SIZE)
    path = tmp_path / ("grey.jpg" if channels == 1 else "clear.png")
    cv2.imwrite(str(path), colour if channels == 1 else np.dstack([colour, image[:, :, 0]]))
    predict = partial(model.predict, conf=1e-6, max_det=2, imgsz=64, verbose=False)
    explainer = Explainer(model, "gradcam", "level", conf=1e-6, max_det=2, imgsz=64)
    results = predict(image)
    same(explainer(image), results[0])
    same(explain_results(results[0], model, method="gradcam", layers="level"), results[0])
    same(explainer(path), predict(path)[0])
    if channels == 1:
        photo = Image.fromarray(colour)
        same(explainer(photo), predict(photo)[0])
        same(explainer(colour), predict(colour[:, :, ::-1])[0])
    else:
        with pytest.raises(ImageError, match=r"has 3 channels .*, the model reads 4"):
            explainer(colour)


def test_yolo_and_16_bits_as_predict(seed: int) -> None:
    model = yolo(3, seed)
    predict = partial(model.predict, conf=1e-6, max_det=2, imgsz=64, verbose=False)
    explainer = Explainer(model, "gradcam", "level", conf=1e-6, max_det=2, imgsz=64)
    deep = bands(seed, 1, "uint16") * 16
    grey = Image.fromarray(deep[:, :, 0])
    same(explainer(grey), predict(grey)[0])
    same(explainer(deep), predict(deep)[0])
    dark = explainer(bands(seed, 1, "uint16"))
    assert dark.shown is not None
    assert dark.checks[0].score == pytest.approx(float(dark.scores[0]), abs=1e-6), (
        "a check reads the picture, not `image`"
    )
    exif = Image.Exif()
    exif[0x0112] = 6
    phone = io.BytesIO()
    Image.fromarray(random_picture(seed, *SIZE)).save(phone, "JPEG", exif=exif)
    upright = explainer(Image.open(phone))
    assert upright.image.shape == (64, 48, 3)
    same(upright, predict(Image.open(phone))[0])
