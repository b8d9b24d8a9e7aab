"""The autograd graph that a forward left behind, read from its end to the captured tensors."""

from collections.abc import Sequence
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
        self._leads: dict[Node, bool] = {}
        starts = [edge_of(tensor)[0] for tensor in outputs if tensor.requires_grad]
        for start in starts:
            self._mark(start, ends)
        # Forward order is the order of sequence numbers; leaves have none and come last.
        nodes = [node for node, leads in self._leads.items() if leads]
        leaves = {node for node in nodes if not node.next_functions}
        inner = sorted((n for n in nodes if n not in leaves), key=lambda n: -n._sequence_nr())
        self.order: list[Node] = [*inner, *leaves]

    def sources(self, node: Node) -> list[Edge | None]:
        """The edges that the node hands gradients to; None where they lead to no target."""
        return [(n, i) if n is not None and self._leads.get(n) else None for n, i in node.next_functions]

    def _mark(self, start: Node, ends: set[Node]) -> None:
        """Find out for every node behind `start` whether it leads to a target; without recursion, graphs are deep."""
        stack = [(start, False)]
        while stack:
            node, children_known = stack.pop()
            children = [child for child, _ in node.next_functions if child is not None]
            if children_known:
                self._leads[node] = node in ends or any(self._leads[child] for child in children)
            elif node not in self._leads:
                self._leads[node] = False
                stack.append((node, True))
                stack += [(child, False) for child in children if child not in self._leads]
