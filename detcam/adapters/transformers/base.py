"""What the adapters of the transformers library share: whose model it is, and its image processor."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from detcam.errors import ModelError

STRIDE = 32  # a hybrid encoder adds maps of neighbouring levels, so a side must be a multiple of the largest stride


def made_for(model: Any, task: str) -> bool:
    """Whether `model` is one of transformers whose class is named `...For<task>`, or derived from one."""
    return any(
        base.__module__.split(".")[0] == "transformers" and base.__name__.endswith(f"For{task}")
        for base in type(model).__mro__
    )


def require_architecture(model: Any, served: Iterable[str]) -> None:
    """Raise a ModelError for a model whose architecture is none of `served`."""
    library = type(model).__module__.split(".")[0]
    kind = getattr(getattr(model, "config", None), "model_type", library)
    if kind not in served:
        raise ModelError(f"{type(model).__name__}: {kind!r} is none of the architectures {', '.join(served)}")


def checkpoint_processor(config: Any) -> Any:
    """The image processor of the checkpoint that a model came from, if it lies on this machine, or None."""
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
    """The size that a processor resizes to, without the entries that it leaves open."""
    return {name: int(pixels) for name, pixels in dict(processor.size).items() if pixels is not None}


def sized(processor: Any, imgsz: int) -> dict[str, dict[str, int]]:
    """A processor's own options for an input of `imgsz` pixels: the shorter side where it keeps the aspect."""
    square = {"height": imgsz, "width": imgsz}
    sizes = {"size": {"shortest_edge": imgsz} if "shortest_edge" in size_of(processor) else square}
    return sizes | ({"crop_size": square} if getattr(processor, "do_center_crop", None) else {})


def longest_side(size: Any, imgsz: int) -> dict[str, int]:
    """A processor's kind of size, with a longest side of `imgsz` pixels."""
    if "shortest_edge" in {k for k, v in dict(size).items() if v is not None}:
        return {"shortest_edge": imgsz, "longest_edge": imgsz}
    side = -(-imgsz // STRIDE) * STRIDE
    return {"height": side, "width": side}


def recorders_last(module: nn.Module, own: str) -> None:
    """Have hooks that only look, the library's and those of the module named `own`, see what a capture put in."""
    for part in module.modules():
        hooks: Any = part._forward_hooks
        for key, hook in list(hooks.items()):
            source = getattr(getattr(hook, "func", hook), "__module__", "")
            if source == own or source.startswith("transformers."):
                hooks.move_to_end(key)
