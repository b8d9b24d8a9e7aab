"""One case for each kind of model that detcam explains: a small random model, and what its library finds in an image.

`test_contract.py` crosses the cases with the promises that hold for all families. A new family needs an entry here:
how its smallest model is built and how the library's own call predicts.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import classifier_models
import custom_models
import detr_models
import mask_query_models
import numpy as np
import pytest
import rfdetr_models
import sam_models
import semantic_models
import text_prompted_models
import torch
import torchvision_models
import yolo_models
from family_case import FamilyCase, Options, Prediction, around, prompts_in
from support import CONF
from torch import Tensor

# ----- Ultralytics


def _yolo(config: str, default: bool = False, enlarged: int = 256) -> FamilyCase:
    pixels = yolo_models.size_of(config)

    def predict(model: Any, options: Options, image: np.ndarray, conf: float) -> Prediction:
        given = {"conf": conf, "retina_masks": True, **options}
        result, boxes, scores, classes = yolo_models.predicted(config, copy.deepcopy(model), image, **given)
        masks = None if result.masks is None else result.masks.data > 0
        return Prediction(scores, boxes, classes, masks, names=model.names)

    return FamilyCase(
        config.removesuffix(".yaml"),
        "YoloAdapter",
        lambda image, seed: (yolo_models.random_model(config, seed, image, pixels), {"imgsz": pixels}),
        predict,
        default,
        conf=CONF,
        box=1e-3 if "-obb" not in config and not any(task in config for task in ("world", "yoloe", "pose")) else 1e-2,
        enlarged=lambda options: {"imgsz": enlarged},
        half=(torch.float16, torch.bfloat16),
    )


def _rtdetr(config: str, default: bool = False) -> FamilyCase:
    def predict(model: Any, options: Options, image: np.ndarray, conf: float) -> Prediction:
        from ultralytics import RTDETR

        wrapper: Any = RTDETR("yolov8n-rtdetr.yaml")
        wrapper.model = copy.deepcopy(model)
        bgr = np.ascontiguousarray(image[:, :, ::-1])
        boxes = wrapper.predict(bgr, device="cpu", verbose=False, conf=conf, **options)[0].boxes
        return Prediction(boxes.conf, boxes.xyxy, boxes.cls.long(), names=model.names)

    return FamilyCase(
        f"ultralytics-{config.removesuffix('.yaml')}",
        "RtdetrAdapter",
        lambda image, seed: (detr_models.random_rtdetr(config, seed), {"imgsz": 64}),
        predict,
        default,
        box=1e-2,
        enlarged=lambda options: {"imgsz": 256},
        half=(),  # Ultralytics' own call gives NaN
    )


# ----- Classifiers


def _classifier(name: str, adapter: str, default: bool = False) -> FamilyCase:
    pixels = classifier_models.MODELS[name]

    def predict(model: Any, options: Options, image: np.ndarray, conf: float) -> Prediction:
        logits = classifier_models.library_logits(name, copy.deepcopy(model), image)
        height, width = image.shape[:2]
        box = torch.tensor([[0.0, 0, width, height]])
        return Prediction(logits.softmax(0).amax()[None], box, logits.argmax()[None])

    return FamilyCase(
        name.replace(" ", "-"),
        adapter,
        lambda image, seed: (classifier_models.built(name, seed), {} if pixels is None else {"imgsz": pixels}),
        predict,
        default,
        conf=0.0,
        least=1,
        enlarged=lambda options: options if pixels is None else {"imgsz": 224},
    )


# ----- torchvision


def _torchvision(kind: str, adapter: str, default: bool = False) -> FamilyCase:
    whole = kind in (*torchvision_models.TWO_STAGE, *torchvision_models.DENSE)

    def build(image: np.ndarray, seed: int) -> tuple[Any, Options]:
        make = torchvision_models.architecture if whole else torchvision_models.small
        model: Any = make(kind, seed, image)
        if kind.startswith("ssdlite"):
            model.transform.fixed_size = (192, 192)
        return model, {}

    def predict(model: Any, options: Options, image: np.ndarray, conf: float) -> Prediction:
        result = torchvision_models.predict(model, image)
        keep = result["scores"] > conf
        masks = result["masks"][keep, 0] > 0.5 if "masks" in result else None
        return Prediction(result["scores"][keep], result["boxes"][keep], result["labels"][keep], masks)

    return FamilyCase(
        f"torchvision-{kind}", adapter, build, predict, default, box=1e-2, share=1e-3, score=5e-4, half=()
    )  # fmt: skip


# ----- Semantic segmenters


def _semantic(kind: str, adapter: str, default: bool = False) -> FamilyCase:
    least = 1 if kind in (*semantic_models.TORCHVISION, "smp-binary") else 0  # where class 0 is the background

    def predict(model: Any, options: Options, image: np.ndarray, conf: float) -> Prediction:
        labels, logits = semantic_models.label_map(kind, model, image)
        classes = [c for c in labels.unique().tolist() if c >= least]
        classes.sort(key=lambda c: -int((labels == c).sum()))
        masks = labels == torch.tensor(classes)[:, None, None]
        probabilities = logits.softmax(0)
        scores = [probabilities[c][mask].mean() for c, mask in zip(classes, masks, strict=True)]
        names = model.config.id2label if kind in semantic_models.TRANSFORMERS else None
        return Prediction(torch.stack(scores).float(), around(masks), torch.tensor(classes), masks, names=names)

    return FamilyCase(
        f"semantic-{kind}",
        adapter,
        lambda image, seed: (semantic_models.random_segmenter(kind, seed), semantic_models.options(kind)),
        predict,
        default,
        size=(90, 120) if kind.startswith("smp") else (96, 128),
        conf=0.0,
        least=1 if kind == "smp-binary" else 2,
        exact=True,
        score=1e-5,
        planted=kind in ("lraspp", "segformer", "upernet-convnext", "beit", "smp-unet"),  # others: see test_segments
        enlarged=lambda options: options if "processor" in options else {"imgsz": 256},
    )


# ----- transformers


def _detr(kind: str, default: bool = False) -> FamilyCase:
    def predict(model: Any, options: Options, image: np.ndarray, conf: float) -> Prediction:
        result = detr_models.detections(model, options["processor"], image, conf)
        return Prediction(result["scores"], result["boxes"], result["labels"], names=model.config.id2label)

    def enlarged(options: Options) -> Options:
        processor = options["processor"]
        keeps_aspect = "shortest_edge" in dict(processor.size)
        size = {"shortest_edge": 192, "longest_edge": 256} if keeps_aspect else {"height": 192, "width": 256}
        return {"processor": type(processor)(size=size)}

    def build(image: np.ndarray, seed: int) -> tuple[Any, Options]:
        model, processor = detr_models.random_detr(kind, seed)
        return model, {"processor": processor}

    half = () if kind == "dab-detr" else (torch.bfloat16,)  # which asks for float32 halfway
    return FamilyCase(
        f"transformers-{kind}",
        "DetrAdapter",
        build,
        predict,
        default,
        enlarged=enlarged,
        planted=kind != "rt_detr_v2",
        half=half,
    )


def _mask_queries(kind: str, default: bool = False) -> FamilyCase:
    def build(image: np.ndarray, seed: int) -> tuple[Any, Options]:
        model, processor = mask_query_models.random_segmenter(kind, seed, Path(mkdtemp()))
        return model, {"processor": processor}

    def predict(model: Any, options: Options, image: np.ndarray, conf: float) -> Prediction:
        result = mask_query_models.segments_of(model, options["processor"], image, conf)
        found = result["segments_info"]
        segments = torch.full_like(result["segmentation"], -1)
        for i, info in enumerate(found):
            segments[result["segmentation"] == info["id"]] = i
        scores = torch.tensor([info["score"] for info in found])
        return Prediction(
            scores, None, torch.tensor([info["label_id"] for info in found]), None, segments, model.config.id2label
        )

    def enlarged(options: Options) -> Options:
        if kind in ("detr", "conditional_detr"):
            options = {"processor": type(options["processor"])(size={"shortest_edge": 192, "longest_edge": 256})}
        return {**options, "adapter": mask_query_models.FirstQuery}

    return FamilyCase(
        f"mask-queries-{kind}",
        "MaskQueryAdapter",
        build,
        predict,
        default,
        size=(120, 160),
        conf=lambda model, options, image: mask_query_models.least_score(kind, model, options, image),
        least=3 if kind in mask_query_models.ALONE else 0,  # rivals may leave none
        exact_candidates=False,
        local=mask_query_models.keep_local,
        enlarged=enlarged,
    )


def _text_prompted(kind: str, adapter: str, patches: str, default: bool = False) -> FamilyCase:
    suppression = {"nms_threshold": 0.7} if kind == "omdet-turbo" else {}

    def build(image: np.ndarray, seed: int) -> tuple[Any, Options]:
        model, processor = text_prompted_models.random_prompted(kind, seed)
        return model, {"processor": processor, "text": text_prompted_models.TEXT}

    def predict(model: Any, options: Options, image: np.ndarray, conf: float) -> Prediction:
        result = text_prompted_models.found(model, options["processor"], image, conf, **suppression)[0]
        classes = result["labels"] if isinstance(result["labels"], Tensor) else None
        return Prediction(result["scores"], result["boxes"], classes, names=dict(enumerate(text_prompted_models.TEXT)))

    half = () if kind == "omdet-turbo" else (torch.bfloat16,)  # whose suppression torchvision lacks for bfloat16
    return FamilyCase(kind, adapter, build, predict, default, size=(72, 96), square=(patches,), half=half)


def _sam(kind: str, patches: str, default: bool = False) -> FamilyCase:
    def build(image: np.ndarray, seed: int) -> tuple[Any, Options]:
        model, processor = sam_models.random_sam(kind, seed)
        return model, {"processor": processor}

    def predict(model: Any, options: Options, image: np.ndarray, conf: float) -> Prediction:
        masks, scores = [], []
        for prompt in prompts_in(image):
            three, ious, _ = sam_models.segmented(model, options["processor"], image, prompt)
            masks.append(three[ious.argmax()])
            scores.append(ious.amax().clamp(0, 1))
        return Prediction(torch.stack(scores), None, None, torch.stack(masks))

    return FamilyCase(
        kind, "SamAdapter", build, predict, default, size=(50, 80), conf=0.0, prompted=True, square=(patches,)
    )


# ----- RF-DETR, and a model that no library made


def _rfdetr(kind: str, default: bool = False) -> FamilyCase:
    def predict(model: Any, options: Options, image: np.ndarray, conf: float) -> Prediction:
        result = model.predict(image, threshold=conf)
        masks = None if result.mask is None else torch.from_numpy(result.mask)
        scores, boxes, classes = (torch.from_numpy(a) for a in (result.confidence, result.xyxy, result.class_id))
        names = dict(zip(result.class_id.tolist(), result.data["class_name"], strict=True))
        return Prediction(scores, boxes, classes, masks, names=names)

    return FamilyCase(
        kind,
        "RfdetrAdapter",
        lambda image, seed: (rfdetr_models.random_rfdetr(kind, seed), {}),
        predict,
        default,
        size=(80, 120),
        box=1e-2,
        local=rfdetr_models.keep_local,
    )


def _custom() -> FamilyCase:
    side = custom_models.SIZE

    def predict(model: Any, options: Options, image: np.ndarray, conf: float) -> Prediction:
        row = custom_models.predict(model, image, conf)
        return Prediction(row["scores"], row["boxes"], row["class_ids"])

    return FamilyCase(
        "custom",
        "CallableAdapter",
        lambda image, seed: (custom_models.random_grid(seed), {"adapter": custom_models.adapter(), "imgsz": side}),
        predict,
        default=True,
        size=(48, 96),
        enlarged=lambda options: {**options, "imgsz": 256},
    )


SWIN = "swin.embeddings.patch_embeddings.projection"
CASES: tuple[FamilyCase, ...] = (
    _yolo("yolov8n-seg.yaml", default=True),
    *(_yolo(f"{name}.yaml") for name in ("yolov8n", "yolov10n", "yolo26n", "yolo26n-seg", "yolov8n-pose")),
    *(_yolo(f"{name}.yaml") for name in ("yolov8n-obb", "yolov8n-worldv2", "yoloe-v8n-seg", "yoloe-26n-seg")),
    _rtdetr("yolov8n-rtdetr.yaml", default=True),
    *(_rtdetr(f"{name}.yaml") for name in ("rtdetr-l", "rtdetr-resnet50")),
    *(
        _classifier(name, adapter, name in classifier_models.QUICK)
        for name in classifier_models.MODELS
        for library, adapter in classifier_models.ADAPTERS.items()
        if name.startswith(library)
    ),
    _torchvision("mask", "RcnnAdapter", default=True),
    _torchvision("faster", "RcnnAdapter"),
    _torchvision("retinanet", "RetinaNetAdapter", default=True),
    _torchvision("fcos", "FcosAdapter", default=True),
    _torchvision("ssdlite320_mobilenet_v3_large", "SsdAdapter", default=True),
    _torchvision("ssd300_vgg16", "SsdAdapter"),
    *(
        _semantic(kind, adapter, kind in ("lraspp", "segformer", "smp-unet"))
        for kinds, adapter in (
            (semantic_models.TORCHVISION, "TorchvisionSegmenterAdapter"),
            (semantic_models.TRANSFORMERS, "TransformersSegmenterAdapter"),
            (semantic_models.SMP, "SmpAdapter"),
        )
        for kind in kinds
    ),
    *(_detr(kind, kind == "deformable_detr") for kind in detr_models.KINDS),
    *(_mask_queries(kind, kind == "mask2former") for kind in mask_query_models.KINDS),
    _text_prompted("grounding-dino", "GroundingDinoAdapter", f"model.backbone.conv_encoder.model.{SWIN}", default=True),
    _text_prompted("mm-grounding-dino", "GroundingDinoAdapter", f"model.backbone.conv_encoder.model.{SWIN}"),
    _text_prompted("owlvit", "OwlAdapter", "owlvit.vision_model.embeddings.patch_embedding"),
    _text_prompted("owlv2", "OwlAdapter", "owlv2.vision_model.embeddings.patch_embedding", default=True),
    _text_prompted("omdet-turbo", "OmDetAdapter", f"vision_backbone.vision_backbone.{SWIN}", default=True),
    _sam("sam", "vision_encoder.patch_embed.projection", default=True),
    _sam("sam2", "vision_encoder.backbone.patch_embed.projection"),
    _rfdetr("RFDETRNano"),
    _rfdetr("RFDETRSegNano", default=True),
    _custom(),
)


def parameters(chosen: Callable[[FamilyCase], bool] = lambda case: True) -> list[Any]:
    """The cases for `pytest.mark.parametrize`; those outside the default tier are marked."""
    return [
        pytest.param(case, id=case.id, marks=[] if case.default else pytest.mark.nightly)
        for case in CASES
        if chosen(case)
    ]
