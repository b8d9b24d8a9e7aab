"""One case for each kind of model that detcam explains: a small random model, and what its library finds in an image.

`test_contract.py` crosses the cases with the promises that hold for all families. A new family needs an entry here:
how its smallest model is built and how the library's own call predicts.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import classifier_models
import custom_models
import cv2
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
from support import CONF, random_picture, seed_of
from torch import Tensor, nn

from detcam import Explainer, Explanation
from detcam.adapters import adapter_for

Options = dict[str, Any]  # of the Explainer, beside the model
Size = tuple[int, int]


@dataclass(frozen=True)
class Prediction:
    """The objects that a library's own call finds in one image, in its order.

    Attributes:
        scores: [N].
        boxes: [N, 4] xyxy in source pixels; None: the library gives none.
        class_ids: [N] int64; None: the library gives no numbers.
        masks: [N, H, W] bool; None: the library gives none.
        segments: [H, W] int64, the object of each pixel, -1 where there is none: of libraries that lay masks over one
            another; else None.
        names: the classes by number; None: the library knows none.
    """

    scores: Tensor
    boxes: Tensor | None = None
    class_ids: Tensor | None = None
    masks: Tensor | None = None
    segments: Tensor | None = None
    names: dict[int, str] | None = None


@dataclass(frozen=True)
class FamilyCase:
    """One kind of model of one family.

    Attributes:
        id: the name in the tests' ids.
        adapter: the name of the class that must serve the model.
        build: (image, seed) -> the model in eval mode, and the Explainer's options for it.
        predict: (model, options, image, conf) -> the objects of the library's own call.
        default: whether it is tested in the default tier.
        size: (height, width) of the image.
        conf: lowest score of an object; None: in the widest gap of the library's scores, after about six objects.
        least: objects that there must be at least.
        exact: whether predictions are compared in float64, where rounding decides no pixel between two classes.
        box, share, score: the largest distance from the library's boxes, in pixels and as a share of the coordinate,
            and from its scores.
        prompted: whether the model must be given prompts.
        exact_candidates: whether candidates have the very scores and boxes of the objects that they become.
        square: the layers at which a painted square is looked for; (): those of "evidence".
        local: changes a model such that no layer carries a change to other places.
        enlarged: options under which the input has cells enough for a square to lie in.
        half: the types of lower precision that the library runs the model in.
    """

    id: str
    adapter: str
    build: Callable[[np.ndarray, int], tuple[Any, Options]]
    predict: Callable[[Any, Options, np.ndarray, float], Prediction]
    default: bool = False
    size: Size = (96, 128)
    conf: float | Callable[[Any, Options, np.ndarray], float] | None = None
    least: int = 2
    exact: bool = False
    box: float = 1e-3
    share: float = 0.0
    score: float = 1e-4
    prompted: bool = False
    exact_candidates: bool = True
    square: tuple[str, ...] = ()
    local: Callable[[nn.Module], None] | None = None
    enlarged: Callable[[Options], Options] | None = None
    half: tuple[torch.dtype, ...] = (torch.bfloat16,)

    @property
    def seed(self) -> int:
        return seed_of(self.id)

    @property
    def options(self) -> Options:
        return built(self)[1]

    def model(self) -> Any:
        """The model, the same in every test: copy it to change it."""
        return built(self)[0]

    def fresh(self) -> Any:
        """A copy of the model."""
        return copy.deepcopy(self.model())

    def module(self, model: Any) -> nn.Module:
        """The nn.Module inside what the library calls a model."""
        return model if isinstance(model, nn.Module) else adapter_for(model).unwrap(model)

    def image(self, number: int = 0, size: Size | None = None) -> np.ndarray:
        return random_picture(self.seed + number, *(size or self.size))

    def threshold(self) -> float:
        """The lowest score of an object: no rounding decides what lies above it."""
        return threshold_of(self)

    @staticmethod
    def gap(prediction: Prediction) -> float:
        """The middle of the widest gap between two scores, after four to eight of them."""
        ordered = prediction.scores.double().sort(descending=True).values
        first = min(3, len(ordered) // 3)
        near = ordered[first : first + 6]
        widest = int(near.diff().argmin())
        return float(near[widest : widest + 2].mean())

    def explainer(self, model: Any = None, **more: Any) -> Explainer:
        return Explainer(self.model() if model is None else model, **{**self.options, **more})

    def question(self, image: np.ndarray) -> Options:
        """What the explainer's call is given beside the image."""
        return {"prompts": prompts_in(image)} if self.prompted else {}

    def explain(self, model: Any = None, image: np.ndarray | None = None, **more: Any) -> Explanation:
        image = self.image() if image is None else image
        explanation = self.explainer(model, **more)(image, **self.question(image))
        assert isinstance(explanation, Explanation)
        return explanation


