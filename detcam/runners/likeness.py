"""Likeness: the score of an object in changed versions of its image."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from detcam.adapters import Adapter
from detcam.boxes import box_iou
from detcam.errors import MethodError
from detcam.types import Objects


class Likeness:
    """s of objects in masked images: max over predictions of IoU with the object's box * p(object's class).

    For a semantic segmenter, s is the largest IoU * p over the masked image's regions of the object's class, with the
    IoU of regions on the grid of the last classifier and p the mean softmax of the region: a region that grows beyond
    its former area loses score, too. For other families without candidates, s is the probability of the object.

    Args:
        adapter: the model.
        objects: the N objects of the unmasked image.
        max_det: see `Explainer`.
    """

    def __init__(self, adapter: Adapter, objects: Objects, max_det: int) -> None:
        self._adapter, self._objects, self._max_det = adapter, objects, max_det

    def __call__(self, images: Tensor, asked: Tensor) -> Tensor:
        """[b] float32 in [0, 1] of objects `asked` [b] in images [b, 3, h, w]; a MethodError if there is no score."""
        return self._reader(images)(asked)

    def of_all(self, images: Tensor) -> Tensor:
        """[b, N] of every object in each image, from one forward; see `__call__`."""
        read, n = self._reader(images), len(self._objects)
        return torch.stack([read(self._objects.index.new_full((len(images),), i)) for i in range(n)], dim=1)

    @torch.no_grad()
    def _reader(self, images: Tensor) -> Callable[[Tensor], Tensor]:
        """`__call__` for these images, as often as needed after a single forward."""
        adapter = self._adapter
        outputs = adapter.forward(images.contiguous(memory_format=torch.channels_last), self._max_det)

        @cache
        def candidates() -> tuple[Tensor, Tensor] | None:
            try:
                return adapter.candidates(outputs)[:2]
            except MethodError:
                return None

        @torch.no_grad()
        def read(asked: Tensor) -> Tensor:
            objects = self._objects.select(asked)
            region_scores = adapter.segment_similarity(outputs, objects)
            if region_scores is not None:
                return region_scores
            predicted = candidates()
            if predicted is None:
                return self._probability(outputs, asked)
            rows = zip(*predicted, objects.network_boxes, objects.class_ids.tolist(), strict=True)
            return torch.stack([(box_iou(own[None], boxes)[0] * p[:, c]).amax() for boxes, p, own, c in rows])

        return read

    def _probability(self, outputs: Any, asked: Tensor) -> Tensor:
        if "prob" not in self._adapter.available:
            raise MethodError(
                f"this {self._adapter.family} {self._adapter.task} model lists no candidates and has no "
                "probability (target 'prob') to read"
            )
        objects = [self._objects.select(i[None]) for i in asked]
        return self._adapter.score(outputs, objects, "prob").reshape(len(asked), -1).amax(dim=1).float()
