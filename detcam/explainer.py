"""Explainer: image in, Explanation out; wires adapter, engine and method."""

from __future__ import annotations

import os
import reprlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from detcam.adapters import AnyAdapter, CallableAdapter, ImageSize, Target, adapter_for, opened, unwrapped
from detcam.engine import running, shadow
from detcam.engine.sweeps import Progress
from detcam.errors import InputError, LayerError
from detcam.explanation import Explanation
from detcam.geometry import Geometry
from detcam.images import displayable, read_image
from detcam.methods import VIEWS, AnyMethod, get_method, view_of
from detcam.models.complaints import models_reason
from detcam.models.load import load_model
from detcam.models.versions import Origin
from detcam.options import (
    check_layers,
    check_options,
    check_target,
    checked_device,
    set_classes,
    set_names,
    set_segments,
    set_text,
    sides_given,
)
from detcam.questions.answer import AskedExplanation
from detcam.questions.base import Question
from detcam.questions.dispatch import question
from detcam.questions.parsing import Pair
from detcam.runners.base import Layers, Maps, ModelRun, Request, layer_plan, target_name
from detcam.runners.check import Checker
from detcam.runners.dispatch import runner_for
from detcam.runners.twin import twin_of
from detcam.types import Check, Objects


@dataclass(frozen=True)
class PreparedImage:
    """An image of a batch, ready for the network."""

    position: int  # its place in the caller's list
    image: np.ndarray  # [H, W, 3] uint8 RGB, for people
    tensor: Tensor  # [C, h, w], the network's input
    geometry: Geometry  # how the image lies in the network's input
    picture: np.ndarray  # [H, W, C] the image as it was read
    shown: str | None  # how `image` was made; None: it has the values of `picture`


class _Lock:
    """A lock that can be copied and pickled with its explainer: the copy gets a new lock."""

    def __init__(self) -> None:
        self.lock = threading.RLock()

    def __reduce__(self) -> tuple[type[_Lock], tuple[()]]:
        return _Lock, ()


