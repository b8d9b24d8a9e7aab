"""Randomised weights: a context in which a model's layers are shuffled, from the output on."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn


def run_order(module: nn.Module, forward: Callable[[], object]) -> list[nn.Module]:
    """The layers with weights of a private view, in the order of their first call during `forward`.

    A layer that is never called as a module (another module reads its weights) follows the layer registered before it;
    layers registered before any called layer come first.
    """
    layers = [m for m in module.modules() if any(True for _ in m.parameters(recurse=False))]
    turns: dict[nn.Module, int] = {}

    def note(layer: nn.Module, args: object) -> None:
        turns[layer] = len(turns) if layer not in turns else turns[layer]

    handles = [layer.register_forward_pre_hook(note) for layer in layers]
    try:
        forward()
    finally:
        for handle in handles:
            handle.remove()
    places, last = {}, -1
    for layer in layers:
        last = places[layer] = turns.get(layer, last)
    return sorted(layers, key=places.__getitem__)


@contextmanager
def randomised(module: nn.Module, share: float, seed: int, order: Sequence[nn.Module] | None = None) -> Iterator[None]:
    """Context in which the weights of the last `share` of a private view's layers are shuffled within each tensor.

    Shuffling keeps the distribution of the weights, hence the scale of the activations; running statistics stay.

    Args:
        module: the private view.
        share: of the layers, in [0, 1].
        seed: of the shuffling.
        order: the layers in call order, see `run_order`; None: in registration order.
    """
    layers = [m for m in module.modules() if any(True for _ in m.parameters(recurse=False))]
    last = set((order or layers)[len(layers) - round(share * len(layers)) :])
    generator = torch.Generator().manual_seed(seed)
    kept: list[tuple[nn.Module, str, nn.Parameter]] = []
    for layer in (layer for layer in layers if layer in last):
        for name, weight in list(layer.named_parameters(recurse=False)):
            order_of_values = torch.randperm(weight.numel(), generator=generator).to(weight.device)
            shuffled = weight.detach().flatten()[order_of_values].view_as(weight)
            kept.append((layer, name, weight))
            setattr(layer, name, nn.Parameter(shuffled, requires_grad=weight.requires_grad))
    try:
        yield
    finally:
        for layer, name, weight in kept:
            setattr(layer, name, weight)
