"""A configuration is a few bytes and may ask for a model of any size: bounds that hold before the memory is taken."""

from __future__ import annotations

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

COUNT = 2**20  # of anything that a configuration may count: layers, labels, words
SIDE = 2**13  # pixels of a picture that a processor makes
MODULES = 2**14  # of one model: honest ones have some thousand, and each takes kilobytes and a millisecond
SPARE = 2**24  # elements that need not be in the weights: tables of positions, a head that is made anew
PER_BYTE = 2  # elements for each byte of the weights: of 4 bits each


def check_counts(part: dict[str, Any], where: str, most: int = COUNT) -> None:
    """Refuse a number, or a list that adds up to one, that code would count to, or make a picture so large.

    Raises:
        ModelError: for what is beyond `most`.
    """
    for key, value in part.items():
        limit = 2 * SIDE if key.endswith("image_size") else most  # height and width, whose product is a table's size
        if (count := _sum(value)) > limit:
            raise ModelError(f"{where} has {count:,} for {key!r}, where {limit:,} is the most: get a whole copy")


def _sum(value: Any) -> int:
    if isinstance(value, list):
        return sum(_sum(one) for one in value)
    return value if isinstance(value, int) else 0


@contextmanager
def bounded(weights: int) -> Iterator[None]:
    """While a model is built on the meta device: ends it once it is much larger than its weights.

    Args:
        weights: bytes of the file that fills it.

    Raises:
        ModelError: inside, from the layer that is one too many; its text says what there is too much of.
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
