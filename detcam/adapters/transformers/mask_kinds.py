"""Architectures with mask queries: their layers, their grids of tokens and their processors."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from detcam.adapters.transformers.base import checkpoint_processor, default_processor
from detcam.errors import ModelError

BOXED = ("detr", "conditional_detr")  # queries with boxes
STRIDES = (4, 2, 2, 2)  # of a backbone's stages, each relative to the stage before


@dataclass(frozen=True)
class MaskKind:
    """Facts of one architecture."""

    level: tuple[str, ...]  # the modules whose maps the queries and their masks read
    # The modules whose maps enter the pixel decoder or encoder, after their norms: before a norm over the whole map,
    # gradient times activation sums to zero.
    entries: tuple[str, ...]
    processor: str  # the class of the image processor


_PIXELS = "model.pixel_level_module"
_DECODER = f"{_PIXELS}.decoder"
_ENTRIES = (*(f"{_DECODER}.input_projections.{i}" for i in range(3)), f"{_DECODER}.adapter_1")
# Queries join the patches at a block and read them up to the last block, after its norm: before a norm, gradient times
# activation, summed over channels, is zero at every cell, because scaling the input does not change the output.
_JOINT = MaskKind(("layers.{last}.norm1", "upscale_block"), ("layers.{before}",), "EomtImageProcessor")
KINDS = {
    "maskformer": MaskKind((_PIXELS,), (f"{_PIXELS}.encoder",), "MaskFormerImageProcessor"),
    "mask2former": MaskKind((_DECODER,), _ENTRIES, "Mask2FormerImageProcessor"),
    "oneformer": MaskKind((_DECODER,), _ENTRIES, "OneFormerProcessor"),
    "eomt": _JOINT,
    "eomt_dinov3": _JOINT,
    "detr": MaskKind(("detr.model.encoder",), ("detr.model.backbone",), "DetrImageProcessor"),
    "conditional_detr": MaskKind(
        ("conditional_detr.model.encoder",), ("conditional_detr.model.backbone",), "ConditionalDetrImageProcessor"
    ),
}


def plans(config: Any) -> dict[str, tuple[str, ...]]:
    """The modules of the presets "level" and "evidence"."""
    kind, blocks = KINDS[config.model_type], getattr(config, "num_hidden_layers", 0)
    before = blocks - getattr(config, "num_blocks", 0) - 1  # the last block without queries
    entries = kind.entries if before >= 0 or kind is not _JOINT else ("embeddings",)
    named = (("level", kind.level), ("evidence", entries))
    return {preset: tuple(name.format(last=blocks - 1, before=before) for name in names) for preset, names in named}


def grids(config: Any, tokens: int, size: tuple[int, int]) -> list[tuple[int, int, int]]:
    """See `Adapter.grids`: a stage of the backbone, its last three stages, or patches after other tokens."""
    if config.model_type.startswith("eomt"):
        rows, columns = (side // config.patch_size for side in size)
        prefix = 1 + config.num_register_tokens
        start = tokens - rows * columns
        return [(start, rows, columns)] if start in (0, prefix, prefix + config.num_queries) else []
    maps = []
    for stride in STRIDES:
        size = (-(-size[0] // stride), -(-size[1] // stride))
        maps.append(size)
    for parts in ([maps[0]], [maps[1]], [maps[2]], [maps[3]], maps[:0:-1]):  # a pixel decoder starts with the coarsest
        ends = np.cumsum([0] + [rows * columns for rows, columns in parts]).tolist()
        if tokens == ends[-1]:
            return [(start, *part) for start, part in zip(ends, parts, strict=False)]
    return []


def processor_for(config: Any) -> Any:
    """The processor of the checkpoint if it is on this machine, else the default of the architecture."""
    kind = KINDS[config.model_type]
    if kind.processor != "OneFormerProcessor":
        return default_processor(config, kind.processor)
    processor = checkpoint_processor(config, kind.processor)
    if processor is None:
        raise ModelError(
            "OneFormer reads its task from text, and its checkpoint's processor is not on this machine: give "
            "processor=OneFormerProcessor.from_pretrained(...)"
        )
    return processor
