"""Semantic segmenters of the transformers library: SegFormer, UPerNet, BEiT, DPT, MobileViT and their relatives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from detcam.adapters.shared.semantic import SemanticAdapter
from detcam.adapters.transformers.base import checkpoint_processor, made_for, require_architecture, size_of, sized
from detcam.geometry import Geometry

STRIDE = 32  # what a side is rounded up to a multiple of


@dataclass(frozen=True)
class _Kind:
    """What sets one architecture apart.

    Attributes:
        classifier: the convolution that puts out the logits.
        level: the module whose output it reads.
        evidence: from the configuration to the modules whose outputs enter the decode head; where a version of the
            library calls them otherwise, another list of names.
        processor: the class of its image processor.
    """

    classifier: str
    level: str
    evidence: Callable[[Any], tuple[list[str], ...]]
    processor: str


def _segformer(config: Any) -> tuple[list[str], ...]:
    stages = range(config.num_encoder_blocks)
    return [f"segformer.stages.{i}" for i in stages], [f"segformer.encoder.layer_norm.{i}" for i in stages]


def _beit(config: Any) -> tuple[list[str], ...]:
    # Hidden states are counted from the embeddings, and the configuration's numbers start at 1.
    return tuple(
        ["beit.embeddings" if i < 2 else f"beit.{layers}.{i - 2}" for i in config.out_indices]
        for layers in ("layers", "encoder.layer")
    )


def _dpt(config: Any) -> tuple[list[str], ...]:
    # Hidden states as maps: the class token is in them. A hybrid's first two maps come from its convolutions.
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


class TransformersSegmenterAdapter(SemanticAdapter):
    """Semantic segmenters of the transformers library.

    `module` is a view of the model; `imgsz` is the side of the network's input in pixels, the shorter one where the
    processor keeps the aspect; `processor` is the model's image processor, by default that of its checkpoint if it lies
    on this machine, else its architecture's. Where a processor crops the picture, only the part that the network saw
    has regions.
    """

    family = "transformers semantic segmentation"
    models = "SegFormer, UPerNet, BEiT, DPT, MobileViT, MobileViTV2"
    install = 'pip install "detcam[transformers]"'

    def __init__(self, module: nn.Module, model: Any, imgsz: int | None = None, processor: Any = None) -> None:
        network: Any = module
        self.config = network.config
        kind = _KINDS[self.config.model_type]
        self.processor = processor or _processor(self.config, kind)
        self.resize = {} if imgsz is None else sized(self.processor, -(-imgsz // STRIDE) * STRIDE)
        self.imgsz = imgsz or size_of(self.processor)
        for part in module.modules():
            config: Any = getattr(part, "config", None)
            if hasattr(config, "return_dict"):
                config.return_dict = True  # the view's own copy: some models cannot do without
        known = {name for name, _ in module.named_modules()}
        evidence = next(names for names in kind.evidence(self.config) if known.issuperset(names))
        self.plans = {"level": (kind.level,), "evidence": tuple(evidence)}
        self._watch(module, kind.classifier, {int(i): name for i, name in self.config.id2label.items()})

    @classmethod
    def serves(cls, model: Any) -> bool:
        """See `Adapter.serves`: a model of transformers for semantic segmentation, or derived from one."""
        return made_for(model, "SemanticSegmentation")

    @classmethod
    def unwrap(cls, model: Any) -> nn.Module:
        """See `Adapter.unwrap`: an error for architectures that are not in the table."""
        require_architecture(model, _KINDS)
        module: nn.Module = model
        return module

    def prepare(self, image: np.ndarray) -> tuple[Tensor, Geometry]:
        """See `Adapter.prepare`: what the image processor makes of it, and what it crops or pads."""
        pixels = self._processed(image)
        network = resized = (pixels.shape[1], pixels.shape[2])
        fitting = {flag: False for flag in ("do_center_crop", "do_pad") if getattr(self.processor, flag, None)}
        if fitting:
            before = self._processed(image, **fitting)
            resized = (before.shape[1], before.shape[2])
        top, left = (int((outer - inner) / 2) for outer, inner in zip(network, resized, strict=True))
        return pixels, Geometry((image.shape[0], image.shape[1]), resized, (top, left), network)

    def _processed(self, image: np.ndarray, **changes: Any) -> Tensor:
        """[3, h, w] what the processor, with some settings changed, makes of a picture."""
        data = self.processor(
            images=image, input_data_format="channels_last", return_tensors="pt", **self.resize, **changes
        )
        pixels: Tensor = data["pixel_values"][0].to(self.device, self.dtype)
        return pixels

    def _run(self, batch: Tensor) -> Tensor:
        # The library's own hooks record the stages that the head reads: they must see what a capture put in.
        for module in self.module.modules():
            hooks: Any = module._forward_hooks
            for key, hook in list(hooks.items()):
                if getattr(hook, "__module__", "").startswith("transformers."):
                    hooks.move_to_end(key)
        full: Tensor = self.module(pixel_values=batch, output_hidden_states=False, return_dict=True).logits
        return full

    def grids(self, tokens: int, size: tuple[int, int]) -> list[tuple[int, int, int]]:
        """See `Adapter.grids`: the patches behind a class token, or one of SegFormer's stages."""
        for rows, columns in self._maps(size):
            if tokens - rows * columns in (0, 1):
                return [(tokens - rows * columns, rows, columns)]
        return []

    def _maps(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        """The (rows, columns) of the maps that lie in sequences of tokens."""
        if self.config.model_type in ("beit", "dpt"):
            return [(size[0] // self.config.patch_size, size[1] // self.config.patch_size)]
        maps: list[tuple[int, int]] = []
        for stride in self.config.strides if self.config.model_type == "segformer" else []:
            size = (-(-size[0] // stride), -(-size[1] // stride))
            maps.append(size)
        return maps


def _processor(config: Any, kind: _Kind) -> Any:
    """The image processor of the checkpoint if it lies on this machine, else the default one of the architecture."""
    import transformers

    found = checkpoint_processor(config)
    if found is not None:
        return found
    processor = getattr(transformers, kind.processor)()
    if config.model_type in ("beit", "dpt") and isinstance(config.image_size, int):  # made for one size
        return type(processor)(**sized(processor, config.image_size))
    return processor
