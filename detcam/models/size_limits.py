"""Size limits: a small configuration may describe a model of any size, so limits apply before memory is allocated."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from detcam.errors import ModelError

COUNT = 2**20  # limit for any number in a configuration: layers, labels, words
SIDE = 2**13  # pixels of a processed image
MODULES = 2**14  # of a model: real models have a few thousand, and each takes kilobytes and a millisecond
SPARE = 2**24  # elements that may be missing from the weights: tables of positions, a new head
PER_BYTE = 2  # elements per byte of the weights: 4 bits each


def check_counts(part: dict[str, Any], where: str, most: int = COUNT) -> None:
    """Raise a ModelError for a number above `most`, or a list with such a sum: code loops, or allocates, so much."""
    for key, value in part.items():
        limit = 2 * SIDE if key.endswith("image_size") else most  # of both sides: tables have their product
        if (count := _sum(value)) > limit:
            raise ModelError(f"{where} has {count:,} for {key!r}, the limit is {limit:,}: get a complete copy")


def _sum(value: Any) -> int:
    if isinstance(value, list):
        return sum(map(_sum, value))
    return value if isinstance(value, int) else 0


@contextmanager
def bounded(weights: int) -> Iterator[None]:
    """Context in which a model is built on the meta device: stops once the model is much larger than its weights.

    Args:
        weights: bytes of the weights file.

    Raises:
        ModelError: inside the context, from the first layer beyond a limit; the text names the limit.
    """
    thread, most = threading.get_ident(), PER_BYTE * weights + SPARE
    elements = modules = 0

    def grow(module: nn.Module, name: str, tensor: Any) -> None:
        nonlocal elements
        if threading.get_ident() == thread and tensor is not None and tensor.is_meta:
            elements += tensor.numel()
            if elements > most:
                raise ModelError(f"its config has more than {most:,} parameters, for {weights:,} bytes of weights")

    def add(module: nn.Module, name: str, child: Any) -> None:
        nonlocal modules
        if threading.get_ident() == thread:
            modules += 1
            if modules > MODULES:
                raise ModelError(f"its config has more than {MODULES:,} layers")

    with ExitStack() as hooks:
        for register, hook in (
            (register_module_parameter_registration_hook, grow),
            (register_module_buffer_registration_hook, grow),
            (register_module_module_registration_hook, add),
        ):
            hooks.callback(register(hook).remove)
        yield
