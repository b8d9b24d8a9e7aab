"""Combinations of several maps of an object: each divided by its maximum, then multiplied, averaged or maximised."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from detcam.engine.blur import blurred
from detcam.errors import MethodError
from detcam.methods.base import AnyMethod, parameter
from detcam.methods.gradient import ODAM

How = Literal["product", "mean", "max"]
HOW: tuple[How, ...] = ("product", "mean", "max")


@dataclass(frozen=True)
class Part:
    """A map that takes part in a combination."""

    method: AnyMethod  # computes the map
    # As the explainer's `layers`: a preset or names of modules; "auto": the preset of the method.
    layers: str | tuple[str, ...] = "auto"
    blur: float = 0.0  # standard deviation of a Gaussian blur, in cells of the map


class Combination(AnyMethod):
    """The product, mean or maximum of several maps of an object, from several methods or layers.

    All maps come from one forward. Each map's positive part is divided by its maximum, at the finest resolution among
    them. With one method at several layers this is the multi-layer fusion of LayerCAM (Jiang et al. 2021, section
    III-C), which takes the element-wise maximum.

    Args:
        parts: at least two maps.
        how: "product", "mean" or "max".

    Raises:
        MethodError: for fewer parts or an unknown `how`.
    """

    name = "combination"
    formula = "product, mean or max over parts of ReLU(map) / max(map)"
    source = "Jiang et al. 2021, IEEE TIP 30, sec. III-C, for one method at several layers"
    reads = "as its parts"
    passes = "1 F + the further passes of its parts"
    parts: tuple[Part, ...]
    how: How

    def __init__(self, parts: Sequence[Part], how: How = "product") -> None:
        if len(parts) < 2 or how not in HOW:
            raise MethodError(f"combination: expected two or more parts and one of {HOW}, got {len(parts)} and {how!r}")
        vars(self).update(
            parts=tuple(parts),
            how=how,
            object_specific=any(part.method.object_specific for part in parts),
            caution=next((part.method.caution for part in parts if part.method.caution), None),
        )
        if type(self) is Combination:
            vars(self).update(name=f"{how}:{','.join(_spelled(part) for part in parts)}")

    def join(self, maps: list[Tensor]) -> Tensor:
        """Joined maps [n, h, w] in [0, 1] from the maps of each part, [n, h_i, w_i] float32."""
        finest = max((m.shape[1:] for m in maps), key=lambda shape: shape[0] * shape[1])
        scaled = []
        for raw, part in zip(maps, self.parts, strict=True):
            positive = blurred(raw.nan_to_num(0.0, 0.0, 0.0).clamp(min=0), part.blur)
            if positive.shape[1:] != finest:
                positive = interpolate(positive[:, None], finest, mode="bilinear")[:, 0]
            highest = positive.flatten(1).amax(dim=1).clamp(min=torch.finfo(positive.dtype).tiny)
            scaled.append(positive / highest[:, None, None])
        stack = torch.stack(scaled)
        if self.how == "max":
            return stack.amax(dim=0)
        return stack.prod(dim=0) if self.how == "product" else stack.mean(dim=0)


def _spelled(part: Part) -> str:
    layers = part.layers if isinstance(part.layers, str) else "+".join(part.layers)
    return part.method.name if layers == "auto" else f"{part.method.name}@{layers}"


@dataclass(frozen=True)
class Fused(Combination):
    """The product of two element-wise maps: at the neck's inputs and at the object's feature level.

    The map at the tensors that enter the neck accounts for the whole score but is broad; the map at the feature level
    that the object was read from is sharp but sees little context. Each over its maximum, the second blurred with a
    Gaussian of `blur` cells, they are multiplied.
    """

    blur: float = parameter(1.5, 0.0, 100.0)

    name = "fused"
    formula = "E / max E * G(L) / max G(L), E and L ReLU(sum_k g_k * A_k) at evidence and level, G a Gaussian"
    source = "this project, after Jiang et al. 2021 (fusion) and Zhao & Chan 2023 (both maps)"
    reads = "activations, gradients"
    passes = "1 F + 2 N B"

    def __post_init__(self) -> None:
        super().__post_init__()
        super().__init__([Part(ODAM(), "evidence"), Part(ODAM(), "level", self.blur)])
