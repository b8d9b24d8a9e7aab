"""Gradient times activation from one gain per cell: several objects in each backward through a transformer's decoder.

The derivative of a score with respect to a gain on a cell's activations is gradient times activation, summed over
channels.
"""

from typing import Any

import torch
from torch import Tensor

from detcam.adapters import Adapter
from detcam.engine import Captured, batched_gradients
from detcam.runners.base import Maps, add_maps
from detcam.types import Objects

GAIN_BYTES = 6 * 2**20  # of one object's backward through a decoder of 300 queries and 6 layers, roughly


def gain_maps(
    adapter: Adapter, captured: list[Captured], outputs: Any, objects: list[Objects], target: str, memory: int
) -> Maps | None:
    """Maps of gradient times activation, summed over channels; see `Adapter.gain_forward`.

    Args:
        adapter: the model.
        captured: the outputs of the layers of the preset "level".
        outputs: the raw outputs without gains, to check the scalars against.
        objects: the objects of each image.
        target: name of the scalars.
        memory: bytes that a chunk of objects may take, roughly.

    Returns:
        None if the model cannot run with gains, or its scalars change when it does.
    """
    maps: list[Tensor] = []
    for image, of_image in enumerate(objects):
        if not len(of_image):
            continue
        tensors = [layer.tensor[image : image + 1].detach() for layer in captured]
        run = adapter.gain_forward(tensors)
        if run is None:
            return None
        gains = [t.new_ones((1, *t.shape[2:])).requires_grad_() for t in tensors]
        with torch.enable_grad():
            scalars = adapter.score(run(gains), [of_image], target)
        alone = [group if i == image else group.select(group.index[:0]) for i, group in enumerate(objects)]
        if not torch.allclose(scalars, adapter.score(outputs, alone, target), rtol=1e-3, atol=1e-3):
            return None
        columns = []
        for column in (scalars[:, None] if scalars.ndim == 1 else scalars).unbind(1):
            chunks = [gradients for _, gradients in batched_gradients(column, gains, memory, GAIN_BYTES)]
            columns.append(add_maps([torch.cat(parts)[:, 0].float() for parts in zip(*chunks, strict=True)]))
        maps += list(torch.stack(columns).amax(dim=0))
    return Maps(maps, [not bool(raw.any()) for raw in maps])
