"""Methods that read a transformer's attention: the tokens that an object's query attended to."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from detcam.methods.base import AnyMethod, parameter


@dataclass(frozen=True)
class CombinedAttention:
    """Attention of an image with its heads combined, for Q queries that read K tokens; in the order that layers ran."""

    # ("encoder", [K, K]): self-attention of the tokens, all that a model without a decoder has; others may lack it;
    # ("queries", [Q, Q]): self-attention of the queries; ("cross", [Q, K]): from the queries to the tokens.
    layers: list[tuple[str, Tensor]]

    def of(self, role: str) -> list[Tensor]:
        """The layers of one role."""
        return [layer for name, layer in self.layers if name == role]


class AttentionMethod(AnyMethod):
    """A method that turns attention into one value per query and token.

    In a model without a decoder (YOLOS) the tokens of objects and of patches share one sequence, and all of its tokens
    are queries.
    """

    reads = "attention"
    passes = "1 F"
    uses_gradients: ClassVar[bool] = False  # whether attention counts as ReLU(gradient * A), by a backward per object
    sampled_only: ClassVar[bool] = False  # whether it needs attention that samples points

    @abstractmethod
    def relevance(self, attention: CombinedAttention, rows: Tensor) -> Tensor:
        """[n, K] float32: the relevance of each token to the queries `rows` [n]."""


@dataclass(frozen=True)
class RawAttention(AttentionMethod):
    """Raw attention: cross-attention of the object's query in the last decoder layers, mean over heads and layers.

    Carion et al. 2020, "End-to-End Object Detection with Transformers", figure 6. Deformable attention reads a few
    points, each of which is spread over the four cells around it. In a model without a decoder the map is the row of
    the object's token in the last layers.
    """

    last: int = parameter(1, 1, 1024)

    name = "attention"
    formula = "mean over heads and the last layers of A[query]"
    source = "Carion et al. 2020, arXiv:2005.12872, fig. 6"

    def relevance(self, attention: CombinedAttention, rows: Tensor) -> Tensor:
        layers = (attention.of("cross") or attention.of("encoder"))[-self.last :]
        return torch.stack([layer[rows] for layer in layers]).mean(dim=0)


@dataclass(frozen=True)
class SamplingPoints(RawAttention):
    """Sampling points: deformable attention of the object's query, in all decoder layers.

    Zhu et al. 2021, "Deformable DETR: Deformable Transformers for End-to-End Object Detection", figure 5: each point
    counts with its attention weight, spread over the four cells that its bilinear sample reads (equation 3).
    """

    last: int = parameter(1024, 1, 1024)

    name = "samplingpoints"
    formula = "mean over heads and layers of sum over points p of A[query, p] * bilinear(p)"
    source = "Zhu et al. 2021, arXiv:2010.04159, eq. 3, fig. 5"
    sampled_only = True


class Rollout(AttentionMethod):
    """Attention rollout: attention multiplied through the layers, with half of each token passed on unchanged.

    Abnar & Zuidema 2020, "Quantifying Attention Flow in Transformers", section 3: A' = (A + I) / 2, mean over heads,
    multiplied over the layers. In a decoder the tokens that it reads are not changed by it, so cross-attention is a
    block of a larger matrix whose other rows are the identity. An encoder whose attention is not a matrix
    (deformable attention, or convolutions behind it) counts as the identity. The class does not matter: two objects of
    a query share a map.
    """

    name = "rollout"
    formula = "product over layers of (mean over heads of A + I) / 2, at [query]"
    source = "Abnar & Zuidema 2020, arXiv:2005.00928, sec. 3"

    def relevance(self, attention: CombinedAttention, rows: Tensor) -> Tensor:
        encoder, cross = attention.of("encoder"), attention.of("cross")
        if not cross:
            relevance = _identity(encoder)[rows]
            for layer in reversed(encoder):
                relevance = (relevance + relevance @ layer) / 2
            return relevance
        tokens, relevance = _identity(encoder), torch.zeros_like(cross[0])
        for role, layer in attention.layers:
            if role == "encoder":
                tokens = (tokens + layer @ tokens) / 2
            elif role == "queries":
                relevance = (relevance + layer @ relevance) / 2
            else:
                relevance = (relevance + (layer @ tokens if encoder else layer)) / 2
        return relevance[rows]


class ChefersRelevance(AttentionMethod):
    """Relevance through attention: attention weighted by the gradients of the object's score.

    Chefer et al. 2021, "Generic Attention-model Explainability for Interpreting Bi-Modal and Encoder-Decoder
    Transformers", equations 5 to 11, as for its DETR: with A = mean over heads of ReLU(gradient * A), R_ii += A R_ii
    in the encoder, R_qq += A R_qq and R_qi += A R_qi among the queries, and R_qi += norm(R_qq)^T A norm(R_ii) across.
    An encoder whose attention is not a matrix counts as the identity, as for rollout; deformable cross-attention counts
    by its sampling points.
    """

    name = "relevance"
    formula = "R_qi of: R_qq += A R_qq, R_qi += A R_qi, R_qi += norm(R_qq)^T A norm(R_ii), A = mean_h ReLU(dS/dA * A)"
    source = "Chefer et al. 2021, ICCV, arXiv:2103.15679, eq. 5-11"
    reads = "attention, gradients"
    passes = "1 F + N B"
    uses_gradients = True

    def relevance(self, attention: CombinedAttention, rows: Tensor) -> Tensor:
        encoder, cross = attention.of("encoder"), attention.of("cross")
        if not cross:
            alone = _identity(encoder)[rows]
            relevance = alone
            for layer in reversed(encoder):
                relevance = relevance + relevance @ layer
            return relevance - alone
        tokens, queries = _identity(encoder), _identity(attention.of("queries"))
        relevance = torch.zeros_like(cross[0])
        for role, layer in attention.layers:
            if role == "encoder":
                tokens = tokens + layer @ tokens
            elif role == "queries":
                queries, relevance = queries + layer @ queries, relevance + layer @ relevance
            else:
                across = layer @ _normalised(tokens) if encoder else layer
                relevance = relevance + _normalised(queries).T @ across
        return relevance[rows]


def _identity(layers: list[Tensor]) -> Tensor:
    """The identity for matrices of their size; of size 0 for no layer."""
    return torch.eye(len(layers[0]), dtype=layers[0].dtype, device=layers[0].device) if layers else torch.empty(0, 0)


def _normalised(relevance: Tensor) -> Tensor:
    """Equations 8 and 9: the relevance added to the identity, each row divided by its sum, plus the identity."""
    identity = torch.eye(len(relevance), dtype=relevance.dtype, device=relevance.device)
    added = relevance - identity
    sums = added.sum(dim=1, keepdim=True)
    return added / torch.where(sums > 0, sums, torch.ones_like(sums)) + identity
