"""Custom models: any nn.Module, described by four functions."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from detcam.adapters.base import TARGETS, Adapter, LayerPlan
from detcam.errors import LayerError, ModelError, TargetError, nearest
from detcam.geometry import Geometry, letterbox
from detcam.images import unit_tensor
from detcam.types import Objects

IMGSZ = 640  # pixels


class CallableAdapter(Adapter):
    """Adapter of a custom model, for `Explainer(model, adapter=CallableAdapter(forward, detect, score, layers))`.

    ::

        def forward(module, batch):
            return module((batch - MEAN) / STD)  # logits [B, A, K] and boxes [B, A, 4]

        def detect(outputs, conf):
            images = []
            for logits, boxes in zip(*outputs):
                scores, classes = logits.sigmoid().max(dim=1)
                i = (scores > conf).nonzero().flatten()
                images.append({"boxes": boxes[i], "scores": scores[i], "class_ids": classes[i], "index": i})
            return images

        def score(outputs, objects, target):
            return torch.cat([outputs[0][i, o.index, o.class_ids] for i, o in enumerate(objects)])

        adapter = CallableAdapter(forward, detect, score, layers=["neck.2"])

    Images are scaled to fit a square of `imgsz` pixels (the Explainer's option; 640 if it is None) and padded with
    grey on both sides. `detect` gets `conf`; of its objects the first `max_det` are kept; `iou` has no effect.

    Args:
        forward: (module, batch) -> outputs of any type, with the graph. `module` is a private view of the model that
            shares its weights: call the view, not the model. `batch` is [B, 3, imgsz, imgsz] RGB in [0, 1], with the
            model's dtype and device; normalise it here if the model needs that.
        detect: (outputs, conf) -> a dict of tensors for each image: "boxes" [N, 4] xyxy in pixels of the batch,
            "scores" [N] in [0, 1], "class_ids" [N] int64, "index" [N] int64 (tells `score` where the object was read),
            in the order of the explanation; if there are masks, "mask_logits" [N, h, w] over the batch's height and
            width. Runs without gradients.
        score: (outputs, objects of each image, target) -> a differentiable scalar for each object of all images in
            turn, [sum N]; or [sum N, K], whose K maps combine by element-wise maximum. Preferably a logit.
        layers: names from the model's `named_modules()` whose maps [B, C, h, w] give the heatmaps; or a dict of such
            names for the presets "level", "evidence" and "stem" (found if it is not given).
        names: class names by number.
        targets: the targets that `score` knows.
    """

    family = "custom"
    models = "any nn.Module, described by a CallableAdapter"
    targets = TARGETS
    install = "nothing to install"
    levels = 1
    task = "detect"

    def __init__(
        self,
        forward: Callable[[nn.Module, Tensor], Any],
        detect: Callable[[Any, float], Sequence[Mapping[str, Tensor]]],
        score: Callable[[Any, list[Objects], str], Tensor],
        layers: str | Sequence[str] | Mapping[str, Sequence[str]],
        names: Mapping[int, str] | Sequence[str] = (),
        targets: tuple[str, ...] = ("class",),
    ) -> None:
        self._forward, self._detect, self._score, self._layers = forward, detect, score, layers
        self.names = dict(names) if isinstance(names, Mapping) else dict(enumerate(names))
        self.available = targets

    def __call__(
        self, module: nn.Module, model: Any, imgsz: int | None = None, processor: Any = None
    ) -> CallableAdapter:
        """The same adapter for a private view of the model, with the arguments that `Adapter` takes."""
        bound = copy.copy(self)
        parameter = next(module.parameters(), torch.empty(0))
        bound.module, bound.device, bound.dtype = module, parameter.device, parameter.dtype
        bound.imgsz = imgsz or IMGSZ
        return bound

    @classmethod
    def serves(cls, model: Any) -> bool:
        """See `Adapter.serves`: never, the user names this adapter."""
        return False

    @classmethod
    def unwrap(cls, model: Any) -> nn.Module:
        """See `Adapter.unwrap`.

        Raises:
            ModelError: if the model is not an nn.Module.
        """
        if not isinstance(model, nn.Module):
            raise ModelError(f"CallableAdapter: expected an nn.Module, got a {type(model).__name__}: give the network")
        return model

    def prepare(self, image: np.ndarray) -> tuple[Tensor, Geometry]:
        """See `Adapter.prepare`: a square letterbox."""
        padded, geometry = letterbox(self.fit(image), (self.imgsz, self.imgsz), stride=self.imgsz)
        return unit_tensor(padded, self.device, self.dtype), geometry

    def forward(self, batch: Tensor, max_det: int) -> Any:
        """See `Adapter.forward`."""
        return self._forward(self.module, batch)

    @torch.no_grad()
    def detect(self, outputs: Any, geometries: list[Geometry], conf: float, iou: float, max_det: int) -> list[Objects]:
        """See `Adapter.detect`.

        Raises:
            ModelError: if the user's function returns anything else than documented.
        """
        rows = self._detect(outputs, conf)
        if not isinstance(rows, Sequence) or len(rows) != len(geometries):
            size = f" of {len(rows)}" if isinstance(rows, Sequence) else ""
            raise ModelError(
                f"CallableAdapter.detect: expected a list of {len(geometries)} dicts, one for each image, got a "
                f"{type(rows).__name__}{size}"
            )
        return [self._objects(row, geometry, max_det) for row, geometry in zip(rows, geometries, strict=True)]

    def _objects(self, row: Mapping[str, Tensor], geometry: Geometry, max_det: int) -> Objects:
        try:
            boxes, scores = row["boxes"].detach().float(), row["scores"].detach().float()
            class_ids, index = row["class_ids"].long(), row["index"].long()
            objects = Objects(
                boxes=geometry.to_source(boxes),
                scores=scores,
                class_ids=class_ids,
                labels=tuple(self.names.get(c, f"class {c}") for c in class_ids.tolist()),
                index=index,
                level=torch.zeros_like(index),
                cells=index.new_zeros((len(index), 2)),
                network_boxes=boxes,
                mask_logits=row["mask_logits"].detach().float() if "mask_logits" in row else None,
            )
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else str(error).splitlines()[0]
            raise ModelError(
                f"CallableAdapter.detect: expected dicts with boxes [N, 4], scores [N], class_ids [N] and index [N], "
                f"got something else ({reason})"
            ) from None
        return objects.select(boxes.isfinite().all(dim=1).nonzero().flatten()[:max_det])

    def score(self, outputs: Any, objects: list[Objects], target: str) -> Tensor:
        """See `Adapter.score`.

        Raises:
            TargetError: if the user's function returns anything else than documented.
        """
        scalars = self._score(outputs, objects, target)
        total = sum(map(len, objects))
        if not isinstance(scalars, Tensor) or scalars.ndim not in (1, 2) or len(scalars) != total:
            actual = list(scalars.shape) if isinstance(scalars, Tensor) else type(scalars).__name__
            raise TargetError(f"CallableAdapter.score: expected a tensor of shape [{total}], got {actual}")
        return scalars

    def layers(self, preset: str) -> LayerPlan:
        """See `Adapter.layers`; if the user gave one preset only, it serves for both.

        Raises:
            LayerError: if a name that the user gave does not exist.
        """
        layers = self._layers
        if isinstance(layers, Mapping):
            layers = layers.get(preset) or next(iter(layers.values()))
        return self._plan(layers)

    def stem(self) -> LayerPlan:
        """See `Adapter.stem`; a user's layers of that name come first."""
        if isinstance(self._layers, Mapping) and "stem" in self._layers:
            return self._plan(self._layers["stem"])
        self.layers("level")  # names a mistake in them
        return super().stem()

    def _plan(self, layers: str | Sequence[str]) -> LayerPlan:
        names = (layers,) if isinstance(layers, str) else tuple(layers)
        known = [name for name, _ in self.module.named_modules() if name]
        for name in names:
            if name not in known:
                raise LayerError(f"CallableAdapter: layer {name!r} does not exist: {nearest(name, known)}")
        return LayerPlan(names, cut_all=True, fuse="sum")
