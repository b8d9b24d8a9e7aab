"""Smoothing runner: the mean of another runner's maps over changed versions of the image."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from detcam.boxes import box_iou
from detcam.engine import Captured
from detcam.geometry import Geometry
from detcam.methods.smoothing import Smoothing, Version
from detcam.runners.base import Maps, ModelRun, Runner
from detcam.types import Objects

SAME = 0.5  # IoU from which a candidate is the object in a changed picture


class SmoothingRunner:
    """The mean of another runner's maps over versions of the image, in each of which every object is found again.

    Args:
        smoothing: which versions.
        inner: the runner of its method.
        model_run: the model.
    """

    def __init__(self, smoothing: Smoothing, inner: Runner, model_run: ModelRun) -> None:
        self._smoothing, self._inner, self._model_run = smoothing, inner, model_run
        self._adapter = model_run.adapter
        self.plan, self.cut, self.target = inner.plan, inner.cut, inner.target
        self.differentiable = inner.differentiable

    def watching(self) -> AbstractContextManager[Any]:
        """See `Runner.watching`."""
        return self._inner.watching()

    def maps(self, pixels: Tensor, outputs: Any, objects: list[Objects], captured: list[Captured]) -> Maps:
        """See `Runner.maps`; the forward that found the objects is not counted in."""
        made = [self._picture(pixels[i : i + 1], found) for i, found in enumerate(objects) if len(found)]
        return Maps([one for m in made for one in m.maps], [one for m in made for one in m.silent])

    def _picture(self, pixels: Tensor, found: Objects) -> Maps:
        totals: list[Tensor | None] = [None] * len(found)
        counts, silent = [0] * len(found), [True] * len(found)
        for version in self._smoothing.versions(pixels):
            changed = version.pixels.contiguous(memory_format=torch.channels_last)
            outputs, captured = self._model_run(changed, self._inner)
            moved, kept = self._again(version, outputs, found)
            made = self._inner.maps(changed, outputs, [moved], captured)
            for place, raw, quiet in zip(kept, made.maps, made.silent, strict=True):
                total = totals[place]
                size = tuple(raw.shape) if total is None else tuple(total.shape)
                one = version.back(raw, (size[0], size[1]))
                if self._smoothing.equal:
                    one = one / one.abs().amax().clamp(min=torch.finfo(one.dtype).tiny)
                totals[place] = one if total is None else total + one
                counts[place] += 1
                silent[place] &= quiet
        blank = torch.zeros(1, 1, device=pixels.device)
        maps = [blank if t is None else t / n for t, n in zip(totals, counts, strict=True)]
        return Maps(maps, silent)

    @torch.no_grad()
    def _again(self, version: Version, outputs: Any, found: Objects) -> tuple[Objects, list[int]]:
        """The objects of a version that are objects of the picture, and their places among these."""
        if not version.moves and self._adapter.stable:
            return found, list(range(len(found)))
        size = (version.pixels.shape[2], version.pixels.shape[3])
        geometry = Geometry(size, size, (0, 0), size)
        boxes, probabilities = self._adapter.image_candidates(outputs, geometry)
        wanted = version.boxes(found.network_boxes)
        best, kept = [], []
        for place, (box, class_id) in enumerate(zip(wanted, found.class_ids.tolist(), strict=True)):
            own = boxes if boxes.ndim == 2 else boxes[:, class_id]
            overlaps = box_iou(box[None], own)[0].nan_to_num(0.0)
            fit = overlaps * probabilities[:, class_id].nan_to_num(0.0)
            candidate = int(fit.argmax())
            if float(overlaps[candidate]) >= SAME:
                best.append(candidate)
                kept.append(place)
        index = torch.tensor(best, dtype=torch.int64, device=boxes.device)
        classes = found.class_ids[torch.tensor(kept, dtype=torch.int64, device=boxes.device)]
        return self._adapter.objects_at(outputs, index, classes, geometry), kept
