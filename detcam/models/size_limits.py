"""Size limits: a small configuration may describe a model of any size, so limits apply before memory is allocated."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as registration

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
    """Context to build a model in, on the meta device: stops once it is much larger than its weights in bytes.

    Raises a ModelError inside the context, from the first layer beyond a limit; the text names the limit.
    """
    thread, most = threading.get_ident(), PER_BYTE * weights + SPARE
    elements = modules = 0

    def count(module: nn.Module, name: str, added: Any) -> None:
        nonlocal elements, modules
        if threading.get_ident() != thread or added is None:
            return
        modules += isinstance(added, nn.Module)
        elements += added.numel() if isinstance(added, Tensor) and added.is_meta else 0
        if elements > most:
            raise ModelError(f"its config has more than {most:,} parameters, for {weights:,} bytes of weights")
        if modules > MODULES:
            raise ModelError(f"its config has more than {MODULES:,} layers")

    with ExitStack() as hooks:
        for register in (
            registration.register_module_parameter_registration_hook,
            registration.register_module_buffer_registration_hook,
            registration.register_module_module_registration_hook,
        ):
            hooks.callback(register(count).remove)
        yield
