"""Gain runner: several objects in each backward, for the decoder of a transformer.

It serves methods that multiply gradient and activation, where the model can be run under one gain per cell.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from detcam.adapters import Adapter
from detcam.engine import (
    Captured,
    batched_gradients,
)
from detcam.runners.base import Maps, add_maps
from detcam.types import Objects

GAIN_BYTES = 6 * 2**20  # what one object's backward through a decoder of 300 queries and 6 layers takes, roughly


def gain_maps(
    adapter: Adapter, captured: list[Captured], outputs: Any, objects: list[Objects], target: str, memory: int
) -> Maps | None:
    """Maps of gradient times activation, summed over channels, from one gain per cell; see `Adapter.gain_forward`.

    Args:
        adapter: the model.
        captured: what the layers of the preset "level" put out.
        outputs: what the model put out, to check the run under gains against.
        objects: the objects of each picture.
        target: the scalars' name.
        memory: bytes that a chunk of objects may take, roughly.

    Returns:
        None if the model cannot be run under gains, or gives other scalars when it is.
    """
    maps: list[Tensor] = []
    for image, found in enumerate(objects):
        if not len(found):
            continue
        tensors = [layer.tensor[image : image + 1].detach() for layer in captured]
        run = adapter.gain_forward(tensors)
        if run is None:
            return None
        gains = [t.new_ones((1, *t.shape[2:])).requires_grad_() for t in tensors]
        with torch.enable_grad():
            scalars = adapter.score(run(gains), [found], target)
        alone = [one if i == image else one.select(one.index[:0]) for i, one in enumerate(objects)]
        if not torch.allclose(scalars, adapter.score(outputs, alone, target), rtol=1e-3, atol=1e-3):
            return None
        columns = []
        for column in (scalars[:, None] if scalars.ndim == 1 else scalars).unbind(1):
            chunks = [gradients for _, gradients in batched_gradients(column, gains, memory, GAIN_BYTES)]
            columns.append(add_maps([torch.cat(parts)[:, 0].float() for parts in zip(*chunks, strict=True)]))
        maps += list(torch.stack(columns).amax(dim=0))
    return Maps(maps, [not bool(m.any()) for m in maps])
