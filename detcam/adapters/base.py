"""Adapter: base class of all families; from an image to outputs, objects and a differentiable scalar per object."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from detcam.adapters.shared.attention import AttentionPlan
from detcam.adapters.shared.channels import cycled, input_channels
from detcam.adapters.shared.keypoints import KEYPOINT
from detcam.adapters.shared.mask_scores import MASK_PATHS, MASK_TARGETS
from detcam.adapters.shared.scores import BOX_TARGETS, CLASS_TARGETS
from detcam.adapters.shared.stem import find_stem
from detcam.errors import InputError, MethodError, ModelError
from detcam.geometry import Geometry
from detcam.images import with_channels
from detcam.models.versions import libraries_of
from detcam.types import Objects, Prompt

ImageSize = int | tuple[int, int]  # a side, or (height, width), in pixels
UNLIMITED = 2**31 - 1  # objects
Target = str | Callable[[Any, list[Objects]], Tensor]
TARGETS = (*CLASS_TARGETS, *BOX_TARGETS, "objectness", *MASK_TARGETS, *MASK_PATHS, KEYPOINT, "iou")


def sides_of(imgsz: ImageSize, stride: int = 1) -> tuple[int, int]:
    """(height, width) of an input size, rounded up to multiples of the stride."""
    height, width = (imgsz, imgsz) if isinstance(imgsz, int) else imgsz
    return -(-height // stride) * stride, -(-width // stride) * stride


@dataclass(frozen=True)
class LayerPlan:
    """The modules to capture, and how their maps become one map per object.

    Attributes:
        names: names from the module's `named_modules()`.
        cut_all: cut the graph at every module (gradients are local) or at the earliest modules only.
        fuse: "level": each object's map is read at the object's feature level, `names[object.level]`; "sum": the maps
            of all modules are added at the finest resolution.
    """

    names: tuple[str, ...]
    cut_all: bool
    fuse: Literal["level", "sum"]


@dataclass(frozen=True)
class Source:
    """A raw output map that scores are read from, and the gradients of n objects' scalars at it.

    Attributes:
        tensor: [B, C, h, w] with the graph.
        gradients: [n, M, C, kh, kw], for M scalars per object; zero outside a window of the map.
        start: [n, 2] int64 (row, column) of each window's first cell.
    """

    tensor: Tensor
    gradients: Tensor
    start: Tensor


@dataclass(frozen=True)
class Readout:
    """The output maps that the scalars of some objects are read from; gradients at several sources add up.

    Attributes:
        objects: [n] int64, positions among the objects of all images.
        level: the objects' feature level.
        sources: the output maps.
    """

    objects: Tensor
    level: int
    sources: tuple[Source, ...]


@dataclass(frozen=True)
class Selection:
    """How a family selects objects among candidates, apart from the score threshold and the maximum number.

    Attributes:
        one_class: each candidate counts as its best class only.
        overlap: IoU threshold above which a weaker box of the same class (for YOLOE of any class) is suppressed; None:
            no suppression.
    """

    one_class: bool = False
    overlap: float | None = None


class Adapter(ABC):
    """One family of models as four steps: prepare, forward, detect, score.

    An adapter works on a private view of the user's module (see `detcam.engine.shadow`), so it may set that view's
    flags and caches freely.

    Args:
        module: a private view of the module that `unwrap` returned.
        model: the user's model or wrapper, to read its settings from.
        imgsz: input size in pixels, as the user set it: a side, or (height, width); None: that of the predict call.
        processor: the library's pre- and post-processing, for libraries that keep it apart from the model.
    """

    family: ClassVar[str]
    library: ClassVar[str | None] = None  # the package of the models' classes, or of their base classes
    models: ClassVar[str]  # the models that the family serves, for display
    targets: ClassVar[tuple[str, ...]]  # the targets of the family; a model may lack some
    install: ClassVar[str]  # how to install the family's library
    prompt_kinds: ClassVar[tuple[str, ...]] = ()  # the kinds of prompts accepted: "point", "box", "mask"
    available: tuple[str, ...]  # the targets of this model
    levels: int  # feature levels that objects are read from
    module: nn.Module  # the private view
    device: torch.device  # of the view, like `dtype`
    dtype: torch.dtype
    imgsz: Any  # input size setting, for display
    task: str
    names: dict[int, str]  # class names by number, where the model has names
    channels: int = 3  # that the network reads
    chosen_classes: tuple[int, ...] | None = None  # settable: the only classes whose objects count
    reshape: Callable[[Tensor], Tensor] | None = None  # settable: see `Explainer`
    stable: bool = True  # whether an object's index means the same anchor or query in a changed image

    def __init__(self, module: Any, model: Any, imgsz: ImageSize | None = None, processor: Any = None) -> None:
        parameter = next(module.parameters(), None)
        if parameter is None:
            raise ModelError(f"{type(module).__name__} has no parameters, as in int8: give the float model")
        self.module, self.device, self.dtype = module, parameter.device, parameter.dtype
        self.channels = input_channels(module)

    def _available(self, classes: int, *missing: str) -> tuple[str, ...]:
        """The targets of the family but `missing`, and but a margin for a model of one class."""
        return tuple(t for t in self.targets if t not in missing and (t != "margin" or classes > 1))

    @classmethod
    def serves(cls, model: Any) -> bool:
        """Whether `model` belongs to the family, told by the packages of its classes; imports no library."""
        return cls.library in libraries_of(model)

    @classmethod
    def unwrap(cls, model: Any) -> nn.Module:
        """The nn.Module inside the user's wrapper; by default the model itself.

        Raises:
            ModelError: for a model of the family that cannot be explained.
        """
        return model

    @abstractmethod
    def prepare(self, image: np.ndarray) -> tuple[Tensor, Geometry]:
        """An image of `read_image` as the network's input [C, h, w], and its geometry in that input.

        Raises:
            ImageError: if the model reads another number of channels.
        """

    @property
    def reading(self) -> tuple[int, bool]:
        """The arguments `channels` and `blue_first` of `read_image`."""
        return max(self.channels, 3), False

    def fit(self, image: np.ndarray) -> np.ndarray:
        """An image [H, W, C] with the channels that the network reads, see `detcam.images.with_channels`."""
        return with_channels(image, self.channels)

    def scales(self) -> dict[str, list[float]]:
        """The "mean" and "std" of pixels in [0, 1] that images are normalised with; empty if the library has none."""
        processor = getattr(self, "processor", None)
        for holder in (self, getattr(self, "transform", None), getattr(processor, "image_processor", processor)):
            scales: list[Any] = [getattr(holder, n, getattr(holder, f"image_{n}", None)) for n in ("mean", "std")]
            if scales[0] is not None and getattr(holder, "do_normalize", True):
                mean, std = ([round(value, 6) for value in cycled(scale, self.channels)] for scale in scales)
                return {"mean": mean, "std": std}
        return {}

    @abstractmethod
    def forward(self, batch: Tensor, max_det: int) -> Any:
        """The model's raw, differentiable outputs for a batch [B, C, h, w]."""

    @abstractmethod
    def detect(self, outputs: Any, geometries: list[Geometry], conf: float, iou: float, max_det: int) -> list[Objects]:
        """The objects of each image: exactly the objects of the library's own predict call, in its order."""

    def objects(self, outputs: Any, geometries: list[Geometry], conf: float, iou: float, max_det: int) -> list[Objects]:
        """The objects of `detect` of the chosen classes; the limit `max_det` applies after the choice."""
        if self.chosen_classes is None:
            return self.detect(outputs, geometries, conf, iou, max_det)
        detected = map(self.chosen, self.detect(outputs, geometries, conf, iou, UNLIMITED))
        return [o.select(torch.arange(min(len(o), max_det))) for o in detected]

    def chosen(self, objects: Objects) -> Objects:
        """The objects of the chosen classes; all without a choice."""
        if self.chosen_classes is None:
            return objects
        kept = torch.isin(objects.class_ids, objects.class_ids.new_tensor(self.chosen_classes))
        return objects.select(kept.nonzero().flatten())

    def trial_objects(self, outputs: Any, geometry: Geometry, conf: float, iou: float, max_det: int) -> Objects:
        """Objects of one image to try layers on: the objects of `detect`."""
        return self.detect(outputs, [geometry], conf, iou, max_det)[0]

    @abstractmethod
    def score(self, outputs: Any, objects: list[Objects], target: str) -> Tensor:
        """The differentiable scalar of each object of all images: [sum N], or [sum N, K] whose maps are max-combined.

        `target` is one of `available`.
        """

    @abstractmethod
    def layers(self, preset: str) -> LayerPlan:
        """The layer plan of the preset "level" or "evidence"."""

    def blank(self) -> Tensor:
        """[C, h, w] an input of the network without content."""
        return self.prepare(np.full((64, 64, self.channels), 114, np.uint8))[0]

    def stem(self) -> LayerPlan:
        """The layer plan of the preset "stem"; see `detcam.adapters.shared.stem.find_stem`.

        Raises:
            LayerError: if the model has no stem.
        """
        pixels = self.blank()
        name = find_stem(self.module, lambda: self.forward(pixels[None], 1))
        return LayerPlan((name,), cut_all=True, fuse="sum")

    @property
    def lists_candidates(self) -> bool:
        """Whether `candidates` returns any."""
        return type(self).candidates is not Adapter.candidates

    def candidates(self, outputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        """All candidates of a batch, before any threshold or suppression; D-RISE and ask= search them.

        Returns:
            (boxes, probabilities, confidence), float32, detached, on the model's device, A candidates per image:
            boxes [B, A, 4] xyxy in pixels of the network's input, like `Objects.network_boxes`;
            probabilities [B, A, K] over the foreground classes, in the order of `Objects.class_ids` (sigmoids, or a
            softmax without its background column); confidence [B, A] in [0, 1] that there is an object: the model's
            objectness where it has a score for that, else the largest probability.

        Raises:
            MethodError: if the family has no candidates.
        """
        raise MethodError(
            f"{self.family} {self.task} models list no candidates, which drise and ask need: use another method, e.g. "
            "'rise'"
        )

    def image_candidates(self, outputs: Any, geometry: Geometry) -> tuple[Tensor, Tensor]:
        """The candidates of one image, numbered like `Objects.index`.

        Returns:
            (boxes, probabilities): as in `candidates`, but boxes [A, 4], or [A, K, 4] where each class has its own box,
            and probabilities [A, K].
        """
        boxes, probabilities, _ = self.candidates(outputs)
        return boxes[0], probabilities[0]

    def objects_at(self, outputs: Any, candidates: Tensor, class_ids: Tensor, geometry: Geometry) -> Objects:
        """Candidates [n] of one image as objects of the classes `class_ids` [n], whether they were kept or not.

        Raises:
            InputError: if the family cannot make objects of candidates.
        """
        raise InputError(f"ask: {self.family} models cannot be asked about what they missed: leave ask out")

    def objects_for_prompts(self, outputs: Any, prompts: list[Prompt], geometry: Geometry) -> Objects:
        """An object for each prompt of one image; prompts are of the kinds in `prompt_kinds`.

        Raises:
            InputError: for a prompt outside what the network saw, or if the family takes no prompts.
        """
        raise InputError(f"prompts: {self.family} models take no prompts: leave prompts out, or use ask=")

    def label_map(self, outputs: Any, geometry: Geometry) -> Tensor:
        """[H, W] int64: the class of each source pixel of one image, -1 where the network did not see it.

        Raises:
            InputError: if the family does not classify pixels.
        """
        raise InputError(f"truth: {self.family} models do not classify pixels: leave truth out")

    def segment_similarity(self, outputs: Any, objects: Objects) -> Tensor | None:
        """[b] float32 in [0, 1]: for one object in each of b images, the largest IoU * p over segments of its class.

        None: objects of this family are not segments of a label map.
        """
        return None

    def selection(self, iou: float) -> Selection:
        """How objects are selected among candidates, for the option `iou`."""
        return Selection()

    def enters(self, outputs: Any, asked: Objects, conf: float) -> bool:
        """Whether the candidate `asked` ([1]) reaches suppression; a limit of the family may drop it before."""
        return True

    def class_names(self, count: int) -> dict[int, str]:
        """Names of the `count` columns of `candidates`, by class number."""
        names = getattr(self, "names", {})
        return {i: names.get(i, f"class {i}") for i in range(count)}

    def grids(self, tokens: int, size: tuple[int, int]) -> list[tuple[int, int, int]]:
        """The maps inside a sequence of tokens: (first token, rows, columns) of each; empty: the sequence has no map.

        Args:
            tokens: length of the sequence.
            size: (height, width) of the network's input, in pixels.
        """
        return []

    def gain_forward(self, maps: list[Tensor]) -> Callable[[list[Tensor]], Any] | None:
        """The model behind "level" with a gain at each cell: d score / d gain is the sum of gradient x activation.

        Args:
            maps: outputs of the layers of the preset "level" for one image, [1, C, h, w] each.

        Returns:
            A function from gains [1, h, w] of ones, one tensor per map, to the outputs of `forward`; None if that is
            no cheaper than gradients of the maps.
        """
        return None

    def attention(self) -> AttentionPlan:
        """The attention modules between queries and image, set to return their weights.

        Raises:
            MethodError: if the model has no such attention.
        """
        raise MethodError(
            f"{self.family} models have no attention of queries: use a method that reads gradients, e.g. 'odam'"
        )

    def readouts(self, outputs: Any, objects: list[Objects], target: str) -> list[Readout] | None:
        """The windows of raw output maps that the scalars of `score` are read from; None: no such windows."""
        return None
