"""The corridor: a picture goes in, an adapter, the engine and a method are wired up, an explanation comes out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from detcam.adapters import TARGETS, LayerPlan, Target, adapter_for
from detcam.engine import Capture, Captured, object_gradients, shadow
from detcam.errors import InputError, LayerError, TargetError, nearest
from detcam.explanation import Explanation
from detcam.geometry import Geometry
from detcam.images import read_image
from detcam.methods import Method, get_method
from detcam.models import load_model
from detcam.types import Objects, image_index

PRESETS = ("auto", "level", "evidence")
DEFAULT_PRESET = "level"

Layers = str | Sequence[str | nn.Module]


@dataclass(frozen=True)
class _Placed:
    """One picture on its way through a batch."""

    position: int
    image: np.ndarray
    tensor: Tensor  # [3, h, w]
    geometry: Geometry


class Explainer:
    """Explains each object that a detector or segmenter finds.

    Args:
        model: an nn.Module or the library's own wrapper, a weights path, or a shipped demo model's name. It is never
            changed: the explainer works on a private view that shares its weights.
        method: a name of `detcam.methods.METHODS`, "auto", or an instance of `detcam.methods.Method`.
        layers: "level" (the feature level that the object was read from), "evidence" (all tensors that enter the
            neck, cut together), "auto", or names from the module's `named_modules()`, or modules.
        target: the scalar that is explained: "class" (logit), "prob", "margin" (logit minus the best other logit),
            "box" (distances to the four sides, combined by element-wise maximum), "left", "top", "right", "bottom",
            "objectness", "mask", or a callable (outputs, list of Objects) -> Tensor [sum N].
        conf: lowest score of an object, in [0, 1].
        iou: overlap above which non-maximum suppression drops the weaker box, in [0, 1].
        max_det: largest number of objects per picture.
        imgsz: longest side of the network's input in pixels; None: what the model's own predict call would use.
        device: where to run; None: where the model is.

    Raises:
        InputError: for a model, method, layer, target, option or device that cannot be used.
    """

    def __init__(
        self,
        model: Any,
        method: str | Method = "auto",
        layers: Layers = "auto",
        target: Target = "class",
        conf: float = 0.25,
        iou: float = 0.7,
        max_det: int = 300,
        imgsz: int | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        _check_options(conf, iou, max_det, imgsz, target)
        self.method = get_method(method)
        self.target = target
        self.conf, self.iou, self.max_det = conf, iou, max_det
        name = str(model) if isinstance(model, (str, os.PathLike)) else type(model).__name__
        if isinstance(model, (str, os.PathLike)):
            model = load_model(model)
        adapter = adapter_for(model)
        module, default_size = adapter.unwrap(model)
        view = shadow(module)
        if device is not None:
            view.to(_checked_device(device))  # moves the view's tensors only
        self.adapter = adapter(view, imgsz or default_size)
        self.plan = self._plan(layers, module)
        self.settings = {
            "model": name,
            "family": adapter.family,
            "method": self.method.name,
            "layers": list(self.plan.names),
            "target": target if isinstance(target, str) else getattr(target, "__name__", "callable"),
            "conf": conf,
            "iou": iou,
            "max_det": max_det,
            "imgsz": imgsz or default_size,
        }

    @overload
    def __call__(self, images: list[Any]) -> list[Explanation]: ...
    @overload
    def __call__(self, images: Any) -> Explanation: ...
    def __call__(self, images: Any) -> Explanation | list[Explanation]:
        """Explain every object of one picture, or of a list of pictures.

        Args:
            images: a path, PIL image, array [H, W, 3] uint8 RGB or tensor [3, H, W] in [0, 1]; or a list of these.
                Pictures of a list that have the same network size share one forward; results do not depend on it.

        Returns:
            An Explanation, or a list of them in the order of the list.

        Raises:
            ImageError: if a picture cannot be read.
            LayerError: if a layer does not run, or no score depends on it.
        """
        several = isinstance(images, (list, tuple))
        placed = []
        for position, source in enumerate(images if several else [images]):
            image = read_image(source)
            placed.append(_Placed(position, image, *self.adapter.prepare(image)))
        batches: dict[tuple[int, ...], list[_Placed]] = {}
        for picture in placed:
            batches.setdefault(tuple(picture.tensor.shape), []).append(picture)
        explanations: dict[int, Explanation] = {}
        for batch in batches.values():
            for picture, explanation in zip(batch, self._explain(batch), strict=True):
                explanations[picture.position] = explanation
        ordered = [explanations[i] for i in range(len(placed))]
        return ordered if several else ordered[0]

    def _explain(self, batch: list[_Placed]) -> list[Explanation]:
        geometries = [picture.geometry for picture in batch]
        # Leave the caller's no_grad, inference_mode and autocast: the graph needs gradients in the model's own dtype.
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            Capture(self._modules(), self.plan.cut_all) as capture,
        ):
            outputs = self.adapter.forward(torch.stack([picture.tensor for picture in batch]), self.max_det)
            if capture.missing():
                raise LayerError(
                    f"layer {capture.missing()[0]!r} did not run or put out no [B,C,h,w] tensor: `detcam layers` "
                    "lists layers that do"
                )
            objects = self.adapter.detect(outputs, geometries, self.conf, self.iou, self.max_det)
            maps, notes = self._maps(outputs, objects, capture.captured)
        explanations = []
        for picture, found in zip(batch, objects, strict=True):
            n = len(found)
            explanations.append(Explanation(picture.image, found, maps[:n], notes[:n], self.settings, picture.geometry))
            maps, notes = maps[n:], notes[n:]
        return explanations

    def _modules(self) -> dict[str, nn.Module]:
        named = dict(self.adapter.module.named_modules())
        return {name: named[name] for name in self.plan.names}

    def _maps(
        self, outputs: Any, objects: list[Objects], captured: list[Captured]
    ) -> tuple[list[Tensor], list[str | None]]:
        """Raw coarse maps and notes for the objects of all pictures of a batch, one after the other."""
        device = captured[0].tensor.device
        images = image_index(objects, device)
        if not len(images):
            return [], []
        levels = torch.cat([o.level for o in objects])
        if not self.method.object_specific:
            return self._shared_maps(captured, images, levels)
        scalars = self._scalars(outputs, objects)
        # Several scalars of one object (the four sides of its box) combine by element-wise maximum, as in ODAM.
        columns = [self._gradient_maps(column, images, levels, captured) for column in scalars.unbind(1)]
        maps = [torch.stack(versions).amax(dim=0) for versions in zip(*(m for m, _ in columns), strict=True)]
        silent = torch.stack([s for _, s in columns]).all(dim=0).tolist()
        return maps, [self._note(m, s, level) for m, s, level in zip(maps, silent, levels.tolist(), strict=True)]

    def _scalars(self, outputs: Any, objects: list[Objects]) -> Tensor:
        """[sum N, K] differentiable scalars; K is 1 but for targets that combine several."""
        total = sum(len(o) for o in objects)
        if isinstance(self.target, str):
            scalars = self.adapter.score(outputs, objects, self.target)
        else:
            scalars = self.target(outputs, objects)
            if not isinstance(scalars, Tensor) or scalars.shape != (total,):
                actual = list(scalars.shape) if isinstance(scalars, Tensor) else type(scalars).__name__
                raise TargetError(f"target callable: expected a tensor of shape [{total}], got {actual}")
        return scalars if scalars.ndim == 2 else scalars[:, None]

    def _gradient_maps(
        self, scalars: Tensor, images: Tensor, levels: Tensor, captured: list[Captured]
    ) -> tuple[list[Tensor], Tensor]:
        """For one scalar per object: N maps, and [N] bool: whether its gradient is zero at all layers."""
        maps: list[Tensor] = [torch.empty(0)] * len(scalars)
        silent = torch.ones(len(scalars), dtype=torch.bool, device=scalars.device)
        reached: set[str] = set()
        groups = [(torch.arange(len(scalars), device=scalars.device), captured)]
        if self.plan.fuse == "own":  # ask for the gradient at the object's own level only
            groups = [((levels == i).nonzero().flatten(), [layer]) for i, layer in enumerate(self._by_level(captured))]
        for members, layers in groups:
            tensors = [layer.tensor for layer in layers]
            for turn, gradients in object_gradients(scalars[members], images[members], tensors):
                places = members[turn]
                parts = []
                for layer, gradient in zip(layers, gradients, strict=True):
                    if gradient is None:
                        continue
                    reached.add(layer.name)
                    silent[places] &= ~gradient.flatten(1).any(dim=1)
                    acts = layer.tensor.detach()[images[places]].float()
                    parts.append(self.method.maps(acts, gradient.float()))
                if parts:
                    for place, fused in zip(places.tolist(), _add(parts), strict=True):
                        maps[place] = fused
            self._require_reached(members, layers, reached)
        return maps, silent

    def _by_level(self, captured: list[Captured]) -> list[Captured]:
        """The captured tensors in the order of the feature levels, which need not be the order they ran in."""
        named = {layer.name: layer for layer in captured}
        return [named[name] for name in self.plan.names]

    def _require_reached(self, members: Tensor, layers: list[Captured], reached: set[str]) -> None:
        unreached = [layer.name for layer in layers if layer.name not in reached]
        if len(members) and unreached:
            raise LayerError(
                f"layer {unreached[0]!r}: the {self.settings['target']} score does not depend on it: choose a layer "
                "between the input and the head's outputs, see `detcam layers`"
            )

    def _shared_maps(
        self, captured: list[Captured], images: Tensor, levels: Tensor
    ) -> tuple[list[Tensor], list[str | None]]:
        """Maps of a method that does not look at the object: made once per picture and layer."""
        own = self.plan.fuse == "own"
        layers = self._by_level(captured) if own else captured
        per_layer = [self.method.maps(layer.tensor.detach().float(), None) for layer in layers]
        note = f"the same for every object: {self.method.name} reads activations only"
        if own:
            maps = [per_layer[level][image] for image, level in zip(images.tolist(), levels.tolist(), strict=True)]
        else:
            maps = list(_add(per_layer)[images])
        return maps, [note] * len(maps)

    def _note(self, raw: Tensor, silent: bool, level: int) -> str | None:
        if silent:
            return (
                f"zero map: the score has no gradient at {', '.join(self.plan.names)}; it was read at feature level "
                f"{level} (layers='level' explains it there)"
            )
        if not bool(raw.isfinite().all()):
            return "cells that are not finite (overflow in the model) count as zero"
        if not bool((raw > 0).any()):
            return "zero map: every cell speaks against the object (no positive contribution)"
        return None

    def _plan(self, layers: Layers, module: nn.Module) -> LayerPlan:
        """The layers to capture: a preset's, or the user's by name or as modules of their own model."""
        if isinstance(layers, str) and layers in PRESETS:
            return self.adapter.layers(DEFAULT_PRESET if layers == "auto" else layers)
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


def _add(maps: list[Tensor]) -> Tensor:
    """The sum [n, h, w] of maps [n, h_l, w_l] at the finest resolution among them."""
    finest = max((m.shape[1:] for m in maps), key=lambda shape: shape[0] * shape[1])
    resized = [m if m.shape[1:] == finest else interpolate(m[:, None], finest, mode="bilinear")[:, 0] for m in maps]
    return torch.stack(resized).sum(dim=0)


def _checked_device(device: str | torch.device) -> torch.device:
    try:
        checked = torch.device(device)
        torch.empty(0, device=checked)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device {str(device)!r} cannot be used ({reason}): use device 'cpu'") from None
    return checked


def _check_options(conf: float, iou: float, max_det: int, imgsz: int | None, target: Target) -> None:
    for name, value in (("conf", conf), ("iou", iou)):
        if not 0 <= value <= 1:
            raise InputError(f"{name}: expected a number in [0, 1], got {value}")
    if max_det < 1:
        raise InputError(f"max_det: expected at least 1, got {max_det}")
    if imgsz is not None and imgsz < 32:
        raise InputError(f"imgsz: expected at least 32 pixels, got {imgsz}")
    if isinstance(target, str) and target not in TARGETS:
        raise TargetError(f"target {target!r} does not exist: {nearest(target, TARGETS)}")
