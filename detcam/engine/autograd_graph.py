"""The autograd graph that a forward left behind, read from its end to the captured tensors."""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor
from torch.autograd.graph import get_gradient_edge

Node = Any  # torch.autograd.graph.Node, with the saved tensors that each kind of node has
Edge = tuple[Node, int]  # a node and which of its forward outputs


def edge_of(tensor: Tensor) -> Edge:
    """The node whose gradient input is the gradient of `tensor`, and its number there."""
    edge = get_gradient_edge(tensor)
    return edge.node, edge.output_nr


def shape_of(edge: Edge) -> tuple[int, ...]:
    """The shape of the forward output that the edge stands for."""
    node, number = edge
    return tuple(node._input_metadata[number].shape)


class Graph:
    """The part of an autograd graph between some outputs and some tensors before them.

    Args:
        outputs: the tensors that gradients start from.
        targets: the tensors whose gradients are wanted; leaves or not.
    """

    def __init__(self, outputs: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
        self.targets = [edge_of(tensor) for tensor in targets]
        ends = {node for node, _ in self.targets}
        nodes = nodes_behind(edge_of(tensor)[0] for tensor in outputs if tensor.requires_grad)
        # Forward order is the order of sequence numbers; leaves have none and come last.
        inner = sorted((node for node in nodes if node.next_functions), key=lambda node: node._sequence_nr())
        leaves = [node for node in nodes if not node.next_functions]
        self._leads: set[Node] = set()
        for node in [*leaves, *inner]:
            if node in ends or any(source in self._leads for source, _ in node.next_functions):
                self._leads.add(node)
        self.order: list[Node] = [node for node in [*reversed(inner), *leaves] if node in self._leads]

    def sources(self, node: Node) -> list[Edge | None]:
        """The edges that the node hands gradients to; None where they lead to no target."""
        return [(n, i) if n in self._leads else None for n, i in node.next_functions]


def nodes_behind(starts: Iterable[Node]) -> list[Node]:
    """The nodes of the graph from some nodes back to the leaves."""
    nodes = list(dict.fromkeys(starts))
    seen = {None, *nodes}
    for node in nodes:  # which grows
        found = [source for source, _ in node.next_functions if source not in seen]
        nodes += dict.fromkeys(found)
        seen.update(found)
    return nodes
