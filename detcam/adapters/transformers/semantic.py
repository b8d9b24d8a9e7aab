"""Semantic segmenters of the transformers library: SegFormer, UPerNet, BEiT, DPT and MobileViT."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from detcam.adapters.base import ImageSize
from detcam.adapters.shared.semantic import SemanticAdapter
from detcam.adapters.transformers.base import (
    TransformersAdapter,
    checkpoint_processor,
    recorders_last,
    return_dicts,
    size_of,
    sized,
)
from detcam.geometry import Geometry

STRIDE = 32  # sides are rounded up to a multiple of it


@dataclass(frozen=True)
class _Kind:
    """Facts of one architecture."""

    classifier: str  # the convolution whose output are the logits
    level: str  # the module whose output the classifier reads
    # Function from the configuration to the modules whose outputs enter the decode head; a list of names for each
    # naming that versions of the library use.
    evidence: Callable[[Any], tuple[list[str], ...]]
    processor: str  # the class of the image processor


def _segformer(config: Any) -> tuple[list[str], ...]:
    stages = range(config.num_encoder_blocks)
    return [f"segformer.stages.{i}" for i in stages], [f"segformer.encoder.layer_norm.{i}" for i in stages]


def _beit(config: Any) -> tuple[list[str], ...]:
    # Hidden states count from the embeddings, and the numbers in the configuration start at 1.
    return tuple(
        ["beit.embeddings" if i < 2 else f"beit.{layers}.{i - 2}" for i in config.out_indices]
        for layers in ("layers", "encoder.layer")
    )


def _dpt(config: Any) -> tuple[list[str], ...]:
    # The hidden states as maps, which include the class token. A hybrid's first two maps come from its convolutions.
    parts = "neck.convs" if config.is_hybrid else "neck.reassemble_stage.layers"
    return ([f"{parts}.{i}" for i in range(len(config.neck_hidden_sizes))],)


_KINDS = {
    "segformer": _Kind("decode_head.classifier", "decode_head.activation", _segformer, "SegformerImageProcessor"),
    "upernet": _Kind(
        "decode_head.classifier",
        "decode_head.fpn_bottleneck",
        lambda config: (["backbone"],),
        "SegformerImageProcessor",
    ),
    "beit": _Kind("decode_head.classifier", "decode_head.fpn_bottleneck", _beit, "BeitImageProcessor"),
    "dpt": _Kind("head.head.4", "head.head.2", _dpt, "DPTImageProcessor"),
    "mobilevit": _Kind(
        "segmentation_head.classifier",
        "segmentation_head.aspp",
        lambda config: (["mobilevit.encoder.layer.4"],),
        "MobileViTImageProcessor",
    ),
    "mobilevitv2": _Kind(
        "segmentation_head.classifier",
        "segmentation_head.aspp",
        lambda config: (["mobilevitv2.encoder.layer.4"],),
        "MobileViTImageProcessor",
    ),
}


class TransformersSegmenterAdapter(TransformersAdapter, SemanticAdapter):
    """Semantic segmenters of the transformers library.

    `module` is a view of the model; `imgsz` is the side of the network's input in pixels, the shorter side if the
    processor keeps the aspect; `processor` is the model's image processor. Default: the processor of its checkpoint if
    that is on this machine, else of its architecture. If a processor crops the image, only the part that the network
    saw has segments.
    """

    family = "transformers semantic segmentation"
    models = "SegFormer, UPerNet, BEiT, DPT, MobileViT, MobileViTV2"
    served = ".*ForSemanticSegmentation"
    kinds = _KINDS

    def __init__(self, module: Any, model: Any, imgsz: ImageSize | None = None, processor: Any = None) -> None:
        super().__init__(module, model, imgsz, processor)
        kind = _KINDS[self.config.model_type]
        self.processor = processor or _processor(self.config, kind)
        self.resize = {} if imgsz is None else sized(self.processor, imgsz, STRIDE)
        self.imgsz = imgsz or size_of(self.processor)
        return_dicts(module)
        known = {name for name, _ in module.named_modules()}
        evidence = next(names for names in kind.evidence(self.config) if known.issuperset(names))
        self.plans = {"level": (kind.level,), "evidence": tuple(evidence)}
        self.multilabel = len(self.names) == 1 or self.config.problem_type == "multi_label_classification"
        self._watch(kind.classifier, self.names)

    def prepare(self, image: np.ndarray) -> tuple[Tensor, Geometry]:
        """See `Adapter.prepare`: by the image processor, with its crop or padding."""
        pixels = self._pixels(image)
        network = resized = (pixels.shape[1], pixels.shape[2])
        fitting = {flag: False for flag in ("do_center_crop", "do_pad") if getattr(self.processor, flag, None)}
        if fitting:
            before = self._pixels(image, **fitting)
            resized = (before.shape[1], before.shape[2])
        top, left = (int((outer - inner) / 2) for outer, inner in zip(network, resized, strict=True))
        return pixels, Geometry((image.shape[0], image.shape[1]), resized, (top, left), network)

    def _run(self, batch: Tensor) -> Tensor:
        recorders_last(self.module)  # hooks of the library record the stages for the head
        return self.module(pixel_values=batch, output_hidden_states=False, return_dict=True).logits

    def grids(self, tokens: int, size: tuple[int, int]) -> list[tuple[int, int, int]]:
        """See `Adapter.grids`: the patches after a class token, or a stage of SegFormer."""
        for rows, columns in self._maps(size):
            if tokens - rows * columns in (0, 1):
                return [(tokens - rows * columns, rows, columns)]
        return []

    def _maps(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        """The (rows, columns) of the maps in sequences of tokens."""
        if self.config.model_type in ("beit", "dpt"):
            return [(size[0] // self.config.patch_size, size[1] // self.config.patch_size)]
        maps: list[tuple[int, int]] = []
        for stride in self.config.strides if self.config.model_type == "segformer" else []:
            size = (-(-size[0] // stride), -(-size[1] // stride))
            maps.append(size)
        return maps


def _processor(config: Any, kind: _Kind) -> Any:
    """The image processor of the checkpoint if it is on this machine, else the default of the architecture."""
    import transformers

    if (processor := checkpoint_processor(config)) is not None:
        return processor
    processor = getattr(transformers, kind.processor)()
    if config.model_type in ("beit", "dpt") and isinstance(config.image_size, int):  # a fixed size
        return type(processor)(**sized(processor, config.image_size))
    return processor
