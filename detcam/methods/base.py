"""Base classes of methods: a method describes itself and turns activations, gradients or forwards into coarse maps."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from detcam.engine import object_gradients
from detcam.engine.sweeps import Probe
from detcam.errors import MethodError, nearest

if TYPE_CHECKING:
    from detcam.adapters import Adapter, Target

Scalar = Literal["target", "prob", "similarity", "match"]
MOST = 2**62  # upper bound of whole numbers that have none of their own


class AnyMethod(ABC):
    """Description and parameters that methods of all kinds have.

    Class attributes: `name`, `formula`, `source` (the paper), `reads` (the quantities it reads, separated by commas),
    `elementwise` (whether the map at a cell follows from the activations and gradients of that cell alone, and is zero
    where the gradient is), `object_specific` (whether two objects of one image get different maps), `passes` (the
    unoptimised cost of N objects, in whole forwards F, partial backwards B and forwards T of the model after the
    layer), `layers` (the preset for layers="auto") and `caution` (a warning to readers of its maps, or None).

    Parameters are the fields of a frozen dataclass that are made with `parameter`.
    """

    name: ClassVar[str]
    formula: ClassVar[str]
    source: ClassVar[str]
    reads: ClassVar[str]
    elementwise: ClassVar[bool] = False
    object_specific: ClassVar[bool] = True
    passes: ClassVar[str]
    layers: ClassVar[str] = "level"
    caution: ClassVar[str | None] = None

    def __post_init__(self) -> None:
        for name, facts in self.parameters().items():
            value = getattr(self, name)
            if isinstance(facts["default"], str):
                if value not in facts["range"]:
                    raise MethodError(f"method {self.name}: {name}: {nearest(str(value), facts['range'])}")
                continue
            low, high = facts["range"]
            if isinstance(value, bool) or not isinstance(value, type(facts["default"])) or not low <= value <= high:
                kind = "a whole number" if isinstance(facts["default"], int) else "a number with a decimal point"
                raise MethodError(f"method {self.name}: {name}: expected {kind} in [{low}, {high}], got {value!r}")

    @classmethod
    def parameters(cls) -> dict[str, dict[str, Any]]:
        """Name -> {"default": ..., "range": [low, high], or the names to choose from} of every parameter."""
        if not dataclasses.is_dataclass(cls):
            return {}
        fields = [field for field in dataclasses.fields(cls) if "range" in field.metadata]
        return {field.name: {"default": field.default, "range": field.metadata["range"]} for field in fields}


def parameter(default: Any, low: float, high: float) -> Any:
    """A parameter of a method: a field of its dataclass, with a default and an allowed range."""
    return dataclasses.field(default=default, metadata={"range": [low, high]})


def choice(*names: str) -> Any:
    """A parameter of a method with the names to choose from; the first is the default."""
    return dataclasses.field(default=names[0], metadata={"range": list(names)})


class Method(AnyMethod):
    """A method that computes one coarse map per object from activations, and gradients of its score, at a layer."""

    reads = "activations, gradients"
    passes = "1 F + N B"
    second_order: ClassVar[bool] = False  # whether `gradients` reads second derivatives
    gradient_times_activation: ClassVar[bool] = False  # whether the map is the sum over channels of that product

    @abstractmethod
    def maps(self, acts: Tensor, grads: Tensor | None) -> Tensor:
        """Raw coarse maps, before ReLU and normalisation.

        Args:
            acts: [n, C, h, w] float32, the activations A at the layer, one slice per object.
            grads: [n, C, h, w] float32, g = dS/dA of each object's scalar S; None for methods that read no gradients.
                For methods that read second derivatives: g - H A / 2, with the Hessian H of S (see ShapleyCAM).

        Returns:
            [n, h, w] float32.
        """

    def target(self, adapter: Adapter, target: Target) -> Target:
        """The scalar to differentiate, given the user's target.

        Raises:
            TargetError: for a target that the method cannot explain.
        """
        return target

    def gradients(
        self,
        scalars: Tensor,  # [N]
        images: Tensor,  # [N] int64
        tensors: list[Tensor],  # each [B, C, h, w]
    ) -> Iterator[tuple[Tensor, list[Tensor | None]]]:
        """The `grads` argument of `maps`, a few objects at a time; see `detcam.engine.object_gradients`."""
        return object_gradients(scalars, images, tensors)

    def terms(self, acts: Tensor, grads: Tensor | None) -> Tensor:
        """[n, C, h, w]: the terms whose sum over channels is the map.

        Raises:
            MethodError: if the map is not a sum over channels.
        """
        raise MethodError(f"method {self.name}: its map is not a sum over channels")


class PooledMethod(Method):
    """A method that gives each channel one weight: map = sum_k w_k A_k."""

    @abstractmethod
    def weights(self, acts: Tensor, grads: Tensor) -> Tensor:
        """[n, C] channel weights from acts and grads [n, C, h, w]."""

    def maps(self, acts: Tensor, grads: Tensor | None) -> Tensor:
        assert grads is not None
        return torch.einsum("nc,nchw->nhw", self.weights(acts, grads), acts)

    def terms(self, acts: Tensor, grads: Tensor | None) -> Tensor:
        assert grads is not None
        return self.weights(acts, grads)[:, :, None, None] * acts


class SweepMethod(AnyMethod):
    """A method that computes the maps of all objects of an image from one shared sweep of forwards.

    Gradients are off while it runs; the methods of `detcam.methods.pixel` turn them on for their own forwards.

    `scalar` is the score that a forward returns for each object: "target" (the user's target at the object's anchor),
    "prob" (the same with the class score as a probability rather than a logit, for sums of scores over masks),
    "similarity" (of the most similar prediction to the object, see `detcam.methods.similarity`) or "match" (similarity
    for models that list candidates, prob for others).

    `starts_from` is another method, whose maps the sweep starts from (`Probe.starts`), where the model has gradients.
    """

    scalar: ClassVar[Scalar] = "target"
    starts_from: ClassVar[AnyMethod | None] = None

    @abstractmethod
    def sweep(self, probe: Probe, layer: str) -> Tensor:
        """Raw coarse maps over the network's input, before ReLU and normalisation.

        Args:
            probe: the image, its objects, and the model.
            layer: a name of `probe.layers`; methods that read activations are called once per layer.

        Returns:
            [M, h, w] float32: a map for each of the M scores, or for each of the N objects. The cells divide the
            network's input evenly.
        """
