"""Objects and prompts: frozen dataclasses, checked for shape on construction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor

from detcam.errors import InputError

PASSED = 0.1  # least difference of the falls by which a map passes its check


@dataclass(frozen=True)
class Objects:
    """The N objects of an image, in the order of the library's own predict call.

    Attributes:
        boxes: [N, 4] float32, (x1, y1, x2, y2) in source pixels.
        scores: [N] float32 in [0, 1].
        class_ids: [N] int64.
        labels: N class names.
        index: [N] int64, the anchor, query or proposal of each object.
        level: [N] int64, the feature level of that anchor; 0 for models with a single level.
        cells: [N, 2] int64, (row, column) of the anchor on that level's score map; zeros for models without such a map.
        network_boxes: [N, 4] float32, the boxes in pixels of the network's input.
        mask_logits: [N, h, w] float32 at the model's mask resolution, or None.
        masks: [N, H, W] bool in source pixels, or in those of the object's tile, as the library's post-processing makes
            them, or None.
        proposals: [N, 4] float32 xyxy in pixels of the network's input, the proposals of a two-stage model or the
            prompts of a promptable one (a point has no size), or None.
        words: for each object the words of its phrase and their probabilities, for models that read phrases word by
            word (see `detcam.adapters.transformers.grounding_dino`), or None.

    Raises:
        InputError: if a shape does not fit N.
    """

    boxes: Tensor
    scores: Tensor
    class_ids: Tensor
    labels: tuple[str, ...]
    index: Tensor
    level: Tensor
    cells: Tensor
    network_boxes: Tensor
    mask_logits: Tensor | None = field(default=None, repr=False)
    masks: Tensor | None = field(default=None, repr=False)
    proposals: Tensor | None = field(default=None, repr=False)
    words: tuple[tuple[tuple[str, float], ...], ...] | None = None

    def __post_init__(self) -> None:
        n = len(self.labels)
        expected = {
            "boxes": (n, 4),
            "scores": (n,),
            "class_ids": (n,),
            "index": (n,),
            "level": (n,),
            "cells": (n, 2),
            "network_boxes": (n, 4),
        }
        for name, shape in expected.items():
            actual = tuple(getattr(self, name).shape)
            if actual != shape:
                raise InputError(f"Objects.{name}: expected shape {shape}, got {actual}")
        for name, masks in (("mask_logits", self.mask_logits), ("masks", self.masks)):
            if masks is not None and (masks.ndim != 3 or len(masks) != n):
                raise InputError(f"Objects.{name}: expected shape ({n}, h, w), got {tuple(masks.shape)}")

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    def joined(cls, parts: Sequence[Objects]) -> Objects:
        """The objects of several images in turn."""
        kept = [part for part in parts if len(part)] or parts[:1]
        given = {each.name: [getattr(part, each.name) for part in kept] for each in fields(cls)}
        rows: dict[str, Any] = {
            name: torch.cat(values) if isinstance(values[0], Tensor) else values[0] and tuple(chain(*values))
            for name, values in given.items()
        }
        return cls(**rows)

    def select(self, keep: Tensor) -> Objects:
        """The objects at the positions `keep` ([K] int64), in that order."""
        return replace(
            self,
            boxes=self.boxes[keep],
            scores=self.scores[keep],
            class_ids=self.class_ids[keep],
            labels=tuple(self.labels[i] for i in keep.tolist()),
            index=self.index[keep],
            level=self.level[keep],
            cells=self.cells[keep],
            network_boxes=self.network_boxes[keep],
            mask_logits=None if self.mask_logits is None else self.mask_logits[keep],
            masks=None if self.masks is None else self.masks[keep],
            proposals=None if self.proposals is None else self.proposals[keep],
            words=None if self.words is None else tuple(self.words[i] for i in keep.tolist()),
        )


@dataclass(frozen=True)
class Prompt:
    """A point, box or mask that the user gave.

    Attributes:
        kind: its kind.
        box: (x1, y1, x2, y2) in source pixels: the box, the outer edges of the mask, or the point, without any size.
        mask: [H, W] bool in source pixels: the point's pixel, all pixels that the box touches, or the mask.
        class_id: the class to explain; None: the model's class there.
    """

    kind: Literal["point", "box", "mask"]
    box: tuple[float, float, float, float]
    mask: Tensor = field(repr=False)
    class_id: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """The prompt as plain numbers; a mask as the number of its pixels."""
        given = {"point": list(self.box[:2]), "box": list(self.box), "mask": int(self.mask.sum())}[self.kind]
        return {self.kind: given} | ({} if self.class_id is None else {"class_id": self.class_id})


@dataclass(frozen=True)
class Check:
    """What became of an object's score when the hottest pixels of its map were hidden.

    The score s is the largest IoU with the object's box times the probability of its class, over all predictions for
    the changed image. A fall is (s0 - s) / s0: 1 where nothing is left, negative where s rises; None if s0 is 0.

    Attributes:
        share: of the image that was hidden, in [0, 1].
        score: s0, of the unchanged image.
        hottest: fall without the hottest pixels of the map.
        random: mean fall without as many pixels in random blocks.
        shuffled: fall without the hottest pixels of the map of a model with shuffled weights, for the same object.
    """

    share: float
    score: float
    hottest: float | None
    random: float | None
    shuffled: float | None

    @property
    def passed(self) -> bool:
        """Whether the score falls by a tenth more than for both others."""
        others = [fall for fall in (self.random, self.shuffled) if fall is not None]
        return self.hottest is not None and self.hottest >= max(others, default=0.0) + PASSED

    def sentence(self) -> str:
        """The check in words: the verdict, the changes of the score, and how much of the image was hidden."""
        hottest, random, shuffled = map(_change, (self.hottest, self.random, self.shuffled))
        return (
            f"check {'passed' if self.passed else 'not passed'}: score {hottest} without the hottest "
            f"{100 * self.share:.2g} % of the image, {random} without random pixels, "
            f"{shuffled} by a map of shuffled weights"
        )


def _change(fall: float | None) -> str:
    return "undefined" if fall is None else f"{round(-100 * fall):+d} %"


def image_index(objects: list[Objects], device: torch.device) -> Tensor:
    """[sum N] int64: the image of each object, for the objects of all images of a batch."""
    counts = torch.tensor([len(o) for o in objects], device=device)
    return torch.repeat_interleave(torch.arange(len(objects), device=device), counts)
