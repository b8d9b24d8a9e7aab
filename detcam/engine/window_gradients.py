"""Exact gradients of many objects from one forward, each in a small window of every map.

An object's score is read at one cell of the head's output, which depends on a limited stretch of every feature map
before it: 3 x 3 cells before a 3 x 3 convolution, 5 x 5 before two of them, and so on, until somewhere in
the neck the stretch covers a good part of the image. An ordinary backward fills whole maps with zeros around that
stretch, and does so again for every object. Here the backward carries only the stretch, for all objects at once:

    captured map            the head's layers, backwards             score map
    +----------------+      +--------+    +------+    +----+         +----------------+
    | +----+         |      |        |    |      |    | a  |         |    a           |
    | | a  |  +----+ |  <-- |  a     | <- | a    | <- +----+ <--     |          b     |
    | +----+  | b  | |      +--------+    +------+    | b  |         |                |
    |         +----+ |      | b      |    | b    |    +----+         |                |
    +----------------+      +--------+    +------+     1 x 1         +----------------+
                              5 x 5         3 x 3

The forward runs once, as it would anyway, and leaves autograd's graph. `window_gradients` walks that graph from the
score map back to the captured tensors. At each node the windows [n, C, kh, kw] of n objects are one small batch, each
with its own place on the map; a rule for the kind of node (`detcam.engine.backward_rules`) says how the window grows
and computes it from the values that the forward saved, cut out at the objects' places. Nothing runs twice, and kernel
sizes, strides, upsampling and skips are read off the graph: no layer's name or type matters, and hooks or changes that
a user made to the model are included. A node without a rule (attention, global pooling, group normalisation)
gets whole maps for one object after the other and is called as autograd would call it: slower, equally exact.

`windows_agree` compares the walk with `torch.autograd.grad`.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from detcam.engine.autograd_graph import Edge, Graph, Node, edge_of, shape_of
from detcam.engine.backward_rules import RULES, NoRule
from detcam.engine.gradients import upscaling
from detcam.engine.window import Window, union


@dataclass(frozen=True)
class Seed:
    """Where the gradients of n objects start: dS/d(tensor), zero but in a window per object."""

    tensor: Tensor  # [B, C, h, w] with the graph that leads back from it
    window: Window  # the gradients, [n, C, kh, kw], and their places


# The gradients of n objects at one edge: windows of a map, or a whole tensor for each if the edge is not a map.
Gradients = Window | list[Tensor]


def window_gradients(seeds: Sequence[Seed], targets: Sequence[Tensor], images: np.ndarray) -> list[Window | None]:
    """The gradient of each object's scalar at each target.

    Args:
        seeds: where the gradients of the n objects start; those of several seeds add up.
        targets: the captured tensors, each [B, C, h, w]; the graph stays as it is.
        images: [n] int64, the image of each object.

    Returns:
        For each target the windows outside which the gradients are zero, or None if no seed depends on it.
    """
    return _Walk(seeds, targets, images).run()


class _Walk:
    """One walk back through the graph, for n objects together."""

    def __init__(self, seeds: Sequence[Seed], targets: Sequence[Tensor], images: np.ndarray) -> None:
        live = [seed for seed in seeds if seed.tensor.requires_grad]
        self._graph = Graph([seed.tensor for seed in live], targets)
        self._images, self._batch = images, targets[0].shape[0]
        self._arriving: dict[Edge, list[Gradients]] = defaultdict(list)
        for seed in live:
            self._arriving[edge_of(seed.tensor)].append(seed.window)
        self.peak = 0  # bytes of gradients held at once

    @torch.no_grad()
    def run(self) -> list[Window | None]:
        found: dict[Edge, Gradients] = {}
        for node in self._graph.order:
            outputs = [self._arrived((node, number)) for number in range(len(node._input_metadata))]
            for number, output in enumerate(outputs):
                if output is not None and (node, number) in self._graph.targets:
                    found[(node, number)] = output
            sources = self._graph.sources(node)
            if any(sources) and any(output is not None for output in outputs):
                steps = _step(node, outputs, self._images, self._batch)
                for source, gradients in zip(sources, steps, strict=True):
                    if source is not None and gradients is not None:
                        self._arriving[source].append(gradients)
                held = [part for parts in self._arriving.values() for part in parts] + [o for o in outputs if o]
                self.peak = max(self.peak, sum(map(_bytes, held)))
        return [
            _as_window(found[edge], edge, self._images, self._batch) if edge in found else None
            for edge in self._graph.targets
        ]

    def _arrived(self, edge: Edge) -> Gradients | None:
        arrived = self._arriving.pop(edge, None)
        return _sum(arrived, edge, self._images) if arrived else None


def _bytes(gradients: Gradients) -> int:
    tensors = [gradients.values] if isinstance(gradients, Window) else gradients
    return sum(tensor.nbytes for tensor in tensors)


def _step(node: Node, outputs: list[Gradients | None], images: np.ndarray, batch: int) -> Sequence[Gradients | None]:
    """From the gradients at a node's outputs to those at its inputs."""
    rule = RULES.get(node.name())
    if rule is not None:
        windows = [
            None if output is None else _as_window(output, (node, number), images, batch)
            for number, output in enumerate(outputs)
        ]
        if all(window is not None or output is None for window, output in zip(windows, outputs, strict=True)):
            try:
                return rule(node, windows, images)
            except NoRule:
                pass
    return _whole_step(node, outputs, images, batch)


