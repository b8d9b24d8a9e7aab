"""Attention runner: maps from the attention weights of a detection transformer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from detcam.adapters import Adapter, LayerPlan, Target, sampling
from detcam.engine import Attentions, Captured, Sampled, WatchAttention, object_gradients
from detcam.errors import MethodError
from detcam.methods.attention import Attended, AttentionMethod
from detcam.runners.base import Maps, add_maps
from detcam.types import Objects, image_index


class AttentionRunner:
    """Maps of a method that reads attention.

    Args:
        adapter: the model.
        method: how maps are made of attention.
        target: the scalar, for methods that read gradients.
        score: from raw outputs and the objects of each picture to scalars [sum N, K].

    Raises:
        MethodError: if the model has no attention that the method can read.
    """

    def __init__(
        self,
        adapter: Adapter,
        method: AttentionMethod,
        target: Target,
        score: Callable[[Any, list[Objects]], Tensor],
    ) -> None:
        self._adapter, self._method, self._score = adapter, method, score
        self._attention = adapter.attention()
        if method.sampled_only and not self._attention.samples:
            raise MethodError(
                f"method {method.name!r}: queries of this model attend to whole maps, not to points: use 'attention'"
            )
        self.plan = LayerPlan((), cut_all=True, fuse="sum")
        self.cut, self.target, self.differentiable = True, target, method.uses_gradients
        roles = {role: list(getattr(self._attention, role)) for role in ("encoder", "queries", "cross")}
        if (
            method.uses_gradients
        ):  # have the graph start at the private view's own projections, for the weights to be in it
            for module in self._attention.holders:
                module.requires_grad_(True)
        self._watch = WatchAttention(roles, sampling)  # type: ignore[arg-type]

    def watching(self) -> AbstractContextManager[Any]:
        """See `Runner.watching`."""
        return self._watch

    def maps(self, pixels: Tensor, outputs: Any, objects: list[Objects], captured: list[Captured]) -> Maps:
        """See `Runner.maps`."""
        seen, self._watch.seen = self._watch.seen, Attentions()  # kept, it would keep the whole graph alive
        size = (pixels.shape[2], pixels.shape[3])
        images = image_index(objects, pixels.device)
        index = torch.cat([found.index for found in objects])
        maps: list[Tensor] = [torch.empty(0)] * len(images)
        if not self._method.uses_gradients:
            for image in range(len(objects)):
                members = (images == image).nonzero().flatten()
                for place, one in zip(members.tolist(), self._found(seen, image, index[members], size), strict=True):
                    maps[place] = one
            return Maps(maps, [False] * len(maps))
        columns = []
        for scalars in self._score(outputs, objects).unbind(1) if len(images) else ():
            for place, gradients in self._gradients(scalars, images, seen):
                maps[place] = self._found(seen, int(images[place]), index[place : place + 1], size, gradients)[0]
            columns.append(list(maps))
        strongest = [torch.stack(versions).amax(dim=0) for versions in zip(*columns, strict=True)]
        return Maps(strongest, [False] * len(strongest))

    def _gradients(self, scalars: Tensor, images: Tensor, seen: Attentions) -> Iterator[tuple[int, list[Tensor]]]:
        """For each object its place and the gradients of its scalar at all attention weights, without the batch."""
        tensors = seen.tensors()
        for places, gradients in object_gradients(scalars, images, tensors):
            for row, place in enumerate(places.tolist()):
                yield (
                    place,
                    [
                        torch.zeros_like(tensor[0]) if gradient is None else gradient[row]
                        for tensor, gradient in zip(tensors, gradients, strict=True)
                    ],
                )

    @torch.no_grad()
    def _found(
        self, seen: Attentions, image: int, index: Tensor, size: tuple[int, int], gradients: list[Tensor] | None = None
    ) -> Tensor:
        """[n, h, w] maps of the queries `index` [n] of one picture."""
        left = iter(gradients or ())
        combined = [
            [one.combined(image, next(left, None)) for one in role] for role in (seen.encoder, seen.queries, seen.cross)
        ]
        attended = Attended(*combined)
        rows = index if attended.cross else index + len(attended.encoder[0]) - self._attention.objects
        relevance = self._method.relevance(attended, rows)  # [n, tokens]
        if seen.cross and isinstance(seen.cross[0], Sampled):
            grids, start = [], 0
            for height, width, _ in seen.cross[0].levels:
                grids.append((start, height, width))
                start += height * width
        else:
            grids = self._adapter.grids(relevance.shape[1], size)
        if not grids:
            raise MethodError(f"method {self._method.name!r}: the tokens that this model's queries read hold no map")
        finest = max(height * width for _, height, width in grids)
        # A coarse cell's share lies on several fine ones.
        return add_maps(
            [
                relevance[:, start : start + height * width].unflatten(1, (height, width)) * (height * width / finest)
                for start, height, width in grids
            ]
        )
