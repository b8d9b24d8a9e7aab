"""Base of the transformers adapters: model classes, image processors and their sizes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from detcam.errors import ModelError

STRIDE = 32  # sides are multiples of the largest stride: a hybrid encoder adds maps of neighbouring levels


def made_for(model: Any, task: str) -> bool:
    """Whether the class of `model`, or a base class, is a `...For<task>` of transformers."""
    return any(
        base.__module__.split(".")[0] == "transformers" and base.__name__.endswith(f"For{task}")
        for base in type(model).__mro__
    )


def require_architecture(model: Any, served: Iterable[str]) -> None:
    """Raise a ModelError for a model whose architecture is not in `served`."""
    library = type(model).__module__.split(".")[0]
    kind = getattr(getattr(model, "config", None), "model_type", library)
    if kind not in served:
        raise ModelError(f"{type(model).__name__}: {kind!r} is not one of the architectures {', '.join(served)}")


def checkpoint_processor(config: Any) -> Any:
    """The image processor of a model's checkpoint if it is on this machine, else None."""
    if not config._name_or_path:
        return None
    import transformers

    try:
        return transformers.AutoImageProcessor.from_pretrained(
            config._name_or_path, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError):
        return None


def size_of(processor: Any) -> dict[str, int]:
    """The size that a processor resizes to, without empty entries."""
    return {name: int(pixels) for name, pixels in dict(processor.size).items() if pixels is not None}


def sized(processor: Any, imgsz: int) -> dict[str, dict[str, int]]:
    """A processor's options for an input of `imgsz` pixels: the shorter side if the processor keeps the aspect."""
    square = {"height": imgsz, "width": imgsz}
    sizes = {"size": {"shortest_edge": imgsz} if "shortest_edge" in size_of(processor) else square}
    return sizes | ({"crop_size": square} if getattr(processor, "do_center_crop", None) else {})


def longest_side(size: Any, imgsz: int) -> dict[str, int]:
    """The `size` of a processor for a longest side of `imgsz` pixels."""
    if "shortest_edge" in {k for k, v in dict(size).items() if v is not None}:
        return {"shortest_edge": imgsz, "longest_edge": imgsz}
    side = -(-imgsz // STRIDE) * STRIDE
    return {"height": side, "width": side}


def recorders_last(module: nn.Module, source: str = "transformers") -> None:
    """Move recording hooks, of transformers and of the Python module `source`, behind hooks that replace outputs."""
    for part in module.modules():
        hooks: Any = part._forward_hooks
        for key, hook in list(hooks.items()):
            origin = getattr(getattr(hook, "func", hook), "__module__", "")
            if origin == source or origin.startswith("transformers."):
                hooks.move_to_end(key)
