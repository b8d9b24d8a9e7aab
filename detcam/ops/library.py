"""The library that the operators are defined in, and checks of their common arguments.

Each operator has a module with its schema, shape inference and checked Python call, a reference in
`detcam.ops.reference`, and kernels that torch's dispatcher finds: the reference is registered for every
backend, and a loaded binary adds a faster kernel for its backend.
"""

import reprlib
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import torch
from torch import Tensor

INPUT_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
INTEGERS = (int, np.integer, torch.SymInt)
NUMBERS = (*INTEGERS, float, np.floating, torch.SymFloat)
LARGEST_SIDE = 2**24 - 1  # float32 counts pixels and cells up to here; the kernels check it too
LARGEST = torch.finfo(torch.float32).max

library = torch.library.Library("detcam", "DEF")


def register_gradients(name: str, reference: Callable[..., Tensor]) -> None:
    """Register the gradients of an operator's first two inputs, through its reference: no intermediates are kept."""

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*(value if isinstance(value, Tensor) else None for value in inputs))
        ctx.options = [None if isinstance(value, Tensor) else value for value in inputs]

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = zip(ctx.saved_tensors, ctx.options, strict=True)
        inputs = [option if tensor is None else tensor for tensor, option in saved]
        twice = torch.is_grad_enabled()  # inside a backward pass that is itself recorded
        needed = ctx.needs_input_grad[:2]
        wanted = [x for x, is_needed in zip(inputs[:2], needed, strict=True) if is_needed]
        with torch.enable_grad():
            result = reference(*inputs)
            found = iter(torch.autograd.grad(result, wanted, grad, create_graph=twice, materialize_grads=True))
        return (*(next(found) if is_needed else None for is_needed in needed), *[None] * len(inputs[2:]))

    torch.library.register_autograd(f"detcam::{name}", backward, setup_context=setup, lib=library)


def check_tensor(name: str, value: Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
    """Check that `value` is a dense tensor of one of `dtypes`."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")
    if not _is_dense(value):
        raise TypeError(f"{name}: expected a dense tensor, got {_kind(value)}")
    if value.dtype not in dtypes:
        raise TypeError(f"{name}: expected dtype {list_names(dtypes)}, got {value.dtype}")


def check_choice(name: str, value: str, choices: Collection[str]) -> None:
    """Check that `value` is one of the names in `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {reprlib.repr(value)}")


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
    if out.is_neg():
        raise ValueError("out: expected memory that holds its values, got a lazily negated view")
    start, end = _memory(out)
    for name, value in inputs.items():
        if value is not None and max(start, _memory(value)[0]) < min(end, _memory(value)[1]):
            raise ValueError(f"out: expected separate memory, got memory of {name}")


def _memory(tensor: Tensor) -> tuple[int, int]:
    """First and last address, exclusive."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    start = tensor.data_ptr()
    return start, start + (last + 1) * tensor.element_size() if tensor.numel() else start


def check_boxes(boxes: Tensor, count: int, device: torch.device) -> Tensor:
    """Corners of one box per object in pixels, as float32 [N, 4]."""
    if not _is_dense(boxes) or not boxes.is_floating_point():
        raise TypeError(f"boxes: expected a floating-point tensor, got {_kind(boxes)}")
    if boxes.shape != (count, 4) or boxes.device != device:
        raise ValueError(f"boxes: expected [{count}, 4] on {device}, got {list(boxes.shape)} on {boxes.device}")
    return boxes.detach().float()


def check_size(size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of an output."""
    if not isinstance(size, (tuple, list)) or not all(isinstance(side, INTEGERS) for side in size):
        raise TypeError(f"size: expected (height, width) as whole numbers, got {reprlib.repr(size)}")
    if len(size) != 2 or not 1 <= size[0] <= LARGEST_SIDE or not 1 <= size[1] <= LARGEST_SIDE:
        raise ValueError(f"size: expected (height, width), both in [1, 2^24), got {reprlib.repr(tuple(size))}")
    return size[0], size[1]


def check_index(index: Tensor | None, count: int, images: int, device: torch.device) -> None:
    """`index` [N] names the image of each object; it may be left out when there is one image."""
    if index is None:
        if images != 1:
            raise ValueError(f"index: expected the image of each object, as there are {images} images; got None")
        return
    if not _is_dense(index) or index.dtype != torch.int64:
        raise TypeError(f"index: expected an int64 tensor, got {_kind(index)}")
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
        if not _is_dense(window) or not window.is_floating_point():
            raise TypeError(f"window: expected a floating-point tensor, got {_kind(window)}")
        if window.shape not in ((4,), (count, 4)) or window.device != device:
            actual = f"{list(window.shape)} on {window.device}"
            raise ValueError(f"window: expected [4] or [{count}, 4] on {device}, got {actual}")
        return window.detach().float().expand(count, 4)
    check_sides(window)
    # Fills, not a copy from the host: a copy would wait for the stream and could not be captured in a CUDA graph.
    sides = [torch.full((), side, dtype=torch.float32, device=device) for side in window]
    return torch.stack(sides).expand(count, 4)


def check_sides(window: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of a window that is the same for all objects."""
    if not isinstance(window, (tuple, list)) or not all(isinstance(side, NUMBERS) for side in window):
        raise TypeError(f"window: expected (left, top, right, bottom) as numbers, got {reprlib.repr(window)}")
    if len(window) != 4:
        raise ValueError(f"window: expected (left, top, right, bottom), got {len(window)} numbers")
    left, top, right, bottom = window
    if not (-LARGEST <= left < right <= LARGEST and -LARGEST <= top < bottom <= LARGEST):
        actual = reprlib.repr(tuple(window))
        raise ValueError(f"window: expected finite left < right and top < bottom, got {actual}")
    return left, top, right, bottom


def _is_dense(value: object) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided


def _kind(value: object) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    return str(value.dtype if _is_dense(value) else value.layout)


def list_names(dtypes: tuple[torch.dtype, ...]) -> str:
    """dtypes for an error message."""
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
