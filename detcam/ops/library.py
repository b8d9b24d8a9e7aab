"""What the operators share: the library that they are defined in, and the checks of common arguments.

Each operator has a module with its schema, shape inference and checked Python call, a reference in
`detcam.ops.reference`, and kernels that torch's dispatcher finds: the reference is registered for every
backend, a loaded binary adds a faster kernel for its own.
"""

import math

import torch
from torch import Tensor

INPUT_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

library = torch.library.Library("detcam", "DEF")


def check_size(size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of an output."""
    if len(size) != 2 or size[0] < 1 or size[1] < 1:
        raise ValueError(f"size: expected (height, width) of at least 1, got {tuple(size)}")
    return size[0], size[1]


def check_index(index: Tensor | None, count: int, images: int, device: torch.device) -> None:
    """`index` [N] names the image of each object; it may be left out when there is one image."""
    if index is None:
        if images != 1:
            raise ValueError(f"index: expected the image of each object, as there are {images} images; got None")
        return
    if not isinstance(index, Tensor) or index.dtype != torch.int64:
        raise TypeError(f"index: expected an int64 tensor, got {getattr(index, 'dtype', type(index).__name__)}")
    if index.shape != (count,) or index.device != device:
        raise ValueError(f"index: expected [{count}] on {device}, got {list(index.shape)} on {index.device}")
    if device.type == "cpu" and count and not torch.compiler.is_compiling():
        low, high = (int(x) for x in index.aminmax())
        if low < 0 or high >= images:
            raise IndexError(f"index: expected values in [0, {images}), got {low} to {high}")


def check_window(
    window: Tensor | tuple[float, float, float, float], count: int, device: torch.device
) -> Tensor:  # [N, 4]
    """Part of the feature map that fills the output: one for all objects, or one for each."""
    if isinstance(window, Tensor):
        if not window.is_floating_point():
            raise TypeError(f"window: expected a floating-point tensor, got {window.dtype}")
        if window.shape not in ((4,), (count, 4)) or window.device != device:
            actual = f"{list(window.shape)} on {window.device}"
            raise ValueError(f"window: expected [4] or [{count}, 4] on {device}, got {actual}")
        return window.detach().float().expand(count, 4)
    left, top, right, bottom = window
    if not (all(map(math.isfinite, window)) and left < right and top < bottom):
        raise ValueError(f"window: expected finite left < right and top < bottom, got {tuple(window)}")
    # Fills, not a copy from the host: a copy would wait for the stream and could not be captured in a CUDA
    # graph.
    sides = [torch.full((), side, dtype=torch.float32, device=device) for side in window]
    return torch.stack(sides).expand(count, 4)


def list_names(dtypes: tuple[torch.dtype, ...]) -> str:
    """dtypes for an error message."""
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
