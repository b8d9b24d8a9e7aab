"""What every adapter does: turn one family's model into outputs, kept objects and one scalar per object."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from torch import Tensor, nn

from detcam.geometry import Geometry
from detcam.types import Objects

Target = str | Callable[[Any, list[Objects]], Tensor]
TARGETS = ("class", "prob", "margin", "box", "left", "top", "right", "bottom", "objectness", "mask")


@dataclass(frozen=True)
class LayerPlan:
    """Which modules to capture, and how the maps of several of them become one map per object.

    Attributes:
        names: names from the module's `named_modules()`.
        cut_all: cut the graph at every module (gradients are local) or at the earliest ones only.
        fuse: "own": each object's map is read at its own feature level, `names[object.level]`; "sum": the maps of
            all modules are added at the finest resolution.
    """

    names: tuple[str, ...]
    cut_all: bool
    fuse: Literal["own", "sum"]


@dataclass(frozen=True)
class LocalScore:
    """The rest of a model from some captured tensors to one feature level's scores, runnable on crops of them.

    Attributes:
        beside: names of further modules that the scores read and that do not depend on the captured ones: their
            tensors are needed, their gradients are not.
        replay: from the tensors [n, C, h, w] of the captured names and of `beside`, to values [n, K, h, w] per cell.
        score: from the values [n, K] at the objects' cells and their classes [n] to scalars [n, M].
        stride: network pixels per cell of the values.
    """

    beside: tuple[str, ...]
    replay: Callable[[list[Tensor]], Tensor]
    score: Callable[[Tensor, Tensor], Tensor]
    stride: int


class Adapter(ABC):
    """One family of models, seen as: prepare, forward, detect, score.

    An adapter works on a private view of the user's module (see `detcam.engine.shadow`), so it may set that view's
    flags and caches freely.
    """

    family: ClassVar[str]
    models: ClassVar[str]  # the models of the family that it serves, for people to read
    targets: ClassVar[tuple[str, ...]]  # the targets that some model of the family has
    install: ClassVar[str]  # how to get the family's library
    available: tuple[str, ...]  # the targets that this model has
    levels: int  # feature levels that objects are read from
    module: nn.Module  # the private view
    task: str

    @abstractmethod
    def prepare(self, image: np.ndarray) -> tuple[Tensor, Geometry]:
        """One picture [H, W, 3] uint8 RGB as the network's input [3, h, w], and how it was placed there."""

    @abstractmethod
    def forward(self, batch: Tensor, max_det: int) -> Any:
        """The model's raw, differentiable outputs for a batch [B, 3, h, w]."""

    @abstractmethod
    def detect(self, outputs: Any, geometries: list[Geometry], conf: float, iou: float, max_det: int) -> list[Objects]:
        """The objects of each picture: exactly those of the library's own predict call, in its order."""

    @abstractmethod
    def score(self, outputs: Any, objects: list[Objects], target: str) -> Tensor:
        """One differentiable scalar for each object of all pictures: [sum N], or [sum N, K] to be max-combined.

        `target` is one of `available`.
        """

    @abstractmethod
    def layers(self, preset: str) -> LayerPlan:
        """The plan behind the preset "level" or "evidence"."""

    def local(self, names: tuple[str, ...], level: int, target: str) -> LocalScore | None:
        """How to run `target` at one feature level from `names`, the graph cut at each; None where that cannot be."""
        return None