def _whole_step(node: Node, outputs: list[Gradients | None], images: np.ndarray, batch: int) -> list[Gradients | None]:
    """Call the node with whole maps, for one object after the other."""
    if not callable(node):  # a function written in Python: autograd's engine alone can run it
        raise NoRule(f"cannot pass {node.name()}")
    whole = [None if o is None else _as_tensors(o, (node, i), images) for i, o in enumerate(outputs)]
    rows: list[list[Tensor | None]] = []
    for position in range(len(images)):
        returned = node(*[None if o is None else o[position] for o in whole])
        rows.append(list(returned) if isinstance(returned, tuple) else [returned])
    gathered: list[Gradients | None] = []
    for edge, column in zip(node.next_functions, zip(*rows, strict=True), strict=True):
        if edge[0] is None or any(tensor is None for tensor in column):
            gathered.append(None)
            continue
        # Gradients of broadcast inputs are summed by autograd's engine, not by the node.
        tensors = [tensor.sum_to_size(shape_of(edge)) for tensor in column if tensor is not None]
        gathered.append(_as_window(tensors, edge, images, batch) or tensors)
    return gathered


def _sum(arrived: list[Gradients], edge: Edge, images: np.ndarray) -> Gradients:
    if len(arrived) == 1:
        return arrived[0]
    windows = [part for part in arrived if isinstance(part, Window)]
    if len(windows) == len(arrived):
        return union(windows, (shape_of(edge)[2], shape_of(edge)[3]))
    parts = [_as_tensors(part, edge, images) for part in arrived]
    return [torch.stack(versions).sum(dim=0) for versions in zip(*parts, strict=True)]


def _as_window(gradients: Gradients, edge: Edge, images: np.ndarray, batch: int) -> Window | None:
    """Whole tensors [B, C, h, w] as windows as large as the map; None if they are not maps of the images."""
    if isinstance(gradients, Window):
        return gradients
    shape = shape_of(edge)
    if len(shape) != 4 or shape[0] != batch:
        return None
    rows = [tensor[image] for tensor, image in zip(gradients, images.tolist(), strict=True)]
    return Window(torch.stack(rows), np.zeros((len(rows), 2), np.int64))


def _as_tensors(gradients: Gradients, edge: Edge, images: np.ndarray) -> list[Tensor]:
    """Windows as one whole tensor [B, C, h, w] for each object."""
    return gradients.spread(shape_of(edge), images) if isinstance(gradients, Window) else gradients


def windows_agree(
    seeds: Sequence[Seed],
    targets: Sequence[Tensor],
    images: np.ndarray,
    scalars: Tensor | None = None,
) -> int:
    """Whether the windows of the seeds' objects hold autograd's gradients, to the rounding of the precision.

    Args:
        seeds, targets, images: as for `window_gradients`.
        scalars: [n] the objects' scalars, to compare with their gradients; None: those from the seeds.

    Returns:
        0 if they differ, else the largest number of bytes that the walk held at once.

    Raises:
        NoRule: if a node of the graph can run inside autograd's engine only.
    """
    tolerance = max(1e-4, 32 * torch.finfo(targets[0].dtype).eps)
    walk = _Walk(seeds, targets, images)
    windows = walk.run()
    starts = [seed for seed in seeds if seed.tensor.requires_grad]
    for position in range(len(images)):
        row, image = slice(position, position + 1), images[position : position + 1]
        dense = [seed.window.rows(row).spread(tuple(seed.tensor.shape), image)[0] for seed in starts]
        outputs = [seed.tensor for seed in starts]
        if scalars is not None:
            outputs, dense = [scalars[position]], [torch.full_like(scalars[position], upscaling(targets[0]))]
        expected: Sequence[Tensor | None] = [None] * len(targets)
        if outputs and outputs[0].requires_grad:
            expected = torch.autograd.grad(outputs, targets, dense, retain_graph=True, allow_unused=True)
        for window, whole, target in zip(windows, expected, targets, strict=True):
            zero = torch.zeros_like(target)
            actual = zero if window is None else window.rows(row).spread(tuple(target.shape), image)[0]
            truth = zero if whole is None else whole
            if not bool((truth - actual).abs().amax() <= tolerance * truth.abs().amax()):
                return 0
    return max(walk.peak, 1)