class Explainer:
    """Explains each object that a detector or segmenter finds.

    Threads may share an explainer; their calls take turns, because all run on the same view of the model. Separate
    explainers run in parallel, also on the same model. On one device the same images give the same maps bit for bit.
    Alone or in a list, and with other objects in the image, maps agree to the rounding of float32: usually to 1e-5 of
    the map's largest value, and never worse than 1e-3.

    Args:
        model: an nn.Module or the library's own wrapper, a weights path, or the name of a demo model. It is never
            changed: the explainer works on a private view that shares its weights. A wrapper (compiled, parallel,
            averaged, PEFT, a pipeline, a module without a forward of its own) is opened, and layers are those of the
            model inside.
        method: a name from `detcam.methods.METHODS`, an instance of a method, e.g. `RISE(masks=4000)`, or "auto":
            "layerig" at the stem, which shows the evidence for an object wherever in the image it lies; at other
            `layers`, and in models without a stem, "odam".
        layers: "level" (the feature level that the object was read from), "evidence" (all tensors that enter the
            neck, cut together), "stem" (the first convolution, with its norm and activation), "auto" (the method's
            choice), names from the module's `named_modules()`, or modules.
        target: the scalar to explain: "class" (logit), "prob", "margin" (logit minus the best other class's),
            "box" (distances to the four sides, combined by element-wise maximum), "left", "top", "right", "bottom",
            "objectness", "mask" (mean mask logit over the object's mask), "mask-margin" ("mask" minus the mean over a
            ring around it), "mask-coefficients" and "mask-prototypes" (the two factors of a YOLO mask, with the other
            held fixed), "iou" (as SAM predicts it), or a callable (outputs, list of Objects) -> Tensor [sum N].
        conf: lowest score of an object, in [0, 1].
        iou: IoU above which non-maximum suppression drops the weaker box, in [0, 1].
        max_det: largest number of objects per image.
        imgsz: longest side of the network's input in pixels (for torchvision's detectors the shorter side, like their
            own option), or (height, width) that it fits into; None: the size that the model's own predict call uses.
        device: where to run; None: where the model is.
        memory: approximate limit in bytes for the gradients of a chunk of objects, or for a batch of a sweep's
            forwards; a lower limit makes more chunks.
        processor: the image processor of a transformers model; None: that of its checkpoint or architecture.
        progress: called during a sweep with (forwards done, total forwards) of an image and layer.
        segments: the objects of a semantic segmenter: "class" (all pixels of a class) or "component" (each connected
            region).
        adapter: for custom models, see `detcam.adapters.CallableAdapter` and `LogitsAdapter`; or an `Adapter` class.
            None: the adapter that serves the model.
        text: for text-prompted detectors, the phrases to look for, e.g. `["a cat", "remote control"]`; they are the
            classes.
        trust_checkpoint: load a weights path whatever classes it names, running any code in it; see
            `detcam.models.load.load_model`.
        classes: the only classes whose objects are explained, by number or name; chosen before `max_det` applies.
        names: class names by number, in place of the model's.
        reshape: for layers whose layout detcam does not know, a function from a layer's output to its map [B, C, h, w],
            like pytorch-grad-cam's `reshape_transform`. It may move and drop values, not change them.

    Raises:
        InputError: for a model, method, layer, target, option or device that cannot be used.
        DependencyError: if the model's library is not installed.
    """

    @models_reason()
    def __init__(
        self,
        model: Any,
        method: str | AnyMethod = "auto",
        layers: Layers = "auto",
        target: Target = "class",
        conf: float = 0.25,
        iou: float = 0.7,
        max_det: int = 300,
        imgsz: ImageSize | None = None,
        device: str | torch.device | None = None,
        memory: int = 256 * 2**20,
        processor: Any = None,
        progress: Progress | None = None,
        segments: str = "class",
        adapter: AnyAdapter | None = None,
        text: Sequence[str] | None = None,
        trust_checkpoint: bool = False,
        classes: Sequence[int | str] | None = None,
        names: Mapping[int, str] | Sequence[str] | None = None,
        reshape: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        check_options(conf, iou, max_det, imgsz, target)
        check_layers(layers)
        model = unwrapped(model)
        self.method = get_method(method, layers)
        self.conf, self.iou, self.max_det = conf, iou, max_det = float(conf), float(iou), int(max_det)
        name = str(model) if isinstance(model, (str, os.PathLike)) else type(model).__name__
        if isinstance(model, (str, os.PathLike)):
            model = load_model(model, trust_checkpoint)
        if adapter is CallableAdapter or (adapter is not None and not hasattr(adapter, "unwrap")):
            raise InputError(f"adapter: expected CallableAdapter(...) or an Adapter class, got {reprlib.repr(adapter)}")
        if adapter is None:
            model, of_wrapper = opened(model)
            adapter, processor = adapter_for(model), of_wrapper if processor is None else processor
        module = adapter.unwrap(model)
        view = shadow(module)
        if device is not None:
            view.to(checked_device(device))  # moves the view's tensors only
        self.adapter = adapter(view, model, sides_given(imgsz), processor)
        self.adapter.reshape = reshape
        set_text(self.adapter, text)
        set_names(self.adapter, names)
        set_classes(self.adapter, classes)
        check_target(target, self.adapter)
        set_segments(self.adapter, segments)
        self._model_run, self._memory = ModelRun(self.adapter, max_det), memory
        plan_of = partial(layer_plan, self.adapter, module)
        request = Request(self._model_run, target, memory, progress, plan_of)
        try:
            self.runner = runner_for(self.method, layers, request)
        except LayerError:
            if (method, layers) != ("auto", "auto"):
                raise
            self.method = get_method(VIEWS["where"][0])  # the model has no stem
            self.runner = runner_for(self.method, layers, request)
        if not self.runner.plan.names and "activations" in self.method.reads:
            raise LayerError(
                f"method {self.method.name!r} reads layers, and this model has none: use 'drise' or 'rise'"
            )
        self.plan, self.target = self.runner.plan, self.runner.target
        self._lock, self._origin = _Lock(), Origin(view, model)
        self.settings = {
            "model": name,
            "family": adapter.family,
            "method": self.method.name,
            "layers": list(self.plan.names),
            "view": view_of(self.method.name, layers),
            "target": target_name(self.target),
            "conf": conf,
            "iou": iou,
            "max_det": max_det,
            "imgsz": self.adapter.imgsz,
            **self.adapter.scales(),
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
        self, images: Any, ask: Sequence[Pair] | None = None, prompts: Sequence[Any] | None = None, truth: Any = None
    ) -> Explanation | list[Explanation]:
        """Explain every object of an image or of a list of images, or answer a question about one image.

        Args:
            images: a path, PIL image, array [H, W, C] or tensor [C, H, W] with the channels that the model reads (RGB
                if 3), of uint8, uint16 or floats in [0, 1]; or a list of these.
                Images of a list that have the same network size share one forward; results do not depend on it.
            ask: objects that the model should have found, as pairs of a box (x1, y1, x2, y2) in source pixels and a
                class by name or number, e.g. `[((10, 20, 80, 160), "person")]`.
            prompts: points (x, y) and boxes (x1, y1, x2, y2) in source pixels, or masks [H, W] bool, to explain in
                place of the model's objects; for semantic segmenters also a pair of a prompt and a class. In a
                semantic segmenter a point stands for the connected region of the predicted class around it, and a box
                or mask for the class that most of its pixels have. For SAM they are its prompts.
            truth: for semantic segmenters, the label map [H, W] of integers that the image should have; numbers that
                are not a class (often 255) are ignored. Each connected region with a wrong class is explained twice,
                for the wrong class and for the true class; the largest regions come first.

        Returns:
            An Explanation, or a list of them in the order of the list. With `ask` an AskedExplanation, whose objects
            are the candidates that fit best, each for the asked class and, if another class won there, for that too.

        Raises:
            ImageError: if an image cannot be read.
            LayerError: if a layer does not run, or no score depends on it.
            InputError: if `ask`, `prompts` or `truth` are malformed, or the family cannot answer them.
        """
        with self._lock.lock:
            if ask is None and prompts is None and truth is None:
                return self._explain_images(images)
            return self._answer(images, ask, prompts, truth)

    def _explain_images(self, images: Any) -> Explanation | list[Explanation]:
        several = isinstance(images, (list, tuple))
        prepared = [self.prepare(source, position) for position, source in enumerate(images if several else [images])]
        batches: dict[tuple[int, ...], list[PreparedImage]] = {}
        for image in prepared:
            batches.setdefault(tuple(image.tensor.shape), []).append(image)
        explanations: dict[int, Explanation] = {}
        for batch in batches.values():
            for image, explanation in zip(batch, self.explain_batch(batch), strict=True):
                explanations[image.position] = explanation
        ordered = [explanations[i] for i in range(len(prepared))]
        return ordered if several else ordered[0]

    def _answer(self, source: Any, ask: Any, prompts: Any, truth: Any) -> Explanation:
        if isinstance(source, (list, tuple)):
            given = {"ask": ask, "prompts": prompts, "truth": truth}
            names = ", ".join(name for name, value in given.items() if value is not None)
            raise InputError(f"{names}: expected one image, got a list of {len(source)}: ask about each separately")
        image = self.prepare(source)
        asked = question(self.adapter, ask, prompts, truth, image.geometry.source, self.conf, self.iou, self.max_det)
        return asked.answered(self.explain_batch([image], asked)[0])

    def prepare(self, source: Any, position: int = 0) -> PreparedImage:
        """Read an image and make the network's input from it.

        Raises:
            ImageError: if the image cannot be read, or has another number of channels than the model reads.
        """
        picture = read_image(source, *self.adapter.reading)
        image, shown = displayable(picture)
        return PreparedImage(position, image, *self.adapter.prepare(picture), picture, shown)

    @models_reason()
    def explain_batch(self, batch: list[PreparedImage], asked: Question | None = None) -> list[Explanation]:
        """Explain images of the same network size in one forward; with a question, the objects that answer it.

        Args:
            batch: B images; one image if there is a question.
            asked: selects the objects; None: the objects that the model detects.
        """
        geometries = [image.geometry for image in batch]
        with running(self.adapter.module):
            pixels = torch.stack([image.tensor for image in batch])  # [B, C, h, w]
            # Convolutions on a CPU run a third faster in this order, and windows of maps are cut out in longer runs.
            pixels = pixels.contiguous(memory_format=torch.channels_last)
            outputs, captured = self._model_run(pixels, self.runner)
            if asked is None:
                objects = self.adapter.objects(outputs, geometries, self.conf, self.iou, self.max_det)
            else:
                objects = [asked.objects(self.adapter, outputs, geometries[0])]
            maps = self.runner.maps(pixels, outputs, objects, captured)
        return self._explanations(batch, objects, maps)

    def check(self, explanation: Explanation) -> list[Check]:
        """Check each map of an explanation by intervention, see `Check`.

        Takes the explanation once more, with shuffled weights, and two forwards for each object beside a few that all
        objects share.

        Raises:
            MethodError: for a family without candidates, regions or a probability.
        """
        with self._lock.lock, running(self.adapter.module):
            image = self.prepare(explanation.image if explanation.picture is None else explanation.picture)
            twin = twin_of(self.adapter, explanation.objects, lambda: self.explain_batch([image])[0])
            checker = Checker(self._model_run, explanation.objects, image.tensor, image.geometry, self._memory)
            return checker.checks(explanation.maps, twin.maps)

    def _explanations(self, batch: list[PreparedImage], objects: list[Objects], maps: Maps) -> list[Explanation]:
        explanations = []
        start = 0
        for image, detected in zip(batch, objects, strict=True):
            rows = range(start, start + len(detected))
            start += len(detected)
            raw = [maps.maps[i] for i in rows]
            levels = detected.level.tolist()
            flags = [maps.zero_gradient[i] for i in rows]
            notes = [self._note(*each) for each in zip(raw, flags, levels, strict=True)]
            facts = (image.image, detected, raw, notes, self.settings, image.geometry, self.check)
            explanations.append(Explanation(*facts, image.picture, image.shown, origin=self._origin.facts()))
        return explanations

    def _note(self, raw: Tensor, zero_gradient: bool, level: int) -> str | None:
        """Why a map is zero, shared or approximate; None if there is nothing to say."""
        if not self.method.object_specific:
            return f"the same for every object: {self.method.name} reads activations only"
        if zero_gradient:
            where = f"zero map: the score has no gradient at {', '.join(self.plan.names)}"
            if self.plan.fuse == "level" or self.settings["view"] is not None:
                return f"{where}: it is constant there, or saturated (target='class' is before that)"
            return f"{where}; it was read at feature level {level} (layers='level' explains it there)"
        if not bool(raw.isfinite().all()):
            return "cells that are not finite count as zero: the model or the method's formula overflowed there"
        if not bool((raw > 0).any()):
            return "zero map: no cell contributes positively"
        return self.method.caution
