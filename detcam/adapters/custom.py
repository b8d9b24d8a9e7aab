"""Custom models: any nn.Module or black box, described by a few functions."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from detcam.adapters.base import TARGETS, Adapter, ImageSize, LayerPlan, sides_of
from detcam.adapters.shared.channels import input_channels
from detcam.errors import LayerError, MethodError, ModelError, TargetError, nearest
from detcam.geometry import Geometry, letterbox
from detcam.images import unit_tensor
from detcam.types import Objects

IMGSZ = 640  # pixels
SHARE = 1.1  # shares of an image, of boxes that may leave it a little


class BlackBox(nn.Module):
    """What runs a model without layers (an ONNX session, a web service, TorchScript); copies share it."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.__dict__["model"] = model  # not a submodule

    def __deepcopy__(self, memo: Any) -> BlackBox:
        return BlackBox(self.model)


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
    grey on both sides, or made by `prepare`. `detect` gets `conf`; of its objects the first `max_det` are kept; `iou`
    has no effect.

    Args:
        forward: (module, batch) -> outputs of any type, with the graph. `module` is a private view of the model that
            shares its weights: call the view, not the model. A black box (TorchScript, no nn.Module) comes as it is.
            `batch` is [B, 3, imgsz, imgsz] RGB in [0, 1], with the model's dtype and device; normalise it here if the
            model needs that.
        detect: (outputs, conf) -> a dict of tensors for each image: "boxes" [N, 4] xyxy in pixels of the batch,
            "scores" [N] in [0, 1], "class_ids" [N] int64, "index" [N] int64 (tells `score` where the object was read),
            in the order of the explanation; if there are masks, "mask_logits" [N, h, w] over the batch's height and
            width. Runs without gradients.
        score: (outputs, objects of each image, target) -> a differentiable scalar for each object of all images in
            turn, [sum N]; or [sum N, K], whose K maps combine by element-wise maximum. Preferably a logit.
        layers: names from the model's `named_modules()` whose maps [B, C, h, w] give the heatmaps; or a dict of
            names for the presets "level", "evidence" and "stem" (found if it is not given). Empty for a black box:
            methods that run forwards only explain it, e.g. "drise".
        names: class names by number.
        targets: the targets that `score` knows.
        candidates: outputs -> (boxes [B, A, 4] xyxy in pixels of the batch, probabilities [B, A, K]) of all candidates,
            before any threshold, numbered like "index": for "drise" and `ask=`.
        prepare: image [H, W, C] -> pixels [C, h, w], an image stretched to the whole input, or (pixels, Geometry).
        batch: the images in a call of `forward`, for a black box with a fixed batch; its outputs are tensors [B, ...],
            tuples, lists or dicts of them; the last call is filled up with copies. None: as memory allows.
    """

    family = "custom"
    models = "any nn.Module or black box, described by a CallableAdapter"
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
        candidates: Callable[[Any], Sequence[Tensor]] | None = None,
        prepare: Callable[[np.ndarray], Any] | None = None,
        batch: int | None = None,
    ) -> None:
        if batch is not None and (batch < 1 or layers):
            raise ModelError(f"CallableAdapter: batch={batch}: give at least 1, and layers=[]: it is for black boxes")
        self._candidates, self._prepare, self._batch = candidates, prepare, batch
        self._forward, self._detect, self._score, self._layers = forward, detect, score, layers
        self.names = dict(names) if isinstance(names, Mapping) else dict(enumerate(names))
        self.available = targets

    def __call__(
        self, module: nn.Module, model: Any, imgsz: ImageSize | None = None, processor: Any = None
    ) -> CallableAdapter:
        """The same adapter for a private view of the model, with the arguments that `Adapter` takes."""
        bound = copy.copy(self)
        parameter = next(module.parameters(), torch.empty(0))
        bound.module, bound.device, bound.dtype = module, parameter.device, parameter.dtype
        bound.imgsz, bound.channels = imgsz or IMGSZ, input_channels(module)
        return bound

    @classmethod
    def unwrap(cls, model: Any) -> nn.Module:
        """See `Adapter.unwrap`: what is not an nn.Module is a black box."""
        opaque = not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule)
        return BlackBox(model) if opaque else model

    def prepare(self, image: np.ndarray) -> tuple[Tensor, Geometry]:
        """See `Adapter.prepare`: a letterbox, or the user's function; a ModelError if that returns anything else."""
        image = self.fit(image)
        if self._prepare is not None:
            made = self._prepare(image)
            pixels, geometry = made if isinstance(made, tuple) else (made, None)
            if not isinstance(pixels, Tensor) or pixels.ndim != 3 or not isinstance(geometry, Geometry | None):
                actual = list(pixels.shape) if isinstance(pixels, Tensor) else type(pixels).__name__
                raise ModelError(
                    f"CallableAdapter.prepare: expected pixels [C, h, w] or (pixels, Geometry), got {actual}"
                )
            size = (pixels.shape[1], pixels.shape[2])
            geometry = geometry or Geometry((image.shape[0], image.shape[1]), size, (0, 0), size)
            return pixels.to(self.device, self.dtype), geometry
        size = sides_of(self.imgsz)
        padded, geometry = letterbox(image, size, stride=max(size))
        return unit_tensor(padded, self.device, self.dtype), geometry

    def forward(self, batch: Tensor, max_det: int) -> Any:
        model: Any = self.module.model if isinstance(self.module, BlackBox) else self.module
        if self._batch is None:
            return self._forward(model, batch)
        count = len(batch)
        filled = torch.cat([batch, batch[-1:].expand(-count % self._batch, -1, -1, -1)])
        outputs = [self._forward(model, part) for part in filled.split(self._batch)]
        return tree_map(lambda *parts: torch.cat(parts)[:count], *outputs)

    @torch.no_grad()
    def detect(self, outputs: Any, geometries: list[Geometry], conf: float, iou: float, max_det: int) -> list[Objects]:
        """See `Adapter.detect`; a ModelError if the user's function returns anything else than documented."""
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
        _check_values(boxes, scores, "detect")
        return objects.select(boxes.isfinite().all(dim=1).nonzero().flatten()[:max_det])

    def score(self, outputs: Any, objects: list[Objects], target: str) -> Tensor:
        """See `Adapter.score`; a TargetError if the user's function returns anything else than documented."""
        scalars = self._score(outputs, objects, target)
        total = sum(map(len, objects))
        if not isinstance(scalars, Tensor) or scalars.ndim not in (1, 2) or len(scalars) != total:
            actual = list(scalars.shape) if isinstance(scalars, Tensor) else type(scalars).__name__
            raise TargetError(f"CallableAdapter.score: expected a tensor of shape [{total}], got {actual}")
        return scalars

    @property
    def lists_candidates(self) -> bool:
        return self._candidates is not None

    @torch.no_grad()
    def candidates(self, outputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        """See `Adapter.candidates`.

        Raises:
            MethodError: without a function that lists them.
            ModelError: if that function returns anything else than documented.
        """
        if self._candidates is None:
            raise MethodError(
                "custom models list no candidates without CallableAdapter(candidates=...), which drise and ask need: "
                "give it, or use another method, e.g. 'rise'"
            )
        try:
            boxes, probabilities, *_ = (part.detach().float() for part in self._candidates(outputs))
            valid = boxes.shape[2:] == (4,) and probabilities.ndim == 3 and boxes.shape[:2] == probabilities.shape[:2]
        except (TypeError, ValueError, AttributeError):
            valid = False
        if not valid:
            raise ModelError("CallableAdapter.candidates: expected tensors boxes [B, A, 4] and probabilities [B, A, K]")
        _check_values(boxes.flatten(0, 1), probabilities, "candidates")
        return boxes, probabilities, probabilities.amax(dim=2)

    @torch.no_grad()
    def objects_at(self, outputs: Any, candidates: Tensor, class_ids: Tensor, geometry: Geometry) -> Objects:
        boxes, probabilities, _ = self.candidates(outputs)
        scores = probabilities[0, candidates, class_ids]
        row = {"boxes": boxes[0, candidates], "scores": scores, "class_ids": class_ids, "index": candidates}
        return self._objects(row, geometry, len(candidates))

    def layers(self, preset: str) -> LayerPlan:
        """See `Adapter.layers`; a single preset serves for both; a LayerError if a given name does not exist."""
        layers = self._layers
        if isinstance(layers, Mapping):
            layers = layers.get(preset) or next(iter(layers.values()), ())
        return self._plan(layers)

    def stem(self) -> LayerPlan:
        """See `Adapter.stem`; a user's layers of that name come first."""
        if isinstance(self._layers, Mapping) and "stem" in self._layers:
            return self._plan(self._layers["stem"])
        self.layers("level")  # names a mistake in them
        return super().stem()

    def _plan(self, layers: str | Sequence[str]) -> LayerPlan:
        names = (layers,) if isinstance(layers, (str, nn.Module)) or layers is None else tuple(layers)
        known = [name for name, _ in self.module.named_modules() if name]
        for name in names:
            if name not in known:
                raise LayerError(
                    f"CallableAdapter: layer {name!r} does not exist: {nearest(str(name), known or ['[]'])}"
                )
        return LayerPlan(names, cut_all=True, fuse="sum")


def _check_values(boxes: Tensor, scores: Tensor, where: str) -> None:
    """Refuse boxes [n, 4] that are shares of the image (no pixel is so small) and scores that are no probabilities."""
    if len(boxes) and bool((boxes[:, 2:] > boxes[:, :2]).any()) and float(boxes.nan_to_num(0).abs().amax()) <= SHARE:
        raise ModelError(
            f"CallableAdapter.{where}: expected boxes xyxy in pixels of the batch, got shares of it in 0..1: multiply "
            "them by its width and height"
        )
    if scores.numel() and not (scores.amin() >= 0 and scores.amax() <= 1):
        raise ModelError(f"CallableAdapter.{where}: expected scores in 0..1: apply sigmoid or softmax")
