"""Base of the image classifiers: one object per image, the predicted class."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from detcam.adapters.base import Adapter, LayerPlan
from detcam.adapters.shared.attention import AttentionPlan, attention_plan
from detcam.adapters.shared.channels import cycled
from detcam.adapters.shared.scores import CLASS_TARGETS, class_score
from detcam.adapters.shared.stages import find_stages, token_grid
from detcam.errors import LayerError, MethodError, ModelError
from detcam.geometry import Geometry
from detcam.images import unit_tensor
from detcam.types import Objects, image_index

IMAGENET_CLASSES = 1000
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ClassifierOutputs:
    """Raw outputs for B images: logits [B, K], with the graph, and the (height, width) of the network's input."""

    logits: Tensor
    size: tuple[int, int]


class ClassifierAdapter(Adapter):
    """Base of the image classifiers: the object of an image is the class with the largest logit.

    Its box is the whole image; `conf`, `iou` and `max_det` have no effect. Most libraries crop the image: the
    network sees nothing outside the crop, and heat there repeats the heat at the crop's border.

    "level" is the last map before the global pooling, or the last block of a transformer whose patches the score
    depends on. "evidence" are the last maps of the earlier stages, added.
    """

    targets: ClassVar[tuple[str, ...]] = CLASS_TARGETS
    levels = 1
    task = "classify"
    classes: int  # number of classes

    def __init__(self, module: Any, model: Any, imgsz: int | None = None, processor: Any = None) -> None:
        super().__init__(module, model, imgsz, processor)
        self._set_up(module, model, imgsz, processor)
        self.available = self._available(self.classes)
        noise = np.random.default_rng(0).integers(0, 256, (256, 256, self.channels), dtype=np.uint8)
        self._stages = find_stages(module, self._logits, self.prepare(noise)[0][None])

    @abstractmethod
    def _set_up(self, module: Any, model: Any, imgsz: int | None, processor: Any) -> None:
        """Set `classes`, `names`, `imgsz`, and the settings of `prepare`."""

    def _logits(self, batch: Tensor) -> Tensor:
        return self.module(batch)

    def forward(self, batch: Tensor, max_det: int) -> ClassifierOutputs:
        return ClassifierOutputs(self._logits(batch), (batch.shape[2], batch.shape[3]))

    @torch.no_grad()
    def detect(
        self, outputs: ClassifierOutputs, geometries: list[Geometry], conf: float, iou: float, max_det: int
    ) -> list[Objects]:
        """See `Adapter.detect`: the class with the largest logit, whatever its score."""
        predicted = []
        for logits, geometry in zip(outputs.logits.float(), geometries, strict=True):
            best = logits.argmax()[None]
            height, width = geometry.source
            boxes = logits.new_tensor([[0, 0, width, height]])
            objects = Objects(
                boxes=boxes,
                scores=logits.softmax(dim=0)[best],
                class_ids=best,
                labels=(self.names.get(int(best), f"class {int(best)}"),),
                index=torch.zeros_like(best),
                level=torch.zeros_like(best),
                cells=best.new_zeros(1, 2),
                network_boxes=geometry.to_network(boxes),
            )
            predicted.append(objects.select(objects.scores.isfinite().nonzero().flatten()))  # NaN of a broken model
        return predicted

    def score(self, outputs: ClassifierOutputs, objects: list[Objects], target: str) -> Tensor:
        """See `Adapter.score`; "prob" is a softmax."""
        rows = outputs.logits[image_index(objects, outputs.logits.device)]
        return class_score(rows, torch.cat([o.class_ids for o in objects]), target, softmax=True)

    @torch.no_grad()
    def candidates(self, outputs: ClassifierOutputs) -> tuple[Tensor, Tensor, Tensor]:
        """See `Adapter.candidates`: a single candidate, the whole input of the network."""
        probabilities = outputs.logits.float().softmax(dim=1)[:, None]
        boxes = probabilities.new_tensor([0, 0, *outputs.size[::-1]]).expand(len(probabilities), 1, 4)
        return boxes, probabilities, probabilities.amax(dim=2)

    def layers(self, preset: str) -> LayerPlan:
        """See `Adapter.layers`: stages run in sequence, so the graph is cut at the first stage only.

        Raises:
            LayerError: if the scores depend on no map [B, C, h, w] or sequence of patches that is a module's output.
        """
        if self._stages.last is None:
            raise LayerError(
                f"{type(self.module).__name__}: no output of a module is a map that the scores depend on: name layers"
            )
        if preset == "evidence" and self._stages.earlier:
            return LayerPlan(self._stages.earlier, cut_all=False, fuse="sum")
        return LayerPlan((self._stages.last,), cut_all=True, fuse="sum")

    def attention(self) -> AttentionPlan:
        """See `Adapter.attention`: of a vision transformer with a class token, from which the score is read.

        Raises:
            MethodError: for any other classifier.
        """
        tokens = [getattr(m, name, None) for m in self.module.modules() for name in ("cls_token", "class_token")]
        if not any(isinstance(token, Tensor) for token in tokens) or getattr(self.module, "global_pool", "") == "avg":
            raise MethodError(
                f"{type(self.module).__name__} has no class token that attends to patches: use a method that reads "
                "gradients, e.g. 'odam'"
            )
        return attention_plan(self.module, self.family, class_token=True)

    def grids(self, tokens: int, size: tuple[int, int]) -> list[tuple[int, int, int]]:
        """See `Adapter.grids`: the patches, row by row, after the class token if there is one."""
        hiera = any(hasattr(m, "reroll") for m in self.module.modules())  # units of a window lie together
        return [] if hiera else token_grid(tokens, self._stages.sizes)


