"""What semantic segmenters are given, by which adapter they are served, and which stages their decoders read."""

from __future__ import annotations

from typing import Any

import cv2
import pytest
import torch
from semantic_models import (
    TORCHVISION,
    TRANSFORMERS,
    processor_for,
    random_segmenter,
)
from support import few, random_picture

from detcam import Explainer
from detcam.adapters import adapter_for
from detcam.adapters.shared.semantic import SemanticAdapter
from detcam.adapters.smp import SmpAdapter
from detcam.engine import shadow
from detcam.errors import ModelError

pytest.importorskip("transformers")

BACKGROUND = {*TORCHVISION, "smp-binary"}  # whose class 0 is the background


@pytest.mark.parametrize("kind", few(TRANSFORMERS, "segformer", "mobilevit"))
def test_the_architectures_own_processor_is_the_default(kind: str, seed: int) -> None:
    model = random_segmenter(kind, seed)
    adapter: Any = Explainer(model, imgsz=96).adapter
    assert type(adapter.processor) is type(processor_for(kind))
    pixels, geometry = adapter.prepare(random_picture(seed, 60, 80))
    assert pixels.shape == ((3, 96, 128) if kind == "mobilevitv2-whole" else (3, 96, 96))
    assert geometry.source == (60, 80)
    # MobileViT's processor scales to the shorter side and cuts out the middle.
    cropped = kind.startswith("mobilevit")
    assert (geometry.resized, geometry.pad) == (((96, 128), (0, -16)) if cropped else ((96, 96), (0, 0)))


@pytest.mark.parametrize("kind", few(["beit", "dpt-hybrid"], "beit"))
def test_vision_transformers_get_the_size_they_are_made_for(kind: str, seed: int) -> None:
    explanation = Explainer(random_segmenter(kind, seed), conf=0.0, max_det=1)(random_picture(seed, 60, 80))
    assert explanation.geometry.network == (96, 96)
    assert explanation.settings["imgsz"] == {"height": 96, "width": 96}


def test_torchvisions_own_preparation(seed: int) -> None:
    from torchvision.models.segmentation import LRASPP_MobileNet_V3_Large_Weights

    picture = random_picture(seed, 60, 90)
    preset = LRASPP_MobileNet_V3_Large_Weights.COCO_WITH_VOC_LABELS_V1.transforms()
    model = random_segmenter("lraspp", seed)
    adapter: Any = Explainer(model).adapter
    pixels, geometry = adapter.prepare(picture)
    assert pixels.shape == (3, 520, 780)
    assert (geometry.source, geometry.resized) == ((60, 90), (520, 780))
    expected = preset(torch.from_numpy(picture).permute(2, 0, 1))
    torch.testing.assert_close(pixels, expected)
    own: Any = Explainer(model, processor=lambda image: image[:, :32, :64] / 255).adapter
    assert own.prepare(picture)[0].shape == (3, 32, 64)


def test_names_of_vocs_classes(seed: int) -> None:
    from torchvision.models.segmentation import lraspp_mobilenet_v3_large

    adapter: Any = Explainer(lraspp_mobilenet_v3_large(weights=None, weights_backbone=None), imgsz=32).adapter
    assert (adapter.names[0], adapter.names[15], len(adapter.names)) == ("__background__", "person", 21)
    assert adapter._left_out == {0}


def test_preparation_for_segmentation_models(seed: int) -> None:
    model: Any = random_segmenter("smp-unet", seed)
    picture = random_picture(seed, 60, 90)
    adapter: Any = Explainer(model, imgsz=64).adapter
    pixels, geometry = adapter.prepare(picture)
    assert (geometry.resized, geometry.network) == ((43, 64), (64, 64))
    small = cv2.resize(picture, (64, 43), interpolation=cv2.INTER_LINEAR)
    torch.testing.assert_close(pixels[:, :43].permute(1, 2, 0), torch.from_numpy(small / 255).float())
    assert not pixels[:, 43:].any()
    processed: Any = Explainer(model, processor=lambda image: image * 2.0).adapter
    assert torch.equal(
        processed.prepare(picture)[0][:, :60, :90].permute(1, 2, 0), torch.from_numpy(picture * 2.0).float()
    )
    model._hub_mixin_config = {**model.config, "encoder_weights": "imagenet"}
    whitened: Any = Explainer(model).adapter
    value = float(whitened.prepare(picture)[0][2, 7, 8])
    assert value == pytest.approx((picture[7, 8, 2] / 255 - 0.406) / 0.225, abs=1e-5)


def test_the_stages_that_a_decoder_reads() -> None:
    smp = pytest.importorskip("segmentation_models_pytorch")

    def evidence(name: str, encoder: str, **more: Any) -> tuple[str, ...]:
        model = getattr(smp, name)(encoder, encoder_weights=None, **more)
        return SmpAdapter(shadow(model), model).plans["evidence"]

    stages = tuple(f"encoder.layer{i}" for i in (1, 2, 3, 4))
    assert evidence("Unet", "resnet18") == ("encoder.relu", *stages)
    assert evidence("FPN", "resnet18") == stages
    assert evidence("DeepLabV3", "resnet18") == stages[3:]
    assert evidence("PAN", "resnet18") == stages


def test_what_is_no_whole_segmenter_is_refused() -> None:
    from transformers import Data2VecVisionConfig, Data2VecVisionForSemanticSegmentation

    config = Data2VecVisionConfig(
        hidden_size=8,
        num_hidden_layers=4,
        num_attention_heads=1,
        intermediate_size=8,
        image_size=32,
        out_indices=[1, 2, 3, 4],
    )
    with pytest.raises(ModelError, match=r"'data2vec-vision' is not one of the architectures segformer, upernet"):
        Explainer(Data2VecVisionForSemanticSegmentation(config))
    smp = pytest.importorskip("segmentation_models_pytorch")
    with pytest.raises(ModelError, match="has no encoder: give a whole model"):
        Explainer(smp.encoders.get_encoder("resnet18", weights=None))


def test_every_kind_is_served_by_its_own_family(seed: int) -> None:
    for kind in ("fcn", "segformer", "smp-binary"):
        served = adapter_for(random_segmenter(kind, seed))
        assert issubclass(served, SemanticAdapter)
        assert served.family == {"f": "torchvision", "s": "transformers semantic segmentation"}.get(
            kind[0] if "smp" not in kind else "", "segmentation-models-pytorch"
        )
