"""Segmenters that put out logits [B, C, h, w] and leave the preparation of images to the user."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from detcam.adapters.base import Adapter, ImageSize, LayerPlan, sides_of
from detcam.adapters.shared.channels import cycled
from detcam.adapters.shared.semantic import SemanticAdapter, SemanticOutputs
from detcam.errors import ImageError, LayerError, ModelError
from detcam.geometry import Geometry, resize, white
from detcam.images import with_channels


class PlainSegmenter(SemanticAdapter):
    """Base of segmenters without a preparation: pixels in [0, 1], or a processor from [H, W, C] to float [H, W, C]."""

    def _prepared_by(
        self, imgsz: ImageSize | None, processor: Any, mean: Sequence[float], std: Sequence[float], stride: int
    ) -> None:
        """Set the preparation; the network's sides are multiples of `stride`."""
        self.longest, self.imgsz = imgsz, imgsz or "size of the image"
        self.mean, self.std = (cycled(values, self.channels) for values in (mean, std))
        self.processor, self.stride, self.least = processor, stride, (2 * stride, 2 * stride)

    def scales(self) -> dict[str, list[float]]:
        """See `Adapter.scales`; of processors only the library's own show theirs."""
        if self.processor is None:
            return super().scales()
        known = getattr(self.processor, "keywords", {})
        return {name: list(known[name]) for name in ("mean", "std") if known.get(name) is not None}

    def fit(self, image: np.ndarray) -> np.ndarray:
        """See `Adapter.fit`; a processor gets an image of other channels than the network's too, in RGB if it can."""
        if self.processor is None:
            return super().fit(image)
        return with_channels(image, 3) if image.shape[2] in {1, 4} - {self.channels} else image

    def blank(self) -> Tensor:
        """See `Adapter.blank`: without the processor, which may expect an image of other channels."""
        return torch.zeros((self.channels, *self.least), device=self.device, dtype=self.dtype)

    def prepare(self, image: np.ndarray) -> tuple[Tensor, Geometry]:
        """See `Adapter.prepare`; an ImageError also if the processor returns another shape than [H, W, C]."""
        image = self.fit(image)
        source = resized = (image.shape[0], image.shape[1])
        if self.longest is not None:
            ratio = min(side / pixels for side, pixels in zip(sides_of(self.longest), source, strict=True))
            resized = (max(round(source[0] * ratio), 1), max(round(source[1] * ratio), 1))
            image = resize(image, resized)
        if image.dtype != np.uint8 and "input_range" in getattr(self.processor, "keywords", {}):
            image = image * (255 / white(image))  # the library's own processors expect 0 to 255
        array = image / white(image) if self.processor is None else np.atleast_3d(np.asarray(self.processor(image)))
        if array.shape != (*resized, self.channels):
            raise ImageError(
                f"processor: made {list(array.shape)} of an image {list(image.shape)}, the model reads "
                f"{self.channels} channels: return [{resized[0]},{resized[1]},{self.channels}]"
            )
        array = (array - self.mean) / self.std
        pixels = torch.from_numpy(array).permute(2, 0, 1).to(self.device, self.dtype)
        network = sides_of(self.longest if isinstance(self.longest, tuple) else resized, self.stride)
        pixels = pad(pixels, (0, network[1] - resized[1], 0, network[0] - resized[0]))
        return pixels, Geometry(source, resized, (0, 0), (pixels.shape[1], pixels.shape[2]))


class LogitsAdapter(PlainSegmenter):
    """Adapter of any network that puts out logits [B, C, h, w], for `Explainer(model, adapter=LogitsAdapter(...))`.

    ::

        adapter = LogitsAdapter(layers=["decoder"], names=["sky", "road", "car"], mean=MEAN, std=STD)
        e = detcam.Explainer(network, adapter=adapter, imgsz=512)("street.jpg")

    Each class of the arg max is an object, as in other semantic segmenters; with `multilabel`, each class whose sigmoid
    is over one half, and so the class of a network with one channel. Images keep their size, or fit into `imgsz`; their
    pixels are in [0, 1] before `mean` and `std`, or made by the Explainer's `processor`.

    Args:
        layers: names from the model's `named_modules()`, whose maps [B, C, h, w] give the heatmaps of "level" and
            "evidence"; the default of the Explainer, "stem", needs none.
        names: class names by number; a class named "background" is not an object.
        multilabel: each class has a sigmoid, so that classes overlap.
        mean: of the pixels in [0, 1], for each channel.
        std: standard deviation, like `mean`.
        stride: the sides of the network's input are padded with zeros to multiples of it.
        logits: makes the logits of what the model returns; by default that itself, its first part, "out" or "logits".
    """

    family = "custom"
    models = "any segmenter with logits [B, C, h, w], described by a LogitsAdapter"
    install = "nothing to install"

    def __init__(
        self,
        layers: Sequence[str] = (),
        names: Mapping[int, str] | Sequence[str] = (),
        multilabel: bool = False,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
        stride: int = 32,
        logits: Callable[[Any], Tensor] | None = None,
    ) -> None:
        self.plans = dict.fromkeys(("level", "evidence"), tuple(layers)) if layers else {}
        self.names = dict(names) if isinstance(names, Mapping) else dict(enumerate(names))
        self.multilabel, self._preparation, self._logits_of = multilabel, (mean, std, stride), logits or _first

    def __call__(
        self, module: nn.Module, model: Any, imgsz: ImageSize | None = None, processor: Any = None
    ) -> LogitsAdapter:
        """The same adapter for a private view of the model, with the arguments that `Adapter` takes."""
        bound = copy.copy(self)
        Adapter.__init__(bound, module, model, imgsz, processor)
        bound._prepared_by(imgsz, processor, *bound._preparation)
        count = bound.forward(bound.blank()[None], 1).full.shape[1]
        bound.names = {**{i: f"class {i}" for i in range(count)}, **self.names}
        bound.multilabel = self.multilabel or count == 1
        bound.available = bound._available(count, *(("margin",) if bound.multilabel else ()))
        return bound

    def layers(self, preset: str) -> LayerPlan:
        """See `Adapter.layers`; a LayerError if none were given."""
        if not self.plans:
            raise LayerError(f"layers {preset!r}: this LogitsAdapter names none: give LogitsAdapter(layers=[...])")
        return super().layers(preset)

    def forward(self, batch: Tensor, max_det: int) -> SemanticOutputs:
        """See `Adapter.forward`; a ModelError if the model's output has no logits [B, C, h, w]."""
        logits = self._logits_of(self.module(batch))
        if not isinstance(logits, Tensor) or logits.ndim != 4:
            actual = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ModelError(
                f"LogitsAdapter: expected logits [B, C, h, w], got {actual}: give logits=, which makes them"
            )
        return SemanticOutputs(logits, logits.detach())


def _first(output: Any) -> Any:
    """The logits among what a segmenter returned."""
    if isinstance(output, Mapping):  # torchvision's and transformers' outputs
        return output.get("out", output.get("logits", next(iter(output.values()))))
    return output[0] if isinstance(output, (tuple, list)) else output
