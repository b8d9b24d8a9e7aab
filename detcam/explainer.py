"""Explainer: image in, Explanation out; wires adapter, engine and method."""

from __future__ import annotations

import os
import reprlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor, nn

from detcam.adapters import Adapter, CallableAdapter, LayerPlan, Target, adapter_for
from detcam.engine import shadow
from detcam.engine.shadow import hooks_kept
from detcam.engine.sweeps import Progress
from detcam.errors import InputError, LayerError, nearest
from detcam.explanation import Explanation
from detcam.geometry import Geometry
from detcam.images import read_image
from detcam.methods import AnyMethod, get_method
from detcam.models.load import load_model
from detcam.options import (
    check_layers,
    check_options,
    check_target,
    checked_device,
    set_segments,
    set_text,
)
from detcam.questions.base import Question
from detcam.questions.dispatch import question
from detcam.questions.missed import AskedExplanation
from detcam.questions.parsing import Pair
from detcam.runners.base import Maps, ModelRun, Request, target_name
from detcam.runners.dispatch import runner_for
from detcam.types import Objects

PRESETS = ("auto", "level", "evidence")

Layers = str | Sequence[str | nn.Module]


@dataclass(frozen=True)
class PreparedImage:
    """One picture on its way through a batch."""

    position: int
    image: np.ndarray
    tensor: Tensor  # [3, h, w]
    geometry: Geometry


def _inside(model: Any) -> Any:
    """The model that `torch.compile`, DataParallel or DistributedDataParallel wrap: they change how it runs only."""
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif isinstance(model, nn.Module) and "_orig_mod" in model._modules:
            model = model._modules["_orig_mod"]
        else:
            return model


class _Turns:
    """A lock for one explainer; what is copied or pickled with it gets one of its own."""

    def __init__(self) -> None:
        self.lock = threading.RLock()

    def __reduce__(self) -> tuple[type[_Turns], tuple[()]]:
        return _Turns, ()


