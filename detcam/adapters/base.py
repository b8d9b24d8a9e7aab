"""What every adapter does: turn one family's model into outputs, kept objects and one scalar per object."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from detcam.adapters.shared.attention import AttentionPlan
from detcam.errors import InputError, MethodError
from detcam.geometry import Geometry
from detcam.types import Objects, Prompt

Target = str | Callable[[Any, list[Objects]], Tensor]
TARGETS = (
    "class", "prob", "margin", "box", "left", "top", "right", "bottom", "objectness", "mask", "mask-margin",
    "mask-coefficients", "mask-prototypes", "iou",
)  # fmt: skip


@dataclass(frozen=True)
class LayerPlan:
    """Which modules to capture, and how the maps of several of them become one map per object.

    Attributes:
        names: names from the module's `named_modules()`.
        cut_all: cut the graph at every module (gradients are local) or at the earliest ones only.
        fuse: "level": each object's map is read at its own feature level, `names[object.level]`; "sum": the maps of
            all modules are added at the finest resolution.
    """

    names: tuple[str, ...]
    cut_all: bool
    fuse: Literal["level", "sum"]


@dataclass(frozen=True)
class Source:
    """A raw output map that scores are read from, and the gradient of n objects' scalars there.

    Attributes:
        tensor: [B, C, h, w] with the graph that leads back from it.
        gradients: [n, M, C, kh, kw], for M scalars per object; zero outside a window of the map.
        start: [n, 2] int64 (row, column) of each window's first cell.
    """

    tensor: Tensor
    gradients: Tensor
    start: Tensor


@dataclass(frozen=True)
class Readout:
    """Where the scalars of some objects are read; their gradients at several sources add up.

    Attributes:
        objects: [n] int64, positions among the objects of all pictures.
        level: the objects' feature level.
        sources: the output maps that they are read from.
    """

    objects: Tensor
    level: int
    sources: tuple[Source, ...]


@dataclass(frozen=True)
class Selection:
    """How a family turns candidates into objects, beside the least score and the largest number.

    Attributes:
        one_class: each candidate counts as its best class only.
        overlap: the IoU above which a weaker box of the same class (of YOLOE of any) is suppressed; None: none is.
    """

    one_class: bool = False
    overlap: float | None = None


class Adapter(ABC):
    """One family of models, seen as: prepare, forward, detect, score.

    An adapter works on a private view of the user's module (see `detcam.engine.shadow`), so it may set that view's
    flags and caches freely.

    Args:
        module: a private view of what `unwrap` returned.
        model: what the user gave, to read its settings from.
        imgsz: the network's input size that the user asked for, in pixels; None: that of the model's own predict call.
        processor: the library's own pre- and post-processing, for libraries that keep it apart from the model.
    """

    family: ClassVar[str]
    models: ClassVar[str]  # the models of the family that it serves, for people to read
    targets: ClassVar[tuple[str, ...]]  # the targets that some model of the family has
    install: ClassVar[str]  # how to get the family's library
    prompt_kinds: ClassVar[tuple[str, ...]] = ()  # the prompts that a user may give: "point", "box", "mask"
    available: tuple[str, ...]  # the targets that this model has
    levels: int  # feature levels that objects are read from
    module: nn.Module  # the private view
    device: torch.device
    imgsz: Any  # what the network's input size follows, for people to read
    task: str
    names: dict[int, str]  # the classes by number, where the model names them
    stable: bool = True  # whether an object's index names the same anchor or query in a changed picture

    @abstractmethod
    def __init__(self, module: nn.Module, model: Any, imgsz: int | None = None, processor: Any = None) -> None: ...

    @classmethod
    @abstractmethod
    def serves(cls, model: Any) -> bool:
        """Whether `model` belongs to the family, by its origin alone: no library is imported to find out."""

    @classmethod
    @abstractmethod
    def unwrap(cls, model: Any) -> nn.Module:
        """The nn.Module inside what the user gave.

        Raises:
            ModelError: for a model of the family that cannot be explained.
        """

    @abstractmethod
    def prepare(self, image: np.ndarray) -> tuple[Tensor, Geometry]:
        """One picture [H, W, 3] uint8 RGB as the network's input [3, h, w], and how it was placed there."""

    @abstractmethod
    def forward(self, batch: Tensor, max_det: int) -> Any:
        """The model's raw, differentiable outputs for a batch [B, 3, h, w]."""

    @abstractmethod
    def detect(self, outputs: Any, geometries: list[Geometry], conf: float, iou: float, max_det: int) -> list[Objects]:
        """The objects of each picture: exactly those of the library's own predict call, in its order."""

    def tried(self, outputs: Any, geometry: Geometry, conf: float, iou: float, max_det: int) -> Objects:
        """Objects of one picture to try layers on: those of `detect`."""
        return self.detect(outputs, [geometry], conf, iou, max_det)[0]

    @abstractmethod
    def score(self, outputs: Any, objects: list[Objects], target: str) -> Tensor:
        """One differentiable scalar for each object of all pictures: [sum N], or [sum N, K] to be max-combined.

        `target` is one of `available`.
        """

    @abstractmethod
    def layers(self, preset: str) -> LayerPlan:
        """The plan behind the preset "level" or "evidence"."""

    def candidates(self, outputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        """All that the model considered for a batch, before any threshold or suppression: what D-RISE searches.

        Returns:
            (boxes, probabilities, confidence), float32, detached, on the model's device, A candidates a picture:
            boxes [B, A, 4] xyxy in pixels of the network's input, as `Objects.network_boxes` has them;
            probabilities [B, A, K] over the foreground classes, in the order of `Objects.class_ids` (sigmoids, or a
            softmax without its background column); confidence [B, A] in [0, 1], that there is any object: the model's
            own objectness where it has one, else the largest probability.

        Raises:
            MethodError: if the family has none.
        """
        raise MethodError(
            f"{self.family} models list no candidates, which drise and ask need: use another method, e.g. 'rise', and "
            "leave ask out"
        )

    def image_candidates(self, outputs: Any, geometry: Geometry) -> tuple[Tensor, Tensor]:
        """The candidates of one picture, numbered as `Objects.index` does.

        Returns:
            (boxes, probabilities): as `candidates` has them, but boxes [A, 4], or [A, K, 4] where each class has a box
            of its own, and probabilities [A, K].
        """
        boxes, probabilities, _ = self.candidates(outputs)
        return boxes[0], probabilities[0]

    def objects_at(self, outputs: Any, candidates: Tensor, class_ids: Tensor, geometry: Geometry) -> Objects:
        """Candidates [n] of one picture, each taken for the class in `class_ids` [n], whether it was kept or not.

        Raises:
            InputError: if the family cannot.
        """
        raise InputError(f"ask: {self.family} models cannot be asked about what they missed: leave ask out")

    def objects_in(self, outputs: Any, prompts: list[Prompt], geometry: Geometry) -> Objects:
        """An object for each prompt that the user gave in one picture; they are of the kinds that `prompt_kinds` names.

        Raises:
            InputError: for a prompt that the network did not see, or if the family takes none.
        """
        raise InputError(f"prompts: {self.family} models take none: leave prompts out, or use ask=")

    def label_map(self, outputs: Any, geometry: Geometry) -> Tensor:
        """[H, W] int64: the class of each source pixel of one picture, -1 where the network did not see it.

        Raises:
            InputError: if the family gives no class to each pixel.
        """
        raise InputError(f"truth: {self.family} models give no class to each pixel: leave truth out")

    def region_similarity(self, outputs: Any, objects: Objects) -> Tensor | None:
        """[b] float32 in [0, 1]: for one object in each of b images, the largest IoU * p over regions of its class.

        None: objects of this family are not regions.
        """
        return None

    def selection(self, iou: float) -> Selection:
        """How candidates become objects, if the user chose the overlap `iou`."""
        return Selection()

    def enters(self, outputs: Any, asked: Objects, conf: float) -> bool:
        """Whether the one candidate `asked` reaches suppression; a family's own limit may drop it before."""
        return True

    def class_names(self, count: int) -> dict[int, str]:
        """The classes of the `count` columns of `candidates`, by number."""
        names: dict[int, str] = getattr(self, "names", {})
        return {i: names.get(i, f"class {i}") for i in range(count)}

    def grids(self, tokens: int, size: tuple[int, int]) -> list[tuple[int, int, int]]:
        """The maps inside a sequence of `tokens` tokens, for an input of `size`: (first token, rows, columns) of each.

        An empty list: the sequence holds no map.
        """
        return []

    def gain_forward(self, maps: list[Tensor]) -> Callable[[list[Tensor]], Any] | None:
        """The rest of the model under gains: d score / d gain[cell] is the sum over channels of gradient x activation.

        Args:
            maps: what the layers of the preset "level" put out for one picture, [1, C, h, w] each.

        Returns:
            From one gain [1, h, w] of value 1 for each cell of each map, to the same outputs as those of `forward`;
            None if that is no cheaper than gradients of the maps.
        """
        return None

    def attention(self) -> AttentionPlan:
        """The modules whose attention leads from the queries to the picture, made to show their weights.

        Raises:
            MethodError: if the model has none.
        """
        raise MethodError(
            f"{self.family} models have no attention of queries to show: use a method that reads gradients, e.g. 'odam'"
        )

    def readouts(self, outputs: Any, objects: list[Objects], target: str) -> list[Readout] | None:
        """Where the scalars of `score` are read, if each is read at a small window of raw output maps; None if not."""
        return None
