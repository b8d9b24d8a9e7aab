"""Stem: the module through whose output the image enters a network."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from detcam.errors import LayerError


class _Ended(Exception):
    """Ends the forward: the stem is known."""


class _Stem:
    """Follows the first convolution's output through norm and activation, while a model runs."""

    def __init__(self) -> None:
        self.name = ""
        self._output: Tensor | None = None
        self._activation: nn.Module | None = None  # a module without parameters: it may run again elsewhere
        self._before = ""  # the name before it

    def __call__(self, name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if module is self._activation:  # runs a second time
            self.name = self._before
            raise _Ended
        if self._output is None:
            if isinstance(module, nn.Conv2d) and isinstance(output, Tensor):
                self.name, self._output = name, output
        elif output is self._output and self.name.startswith(f"{name}."):  # a block that ends here
            self.name, self._activation = name, None
        elif self._continues(name, module, args, output):
            self._activation = None if any(True for _ in module.parameters()) else module
            self._before, self.name, self._output = self.name, name, output
        elif self._activation is None and not any(True for _ in module.children()):
            raise _Ended

    def _continues(self, name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> bool:
        """Whether a module beside the last works on its output cell by cell: a norm or an activation."""
        beside = name.rpartition(".")[0] == self.name.rpartition(".")[0]  # elsewhere it may open a branch
        reads = bool(args) and args[0] is self._output
        same = isinstance(output, Tensor) and self._output is not None and output.shape == self._output.shape
        return beside and reads and same and all(parameter.ndim <= 1 for parameter in module.parameters())


@torch.no_grad()
def find_stem(module: nn.Module, forward: Callable[[], Any]) -> str:
    """The name of the module whose output is that of the first convolution, behind its norm and activation.

    All evidence passes through it, at a stride of 1 to 4 (16 in plain vision transformers, whose patches it embeds),
    and it is the same rule for every architecture. The forward ends there, unless the activation is a module that could
    run again.

    Args:
        module: the network.
        forward: runs it.

    Raises:
        LayerError: if no convolution runs.
    """
    stem = _Stem()
    handles = [m.register_forward_hook(partial(stem, name)) for name, m in module.named_modules() if name]
    try:
        forward()
    except _Ended:
        pass
    finally:
        for handle in handles:
            handle.remove()
    if not stem.name:
        raise LayerError(
            f"layers 'stem': no convolution runs in {type(module).__name__}: name a layer near its input, see "
            "`detcam layers`"
        )
    return stem.name