class StepsAdapter(ClassifierAdapter):
    """A classifier with a torchvision Compose as preprocessing: steps on a PIL image, then on a tensor."""

    steps: Sequence[Any]

    @property
    def transform(self) -> Any:
        """The normalisation among the steps; None if there is none."""
        return next((step for step in self.steps if type(step).__name__ == "Normalize"), None)

    def prepare(self, image: np.ndarray) -> tuple[Tensor, Geometry]:
        """See `Adapter.prepare`: the resize, crop and normalisation of the library.

        What PIL does not hold, 16 bits, floats or many channels, goes through the steps as a tensor.
        """
        image = self.fit(image)
        current: Any = unit_tensor(image)
        if image.dtype == np.uint8 and self.channels in (1, 3, 4):
            current = Image.fromarray(image.squeeze(2) if self.channels == 1 else image)
        source = resized = _size(current)
        pad = (0, 0)
        for step in self.steps:
            if isinstance(current, Tensor) and type(step).__name__ == "ToTensor":
                continue
            if step is self.transform and len(step.mean) != self.channels:
                step = type(step)(*(cycled(values, self.channels) for values in (step.mean, step.std)))
            before = _size(current)
            current = step(current)
            after = _size(current)
            if "Crop" in type(step).__name__:
                pad = (pad[0] + _shift(before[0], after[0]), pad[1] + _shift(before[1], after[1]))
            elif after != before:
                resized = after
        return current.to(self.device, self.dtype), Geometry(source, resized, pad, _size(current))


def _size(image: Any) -> tuple[int, int]:
    """(height, width) of a PIL image or a tensor [3, h, w]."""
    if isinstance(image, Tensor):
        return image.shape[-2], image.shape[-1]
    return image.height, image.width


def _shift(before: int, after: int) -> int:
    """Start of a side in its centre crop, as torchvision rounds: below 0, or above 0 if the crop pads."""
    return -round((before - after) / 2) if before >= after else (after - before) // 2


def standard_steps(
    resize: int,
    crop: int | tuple[int, int],
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    interpolation: Any = None,
) -> Sequence[Any]:
    """Resize, centre crop and normalisation, as is usual for ImageNet."""
    from torchvision import transforms

    interpolation = interpolation or transforms.InterpolationMode.BILINEAR
    return [
        transforms.Resize(resize, interpolation=interpolation),
        transforms.CenterCrop(crop),
        transforms.ToTensor(),
        transforms.Normalize(mean, std),
    ]


def compose_steps(processor: Any) -> Sequence[Any]:
    """The steps of a torchvision Compose or of `weights.transforms()`; a ModelError if the processor is neither."""
    if hasattr(processor, "transforms"):
        return processor.transforms
    try:
        sizes = processor.resize_size[0], processor.crop_size[0]
        return standard_steps(*sizes, processor.mean, processor.std, processor.interpolation)
    except AttributeError:
        raise ModelError(
            f"processor {type(processor).__name__}: give a torchvision Compose or weights.transforms()"
        ) from None


def imagenet_names(classes: int) -> dict[int, str]:
    """Names of ImageNet's classes for a model with 1,000 classes, else none: models hold no names."""
    if classes != IMAGENET_CLASSES:
        return {}
    from torchvision.models import ResNet18_Weights

    return dict(enumerate(ResNet18_Weights.IMAGENET1K_V1.meta["categories"]))
