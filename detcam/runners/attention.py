"""Attention runner: maps from the attention weights of a detection transformer."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from detcam.adapters import LayerPlan, sampling
from detcam.engine import Captured, Sampled, Seen, WatchAttention, object_gradients
from detcam.errors import MethodError
from detcam.methods.attention import AttentionMethod, CombinedAttention
from detcam.runners.base import Maps, Request, add_maps, scalars_of
from detcam.types import Objects, image_index


class AttentionRunner:
    """Maps of a method that reads attention.

    Args:
        method: how maps are made of attention.
        request: the model, and the target for methods that read gradients.

    Raises:
        MethodError: if the model has no attention that the method can read.
    """

    def __init__(self, method: AttentionMethod, request: Request) -> None:
        self._adapter, self._method = request.adapter, method
        self._attention = request.adapter.attention()
        if method.sampled_only and not self._attention.samples:
            raise MethodError(
                f"method {method.name!r}: queries of this model attend to whole maps, not to points: use 'attention'"
            )
        self.plan = LayerPlan((), cut_all=True, fuse="sum")
        self.cut, self.target, self.differentiable = True, request.target, method.uses_gradients
        roles = {role: list(getattr(self._attention, role)) for role in ("encoder", "queries", "cross")}
        if method.uses_gradients:
            for module in self._attention.holders:
                module.requires_grad_(True)  # of the private view: the graph must start before the attention weights
        self._watch = WatchAttention(roles, sampling)  # type: ignore[arg-type]

    def watching(self) -> AbstractContextManager[Any]:
        """See `Runner.watching`."""
        return self._watch

    def maps(self, pixels: Tensor, outputs: Any, objects: list[Objects], captured: list[Captured]) -> Maps:
        """See `Runner.maps`."""
        seen, self._watch.seen = self._watch.seen, []  # a reference would keep the whole graph alive
        size = (pixels.shape[2], pixels.shape[3])
        images = image_index(objects, pixels.device)
        index = torch.cat([of_image.index for of_image in objects])
        maps: list[Tensor] = [torch.empty(0)] * len(images)
        if not self._method.uses_gradients:
            for image in range(len(objects)):
                members = (images == image).nonzero().flatten()
                rows = self._relevance(seen, image, index[members], size)
                for place, raw in zip(members.tolist(), rows, strict=True):
                    maps[place] = raw
            return Maps(maps, [False] * len(maps))
        columns = []
        scalars = scalars_of(self._adapter, self.target, outputs, objects) if len(images) else pixels.new_empty(0, 0)
        for column in scalars.unbind(1):
            for place, gradients in self._gradients(column, images, seen):
                query = index[place : place + 1]
                maps[place] = self._relevance(seen, int(images[place]), query, size, gradients)[0]
            columns.append(list(maps))
        strongest = [torch.stack(versions).amax(dim=0) for versions in zip(*columns, strict=True)]
        return Maps(strongest, [False] * len(strongest))

    def _gradients(self, scalars: Tensor, images: Tensor, seen: Seen) -> Iterator[tuple[int, list[Tensor]]]:
        """Each object's place and the gradients of its scalar at all attention weights, without the batch dimension."""
        tensors = [layer.weights for _, layer in seen]
        for places, gradients in object_gradients(scalars, images, tensors):
            for row, place in enumerate(places.tolist()):
                pairs = zip(tensors, gradients, strict=True)
                yield place, [torch.zeros_like(tensor[0]) if g is None else g[row] for tensor, g in pairs]

    @torch.no_grad()
    def _relevance(
        self, seen: Seen, image: int, index: Tensor, size: tuple[int, int], gradients: list[Tensor] | None = None
    ) -> Tensor:
        """[n, h, w] maps of the queries `index` [n] of an image."""
        left = iter(gradients or ())
        layers = [(role, layer.combined(image, next(left, None))) for role, layer in seen]
        combined = CombinedAttention(_side_by_side(layers))
        first = self._attention.objects is None or bool(combined.of("cross"))  # else objects' tokens are the last
        rows = index if first else index + len(layers[0][1]) - (self._attention.objects or 0)
        relevance = self._method.relevance(combined, rows)  # [n, tokens]
        grids = self._grids(seen, relevance.shape[1], size)
        if not grids:
            raise MethodError(f"method {self._method.name!r}: the tokens that this model's queries read form no map")
        finest = max(height * width for _, height, width in grids)
        # A coarse cell's share is spread over several fine cells.
        return add_maps([relevance[:, at : at + h * w].unflatten(1, (h, w)) * (h * w / finest) for at, h, w in grids])

    def _grids(self, seen: Seen, tokens: int, size: tuple[int, int]) -> list[tuple[int, int, int]]:
        """(first token, rows, columns) of each map among the tokens."""
        levels = next((layer.levels for role, layer in seen if role == "cross" and isinstance(layer, Sampled)), ())
        if not levels:
            return self._adapter.grids(tokens, size)
        grids, start = [], 0
        for height, width, _ in levels:
            grids.append((start, height, width))
            start += height * width
        return grids


def _side_by_side(layers: Sequence[tuple[str, Tensor]]) -> list[tuple[str, Tensor]]:
    """The layers, those that cross to one of several maps [Q, K_l] as attention to all maps in turn [Q, sum K_l].

    Mask2Former's decoder layers take turns at three maps, which are told apart by their sizes.
    """
    counts = list(dict.fromkeys(layer.shape[1] for role, layer in layers if role == "cross"))

    def wide(layer: Tensor) -> Tensor:
        place = counts.index(layer.shape[1])
        return pad(layer, (sum(counts[:place]), sum(counts[place + 1 :])))

    return [(role, wide(layer) if role == "cross" else layer) for role, layer in layers]
