"""Smoothing runner: the mean of another runner's maps over changed versions of the image."""

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

SAME = 0.5  # IoU from which a candidate counts as the same object in a changed image


class SmoothingRunner:
    """Maps of a `Smoothing`; in each version of the image the objects are matched by IoU and class.

    Args:
        smoothing: makes the versions.
        inner: the runner of the smoothed method.
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
        """See `Runner.maps`; the forward that found the objects is not one of the averaged versions."""
        results = [self._image_maps(pixels[i : i + 1], of_image) for i, of_image in enumerate(objects) if len(of_image)]
        return Maps(
            [raw for result in results for raw in result.maps],
            [flag for result in results for flag in result.zero_gradient],
        )

    def _image_maps(self, pixels: Tensor, objects: Objects) -> Maps:
        """The mean maps of the objects of an image [1, C, H, W]."""
        totals: list[Tensor | None] = [None] * len(objects)
        counts, zero_gradient = [0] * len(objects), [True] * len(objects)
        for version in self._smoothing.versions(pixels, self._adapter.channels):
            changed = version.pixels.contiguous(memory_format=torch.channels_last)
            outputs, captured = self._model_run(changed, self._inner)
            matches, places = self._matches(version, outputs, objects)
            result = self._inner.maps(changed, outputs, [matches], captured)
            for place, raw, flag in zip(places, result.maps, result.zero_gradient, strict=True):
                total = totals[place]
                size = tuple(raw.shape) if total is None else tuple(total.shape)
                restored = version.back(raw, (size[0], size[1]))
                if self._smoothing.equal:
                    restored = restored / restored.abs().amax().clamp(min=torch.finfo(restored.dtype).tiny)
                totals[place] = restored if total is None else total + restored
                counts[place] += 1
                zero_gradient[place] &= flag
        blank = torch.zeros(1, 1, device=pixels.device)
        maps = [blank if total is None else total / count for total, count in zip(totals, counts, strict=True)]
        return Maps(maps, zero_gradient)

    @torch.no_grad()
    def _matches(self, version: Version, outputs: Any, objects: Objects) -> tuple[Objects, list[int]]:
        """The candidates of a version that match the image's objects, and the places of these objects."""
        if not version.moves and self._adapter.stable:
            return objects, list(range(len(objects)))
        size = (version.pixels.shape[2], version.pixels.shape[3])
        geometry = Geometry(size, size, (0, 0), size)
        boxes, probabilities = self._adapter.image_candidates(outputs, geometry)
        candidates, places = [], []
        moved = version.boxes(objects.network_boxes)
        for place, (box, class_id) in enumerate(zip(moved, objects.class_ids.tolist(), strict=True)):
            of_class = boxes if boxes.ndim == 2 else boxes[:, class_id]
            overlaps = box_iou(box[None], of_class)[0].nan_to_num(0.0)
            best = int((overlaps * probabilities[:, class_id].nan_to_num(0.0)).argmax())
            if float(overlaps[best]) >= SAME:
                candidates.append(best)
                places.append(place)
        index = torch.tensor(candidates, dtype=torch.int64, device=boxes.device)
        classes = objects.class_ids[torch.tensor(places, dtype=torch.int64, device=boxes.device)]
        return self._adapter.objects_at(outputs, index, classes, geometry), places
