"""What every method is: a small class that turns activations and gradients into coarse maps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor


class Method(ABC):
    """A way to turn what the model computed at a layer into one coarse map per object.

    Class attributes describe the method: `name`, `formula`, `source` (the paper), `reads` ("activations" or
    "activations, gradients"), `cellwise` (whether the map at a cell follows from the activations and gradients of that
    cell alone, and is zero where the gradient is), `object_specific` (whether two objects of one picture get different
    maps) and `passes` (what N objects cost by the plain way, in forwards F and partial backwards B).
    """

    name: ClassVar[str]
    formula: ClassVar[str]
    source: ClassVar[str]
    reads: ClassVar[str] = "activations, gradients"
    cellwise: ClassVar[bool] = False
    object_specific: ClassVar[bool] = True
    passes: ClassVar[str] = "1 F + N B"

    @abstractmethod
    def maps(self, acts: Tensor, grads: Tensor | None) -> Tensor:
        """Raw coarse maps, before ReLU and normalisation.

        Args:
            acts: [n, C, h, w] float32, the activations A at the layer, one slice per object.
            grads: [n, C, h, w] float32, g = dS/dA of each object's scalar S; None for methods that read no gradients.

        Returns:
            [n, h, w] float32.
        """


class PooledMethod(Method):
    """A method that gives each channel one weight: map = sum_k w_k A_k."""

    @abstractmethod
    def weights(self, acts: Tensor, grads: Tensor) -> Tensor:
        """[n, C] channel weights from acts and grads [n, C, h, w]."""

    def maps(self, acts: Tensor, grads: Tensor | None) -> Tensor:
        """See `Method.maps`."""
        assert grads is not None
        return torch.einsum("nc,nchw->nhw", self.weights(acts, grads), acts)