class Explainer:
    """Explains each object that a detector or segmenter finds.

    Threads may share one: their calls take turns, because all run on one view of the model. Explainers of their own run
    beside each other, also on the same model. The same pictures give the same maps bit for bit on one device; in
    a list or alone, and with other objects beside them, they agree to the rounding of float32: usually to 1e-5 of a
    map's largest value, and to 1e-3 at the worst that is allowed.

    Args:
        model: an nn.Module or the library's own wrapper, a weights path, or a shipped demo model's name. It is never
            changed: the explainer works on a private view that shares its weights. Of `torch.compile`, DataParallel and
            DistributedDataParallel the model inside is explained.
        method: a name of `detcam.methods.METHODS`, "auto", or an instance of a method, e.g. `RISE(masks=4000)`.
        layers: "level" (the feature level that the object was read from), "evidence" (all tensors that enter the
            neck, cut together), "auto" (the method's choice of these), or names from the module's `named_modules()`,
            or modules.
        target: the scalar that is explained: "class" (logit), "prob", "margin" (logit minus the best other logit),
            "box" (distances to the four sides, combined by element-wise maximum), "left", "top", "right", "bottom",
            "objectness", "mask" (mean mask logit over the object's own mask), "mask-margin" (that minus the mean over a
            ring around it), "mask-coefficients" and "mask-prototypes" (the two factors of a YOLO mask, the other held
            fixed), "iou" (as SAM predicts it of its mask), or a callable (outputs, list of Objects) ->
            Tensor [sum N].
        conf: lowest score of an object, in [0, 1].
        iou: overlap above which non-maximum suppression drops the weaker box, in [0, 1].
        max_det: largest number of objects per picture.
        imgsz: longest side of the network's input in pixels (of torchvision's detectors the shorter, as their own
            option); None: what the model's own predict call would use.
        device: where to run; None: where the model is.
        memory: bytes that the gradients of a chunk of objects, or a batch of a sweep's forwards, may take, roughly;
            fewer bytes, more chunks.
        processor: the image processor of a transformers model; None: that of its checkpoint or architecture.
        progress: called during a sweep with (forwards done, forwards in all) of a picture and layer.
        segments: what an object of a semantic segmenter is: all pixels of a "class", or one connected "component".
        adapter: for a model of your own, see `detcam.adapters.CallableAdapter`; or an `Adapter` class. None: the one
            that serves the model.
        text: for text-prompted detectors, the phrases to look for, e.g. `["a cat", "remote control"]`; they are the
            classes.
        trust_checkpoint: load a weights path whatever classes it names, running any code in it; see
            `detcam.models.load.load_model`.

    Raises:
        InputError: for a model, method, layer, target, option or device that cannot be used.
        DependencyError: if the model's library is not installed.
    """

    def __init__(
        self,
        model: Any,
        method: str | AnyMethod = "auto",
        layers: Layers = "auto",
        target: Target = "class",
        conf: float = 0.25,
        iou: float = 0.7,
        max_det: int = 300,
        imgsz: int | None = None,
        device: str | torch.device | None = None,
        memory: int = 256 * 2**20,
        processor: Any = None,
        progress: Progress | None = None,
        segments: str = "class",
        adapter: type[Adapter] | CallableAdapter | None = None,
        text: Sequence[str] | None = None,
        trust_checkpoint: bool = False,
    ) -> None:
        check_options(conf, iou, max_det, imgsz, target)
        check_layers(layers)
        model = _inside(model)
        self.method = get_method(method)
        self.target = target
        self.conf, self.iou, self.max_det = conf, iou, max_det
        name = str(model) if isinstance(model, (str, os.PathLike)) else type(model).__name__
        if isinstance(model, (str, os.PathLike)):
            model = load_model(model, trust_checkpoint)
        if adapter is not None and not hasattr(adapter, "unwrap"):
            raise InputError(f"adapter: expected a CallableAdapter or an Adapter class, got {reprlib.repr(adapter)}")
        adapter = adapter or adapter_for(model)
        module = adapter.unwrap(model)
        view = shadow(module)
        if device is not None:
            view.to(checked_device(device))  # moves the view's tensors only
        self.adapter = adapter(view, model, imgsz, processor)
        set_text(self.adapter, text)
        check_target(target, self.adapter)
        set_segments(self.adapter, segments)
        plan_of = partial(self._plan, module=module)
        self._model_run = ModelRun(self.adapter, max_det)
        self.runner = runner_for(self.method, layers, Request(self._model_run, target, memory, progress, plan_of))
        self._turns = _Turns()
        self.plan, self.target = self.runner.plan, self.runner.target
        self.settings = {
            "model": name,
            "family": adapter.family,
            "method": self.method.name,
            "layers": list(self.plan.names),
            "target": target_name(self.target),
            "conf": conf,
            "iou": iou,
            "max_det": max_det,
            "imgsz": self.adapter.imgsz,
        }

    @overload
    def __call__(
        self, images: Any, ask: Sequence[Pair], prompts: None = None, truth: None = None
    ) -> AskedExplanation: ...
    @overload
    def __call__(
        self, images: list[Any], ask: None = None, prompts: None = None, truth: None = None
    ) -> list[Explanation]: ...
    @overload
    def __call__(
        self, images: Any, ask: None = None, prompts: Sequence[Any] | None = None, truth: Any = None
    ) -> Explanation: ...
    def __call__(
        self,
        images: Any,
        ask: Sequence[Pair] | None = None,
        prompts: Sequence[Any] | None = None,
        truth: Any = None,
    ) -> Explanation | list[Explanation]:
        """Explain every object of one picture, or of a list of pictures; or answer one question about one picture.

        Args:
            images: a path, PIL image, array [H, W, 3] uint8 RGB or tensor [3, H, W] in [0, 1]; or a list of these.
                Pictures of a list that have the same network size share one forward; results do not depend on it.
            ask: objects that the model should have found, as pairs of a box (x1, y1, x2, y2) in source pixels and a
                class by name or number, e.g. `[((10, 20, 80, 160), "person")]`.
            prompts: what to explain instead of what was found: points (x, y) and boxes (x1, y1, x2, y2) in source
                pixels, or masks [H, W] bool; for semantic segmenters also a pair of such a place and a class. For a
                semantic segmenter a point stands for the connected region of one predicted class that it lies in, and
                a box or mask for the class that most of its pixels are given. For SAM they are the prompts.
            truth: for semantic segmenters, [H, W] whole numbers: the class that each pixel should have; numbers that
                are no class, as 255 often, are not judged. Each connected region that is given one class in place of
                another is explained twice, for the wrong class and then for the true one; the largest come first.

        Returns:
            An Explanation, or a list of them in the order of the list. With `ask` an AskedExplanation, whose objects
            are the candidates that fit best: each as the asked class and, if another class won there, as that one too.

        Raises:
            ImageError: if a picture cannot be read.
            LayerError: if a layer does not run, or no score depends on it.
            InputError: if `ask`, `prompts` or `truth` hold anything else, or the family cannot be asked so.
        """
        with self._turns.lock, hooks_kept(self.adapter.module):
            if ask is None and prompts is None and truth is None:
                return self._found(images)
            return self._answered(images, ask, prompts, truth)

    def _found(self, images: Any) -> Explanation | list[Explanation]:
        several = isinstance(images, (list, tuple))
        placed = [self._placed(source, position) for position, source in enumerate(images if several else [images])]
        batches: dict[tuple[int, ...], list[PreparedImage]] = {}
        for picture in placed:
            batches.setdefault(tuple(picture.tensor.shape), []).append(picture)
        explanations: dict[int, Explanation] = {}
        for batch in batches.values():
            for picture, explanation in zip(batch, self._explain(batch), strict=True):
                explanations[picture.position] = explanation
        ordered = [explanations[i] for i in range(len(placed))]
        return ordered if several else ordered[0]

    def _placed(self, source: Any, position: int = 0) -> PreparedImage:
        image = read_image(source)
        return PreparedImage(position, image, *self.adapter.prepare(image))

    def _answered(self, source: Any, ask: Any, prompts: Any, truth: Any) -> Explanation:
        if isinstance(source, (list, tuple)):
            given = {"ask": ask, "prompts": prompts, "truth": truth}
            names = ", ".join(name for name, value in given.items() if value is not None)
            raise InputError(f"{names}: expected one picture, got a list of {len(source)}: ask about each by itself")
        picture = self._placed(source)
        asked = question(self.adapter, ask, prompts, truth, picture.geometry.source, self.conf, self.iou, self.max_det)
        return asked.answered(self._explain([picture], asked)[0])

    def _explain(self, batch: list[PreparedImage], asked: Question | None = None) -> list[Explanation]:
        """The explanations of a batch; if a question is asked about its one picture, of the objects that answer it."""
        geometries = [picture.geometry for picture in batch]
        # Leave the caller's no_grad, inference_mode and autocast.
        with torch.inference_mode(False), torch.autocast(self.adapter.device.type, enabled=False):
            pixels = torch.stack([picture.tensor for picture in batch])
            # Convolutions on a CPU run a third faster in this order, and pieces of maps are cut out in longer runs.
            pixels = pixels.contiguous(memory_format=torch.channels_last)
            outputs, captured = self._model_run(pixels, self.runner)
            if asked is None:
                objects = self.adapter.detect(outputs, geometries, self.conf, self.iou, self.max_det)
            else:
                objects = [asked.objects(self.adapter, outputs, geometries[0])]
            made = self.runner.maps(pixels, outputs, objects, captured)
        return self._explanations(batch, objects, made)

    def _explanations(self, batch: list[PreparedImage], objects: list[Objects], made: Maps) -> list[Explanation]:
        explanations = []
        start = 0
        for picture, found in zip(batch, objects, strict=True):
            own = slice(start, start + len(found))
            start += len(found)
            maps = made.maps[own]
            notes = [
                self._note(raw, silent, level)
                for raw, silent, level in zip(maps, made.silent[own], found.level.tolist(), strict=True)
            ]
            explanations.append(Explanation(picture.image, found, maps, notes, self.settings, picture.geometry))
        return explanations

    def _note(self, raw: Tensor, silent: bool, level: int) -> str | None:
        if not self.method.object_specific:
            return f"the same for every object: {self.method.name} reads activations only"
        if silent:
            where = f"zero map: the score has no gradient at {', '.join(self.plan.names)}"
            if self.plan.fuse == "level":
                return f"{where}, where it was read: it is constant there, or saturated (target='class' is before that)"
            return f"{where}; it was read at feature level {level} (layers='level' explains it there)"
        if not bool(raw.isfinite().all()):
            return "cells that are not finite count as zero: the model or the method's formula overflowed there"
        if not bool((raw > 0).any()):
            return "zero map: no cell contributes positively"
        return self.method.caution

    def _plan(self, layers: Layers, module: nn.Module) -> LayerPlan:
        """The layers to capture: a preset's, or the user's by name or as modules of their own model."""
        if isinstance(layers, str) and layers in PRESETS:
            return self.adapter.layers(layers)
        chosen = [layers] if isinstance(layers, (str, nn.Module)) else list(layers)
        if not chosen:
            raise LayerError("layers is empty: give 'auto', 'level', 'evidence' or names of modules")
        named = {name: m for name, m in module.named_modules() if name}
        names = []
        for layer in chosen:
            if isinstance(layer, nn.Module):
                layer = next((name for name, m in named.items() if m is layer), f"<{type(layer).__name__}>")
            if layer not in named:
                raise LayerError(f"layer {layer!r} does not exist: {nearest(layer, [*PRESETS, *named])}")
            names.append(layer)
        return LayerPlan(tuple(dict.fromkeys(names)), cut_all=False, fuse="sum")
