"""Backward rules for gradients in windows: one for each kind of autograd node.

A rule takes the node, the windows at each of its forward outputs (None: no gradient) and the image of each object [n].
It returns the windows at each of the node's inputs, or raises NoRule for a node that it cannot handle.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, conv_transpose2d

from detcam.engine.autograd_graph import Node, shape_of
from detcam.engine.window import Window, cut, fitted, union

aten: Any = torch.ops.aten

Windows = Sequence[Window | None]
Rule = Callable[[Node, Windows, np.ndarray], Windows]


class NoRule(Exception):
    """The node needs whole maps, or cannot be walked through at all."""


def _size(node: Node, source: int = 0) -> tuple[int, int]:
    """(h, w) of the map that the node read."""
    shape = shape_of(node.next_functions[source])
    return shape[2], shape[3]


def _only(windows: Windows) -> Window:
    """The window of a node with one output."""
    window = windows[0]
    assert window is not None
    return window


def _convolution(node: Node, windows: Windows, images: np.ndarray) -> Windows:
    window = _only(windows)
    if node.next_functions[1][0] is not None or node._saved_weight.ndim != 4:
        raise NoRule  # the weight is computed, or the convolution is not over maps
    values, weight, stride = window.values, node._saved_weight, tuple(node._saved_stride)
    if node._saved_transposed:
        if tuple(weight.shape[2:]) != stride or any(node._saved_padding) or node._saved_groups != 1:
            raise NoRule
        aligned = _aligned(window, stride, _size(node))
        return [Window(conv2d(aligned.values, weight, stride=stride), aligned.start // stride), None, None]
    size, padding, dilation = _size(node), tuple(node._saved_padding), tuple(node._saved_dilation)
    kernel = tuple(weight.shape[2:])
    if kernel == stride == (1, 1) and padding == (0, 0) and node._saved_groups == 1:
        # The transposed convolution of PyTorch has no fast path for it.
        return [Window(conv2d(values, weight.transpose(0, 1)), window.start), None, None]
    options = {"stride": stride, "groups": node._saved_groups, "dilation": dilation}
    if window.extent == shape_of((node, 0))[2:]:  # whole maps: nothing to cut off afterwards
        sides = zip(size, window.extent, stride, padding, dilation, kernel, strict=True)
        left_over = [n - ((m - 1) * s - 2 * p + d * (k - 1) + 1) for n, m, s, p, d, k in sides]
        whole = conv_transpose2d(values, weight, padding=padding, output_padding=left_over, **options)
        return [Window(whole, window.start), None, None]
    grown = conv_transpose2d(values, weight, **options)
    return [fitted(grown, window.start * stride - padding, size), None, None]


def _aligned(window: Window, factor: tuple[int, ...], size: tuple[int, int]) -> Window:
    """Windows that start and end at multiples of `factor`, for nodes that enlarge a map of `size` by it."""
    first = window.start // factor
    last = -(-(window.start + window.extent) // factor)
    height, width = (last - first).max(axis=0).tolist()
    first = np.minimum(first, np.subtract(size, (height, width)))
    return window.moved(first * factor, (height * factor[0], width * factor[1]))


def _upsample(node: Node, windows: Windows, images: np.ndarray) -> Windows:
    window = _only(windows)
    height, width = _size(node)
    full = shape_of((node, 0))
    if full[2] % height or full[3] % width:
        raise NoRule
    factor = (full[2] // height, full[3] // width)
    aligned = _aligned(window, factor, (height, width))
    summed = avg_pool2d(aligned.values, factor, divisor_override=1)
    return [Window(summed, aligned.start // factor)]


def _max_pool(node: Node, windows: Windows, images: np.ndarray) -> Windows:
    window = _only(windows)
    if any(d != 1 for d in node._saved_dilation):
        raise NoRule
    kernel, stride = node._saved_kernel_size, node._saved_stride or node._saved_kernel_size
    size = _size(node)
    start = window.start * tuple(stride) - tuple(node._saved_padding)
    extent = [(e - 1) * s + k for e, s, k in zip(window.extent, stride, kernel, strict=True)]
    chosen = cut(node._saved_result1, images, window.start, window.extent)  # [n, C, kh, kw] index of each maximum
    top, left = (torch.from_numpy(side).to(chosen.device).view(-1, 1, 1, 1) for side in start.T)
    local = (chosen // size[1] - top) * extent[1] + (chosen % size[1] - left)
    grown = window.values.new_zeros((*window.values.shape[:2], extent[0] * extent[1]))
    grown.scatter_add_(2, local.flatten(2), window.values.flatten(2))
    return [fitted(grown.unflatten(2, extent), start, size)]


def _cat(node: Node, windows: Windows, images: np.ndarray) -> Windows:
    window = _only(windows)
    if node._saved_dim not in (1, -3 % 2**64):
        raise NoRule
    channels = [None if source is None else shape_of((source, i))[1] for source, i in node.next_functions]
    unknown = channels.count(None)
    if unknown > 1:
        raise NoRule
    rest = window.values.shape[1] - sum(c for c in channels if c is not None)
    parts = window.values.split([rest if c is None else c for c in channels], dim=1)
    return [Window(part, window.start) for part in parts]


def _split(node: Node, windows: Windows, images: np.ndarray) -> Windows:
    if node._saved_dim not in (1, -3 % 2**64):
        raise NoRule
    known = [window for window in windows if window is not None]
    frame = union([Window(w.values[:, :1] * 0, w.start) for w in known], _size(node)) if len(known) > 1 else known[0]
    parts = []
    for number, window in enumerate(windows):
        channels = shape_of((node, number))[1]
        if window is None:
            parts.append(known[0].values.new_zeros((len(images), channels, *frame.extent)))
        else:
            parts.append(window.moved(frame.start, frame.extent).values)
    return [Window(torch.cat(parts, dim=1), frame.start)]


def _batch_norm(node: Node, windows: Windows, images: np.ndarray) -> Windows:
    if node._saved_training:
        raise NoRule
    window = _only(windows)
    scale = (node._saved_running_var + node._saved_eps).rsqrt()
    if node._saved_weight is not None:
        scale = scale * node._saved_weight
    return [Window(window.values * scale.to(window.values.dtype).view(-1, 1, 1), window.start), None, None]


def _add(node: Node, windows: Windows, images: np.ndarray) -> Windows:
    window = _only(windows)
    shapes = [shape_of((source, i)) if source is not None else None for source, i in node.next_functions]
    if any(shape not in (None, shape_of((node, 0))) for shape in shapes):
        raise NoRule  # broadcast: the gradient of the smaller one is a sum over the map
    scaled = window if node._saved_alpha == 1 else Window(window.values * node._saved_alpha, window.start)
    return [window, scaled]


def _mul(node: Node, windows: Windows, images: np.ndarray) -> Windows:
    window = _only(windows)
    full = shape_of((node, 0))
    products: list[Window | None] = []
    for (source, i), factor in zip(node.next_functions, ("_saved_other", "_saved_self"), strict=True):
        if source is None:
            products.append(None)
            continue
        other = getattr(node, factor)
        if shape_of((source, i)) != full or tuple(other.shape) != full:
            raise NoRule
        there = cut(other, images, window.start, window.extent)
        products.append(Window(window.values * there, window.start))
    return products


def _same(node: Node, windows: Windows, images: np.ndarray) -> Windows:
    return [_only(windows)]


def _elementwise(saved: str, backward: Callable[[Tensor, Tensor], Tensor]) -> Rule:
    """The rule of an activation function, whose derivative depends on a value that the node saved for each cell.

    Where the windows together are as large as the map, the derivative is computed once and kept with the graph, for the
    objects that follow.
    """

    def rule(node: Node, windows: Windows, images: np.ndarray) -> Windows:
        window = _only(windows)
        value, kept = getattr(node, saved), node.metadata
        if len(images) * math.prod(window.extent) < value[:, 0].numel():
            there = cut(value, images, window.start, window.extent)
            return [Window(backward(window.values, there), window.start)]
        if "slope" not in kept:
            kept["slope"] = backward(torch.ones_like(value), value)
        slope = cut(kept["slope"], images, window.start, window.extent)
        return [Window(slope * window.values, window.start)]  # in this order the product lies in memory as slopes do

    return rule


RULES: dict[str, Rule] = {
    "ConvolutionBackward0": _convolution,
    "NativeBatchNormBackward0": _batch_norm,
    "SiluBackward0": _elementwise("_saved_self", lambda g, x: aten.silu_backward(g, x)),
    "ReluBackward0": _elementwise("_saved_result", lambda g, y: aten.threshold_backward(g, y, 0)),
    "HardtanhBackward0": _elementwise("_saved_self", lambda g, x: g * ((x > 0) & (x < 6))),
    "SigmoidBackward0": _elementwise("_saved_result", lambda g, y: aten.sigmoid_backward(g, y)),
    "HardswishBackward0": _elementwise("_saved_self", lambda g, x: aten.hardswish_backward(g, x)),
    "CatBackward0": _cat,
    "SplitBackward0": _split,
    "SplitWithSizesBackward0": _split,
    "AddBackward0": _add,
    "MulBackward0": _mul,
    "CloneBackward0": _same,
    "UpsampleNearest2DBackward0": _upsample,
    "UpsampleNearest2DBackward1": _upsample,
    "MaxPool2DWithIndicesBackward0": _max_pool,
}
