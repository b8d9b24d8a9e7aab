"""What the operators share: the library that they are defined in, and the checks of common arguments.

Each operator has a module with its schema, shape inference and checked Python call, a reference in
`detcam.ops.reference`, and kernels that torch's dispatcher finds: the reference is registered for every
backend, a loaded binary adds a faster kernel for its own.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

INPUT_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

library = torch.library.Library("detcam", "DEF")


def recompute_gradients(
    ctx: Any, grad: Tensor, reference: Callable[..., Tensor], first: Tensor, second: Tensor, *rest: Any
) -> list[Tensor | None]:
    """Gradients of an operator's first two inputs, through its reference, instead of keeping intermediates."""
    twice = torch.is_grad_enabled()  # inside a backward pass that is itself recorded
    wanted = [x for x, needed in zip((first, second), ctx.needs_input_grad[:2], strict=True) if needed]
    with torch.enable_grad():
        result = reference(first, second, *rest)
        found = iter(torch.autograd.grad(result, wanted, grad, create_graph=twice, materialize_grads=True))
    return [next(found) if needed else None for needed in ctx.needs_input_grad[:2]]


def check_tensor(name: str, value: Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
    """That `value` is a tensor of one of `dtypes`."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")
    if value.dtype not in dtypes:
        raise TypeError(f"{name}: expected dtype {list_names(dtypes)}, got {value.dtype}")


def check_out(out: Tensor, shape: tuple[int, ...], dtype: torch.dtype, **inputs: Tensor | None) -> None:
    """That `out` can be written while `inputs` are read, and autograd does not expect to follow."""
    check_tensor("out", out, (dtype,))
    device = next(value.device for value in inputs.values() if value is not None)
    if out.shape != shape or out.device != device or not out.is_contiguous():
        actual = f"{list(out.shape)} on {out.device} with strides {out.stride()}"
        raise ValueError(f"out: expected contiguous {list(shape)} on {device}, got {actual}")
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (out, *inputs.values())):
        raise ValueError("out: carries no gradient, and something here requires one: use torch.no_grad() or no out")
    if torch.compiler.is_compiling() or out.is_meta:
        return  # without memory, there is no overlap to find
    start, end = _memory(out)
    for name, value in inputs.items():
        if value is not None and max(start, _memory(value)[0]) < min(end, _memory(value)[1]):
            raise ValueError(f"out: expected memory of its own, got some of {name}")


def _memory(tensor: Tensor) -> tuple[int, int]:
    """First and last address, exclusive."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    start = tensor.data_ptr()
    return start, start + (last + 1) * tensor.element_size() if tensor.numel() else start


def check_boxes(boxes: Tensor, count: int, device: torch.device) -> Tensor:
    """Corners of one box per object in pixels, as float32 [N, 4]."""
    if not isinstance(boxes, Tensor) or not boxes.is_floating_point():
        raise TypeError(f"boxes: expected a floating-point tensor, got {getattr(boxes, 'dtype', type(boxes).__name__)}")
    if boxes.shape != (count, 4) or boxes.device != device:
        raise ValueError(f"boxes: expected [{count}, 4] on {device}, got {list(boxes.shape)} on {boxes.device}")
    return boxes.detach().float()


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