@cache
def built(case: FamilyCase) -> tuple[Any, Options]:
    return case.build(case.image(), case.seed)


@cache
def threshold_of(case: FamilyCase) -> float:
    if callable(case.conf):
        return case.conf(case.model(), case.options, case.image())
    return case.gap(case.predict(case.model(), case.options, case.image(), 0.0)) if case.conf is None else case.conf


def parameters(chosen: Callable[[FamilyCase], bool] = lambda case: True) -> list[Any]:
    """The cases for `pytest.mark.parametrize`; those outside the default tier are marked."""
    return [
        pytest.param(case, id=case.id, marks=[] if case.default else pytest.mark.nightly)
        for case in CASES
        if chosen(case)
    ]


def prompts_in(image: np.ndarray) -> list[tuple[float, ...]]:
    """A point and a box, which lie in the image whatever its size."""
    height, width = image.shape[:2]
    return [(width * 0.5, height * 0.4), (width * 0.1, height * 0.1, width * 0.8, height * 0.9)]


def around(masks: Tensor) -> Tensor:
    """[N, 4] xyxy boxes around masks [N, H, W]; zeros around an empty mask."""
    boxes = torch.zeros(len(masks), 4)
    for box, mask in zip(boxes, masks, strict=True):
        if mask.any():
            y, x = mask.nonzero().unbind(1)
            box.copy_(torch.stack([x.min(), y.min(), x.max() + 1, y.max() + 1]))
    return boxes


# ----- Ultralytics


def _yolo(config: str, default: bool = False, enlarged: int = 256) -> FamilyCase:
    pixels = yolo_models.size_of(config)

    def predict(model: Any, options: Options, image: np.ndarray, conf: float) -> Prediction:
        result, boxes, scores, classes = yolo_models.predicted(
            config,
            copy.deepcopy(model),
            image,
            conf=conf,
            retina_masks=True,
            **options,
        )
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
        half=(),  # Ultralytics' own call gives no numbers then
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

    return FamilyCase(f"transformers-{kind}", "DetrAdapter", build, predict, default, enlarged=enlarged)


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

    def local(module: nn.Module) -> None:
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

    def enlarged(options: Options) -> Options:
        boxed = kind in ("detr", "conditional_detr")
        size = {"shortest_edge": 192, "longest_edge": 256}
        return {"processor": type(options["processor"])(size=size)} if boxed else options

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
        local=local,
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

    def local(module: nn.Module) -> None:
        for name, part in module.get_submodule("backbone").named_modules():
            if name.endswith("attention.output.dense"):
                nn.init.zeros_(part.weight)
                nn.init.zeros_(part.bias)

    return FamilyCase(
        kind,
        "RfdetrAdapter",
        lambda image, seed: (rfdetr_models.random_rfdetr(kind, seed), {}),
        predict,
        default,
        size=(80, 120),
        box=1e-2,
        local=local,
    )


def _custom() -> FamilyCase:
    side = custom_models.SIZE

    def predict(model: Any, options: Options, image: np.ndarray, conf: float) -> Prediction:
        """The letterbox by hand: of an image twice as wide as high."""
        square = np.full((side, side, 3), 114, np.uint8)
        square[side // 4 : -side // 4] = cv2.resize(image, (side, side // 2), interpolation=cv2.INTER_LINEAR)
        batch = torch.from_numpy(square).permute(2, 0, 1)[None] / 255
        with torch.no_grad():
            (row,) = custom_models.detect(custom_models.forward(model, batch), conf)
        boxes = (row["boxes"] - torch.tensor([0, side // 4, 0, side // 4])) * (image.shape[1] / side)
        boxes = boxes.clamp(min=0).minimum(torch.tensor(image.shape[1::-1] * 2))
        return Prediction(row["scores"], boxes, row["class_ids"])

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
    *(_detr(kind, kind in ("detr", "deformable_detr")) for kind in detr_models.KINDS),
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
