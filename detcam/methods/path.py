"""Methods that take gradients on the way from a baseline image to the image, at a layer."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from detcam.engine.blur import blurred
from detcam.methods.base import Method, choice, parameter

if TYPE_CHECKING:
    from detcam.adapters import Adapter, Target


class PathMethod(Method):
    """A method whose `maps` get, in place of activations, their difference from those of a baseline image.

    Gradients are taken at activations that lie between the two, F(b) + share * (F(x) - F(b)).
    """

    @abstractmethod
    def shares(self, adapter: Adapter) -> list[float]:
        """The places on the way, each in [0, 1], at which gradients are taken; their maps are averaged."""

    @abstractmethod
    def baseline_of(self, pixels: Tensor) -> Tensor:
        """The baseline b of each image x, [B, C, H, W], both as the network's input."""

    @abstractmethod
    def finished(self, raw: Tensor) -> Tensor:
        """The map [h, w] that is shown, from the mean map."""


@dataclass(frozen=True)
class LayerIG(PathMethod):
    """Layer Integrated Gradients: the effect on the score of each cell's difference from a blurred image.

    Sundararajan et al. 2017, "Axiomatic Attribution for Deep Networks", equation 1, by the midpoint rule, applied to
    the output of a layer, as Captum's LayerIntegratedGradients does; a blurred image as the baseline is due to Xu et
    al. 2020, "Attribution in Scale and Space". With many steps the maps of a layer through which all evidence passes
    sum to S(x) - S(b). The default takes one step: half way to the blurred image neither the score nor the activation
    functions are saturated, and the map finds causes that the average over the way dilutes.

    The signed map is blurred a little: neighbouring cells of opposite signs, which early layers have many of, cancel as
    they do in the network. The ReLU comes after it; before it, contours would be hot whatever the model has learnt.

    Args:
        steps: number of places on the way; 0: 4 for semantic segmenters, whose scalar, a mean over a region, may only
            react to a cause near the end of the way, and else 1.
        place: where each lies within its step, in [0, 1]; 0.5 is the midpoint.
        baseline: "blur", "mean" (each channel's mean over the image) or "zero" (zeros as the network's input).
        sigma: standard deviation of the baseline's blur, as a share of the longest side of the network's input.
        smooth: standard deviation of the blur of the map, as a share of its longest side; 0.0: none.
        contrast: "margin": the target "class" stands for "margin", the logit minus the best other class's, where the
            model has several classes; "none": for the logit.
    """

    steps: int = parameter(0, 0, 1000)
    place: float = parameter(0.5, 0.0, 1.0)
    baseline: str = choice("blur", "mean", "zero")
    sigma: float = parameter(0.025, 0.001, 1.0)
    smooth: float = parameter(0.0125, 0.0, 1.0)
    contrast: str = choice("margin", "none")

    name = "layerig"
    formula = "ReLU(G * mean_a sum_k g_k(a) (A_k - B_k)), g(a) at B + a (A - B), B of the blurred image, G a Gaussian"
    source = "Sundararajan et al. 2017, arXiv:1703.01365, eq. 1; Xu et al. 2020, arXiv:2004.03383"
    elementwise = True
    passes = "(2 + steps) F + steps N B"
    layers = "stem"

    def target(self, adapter: Adapter, target: Target) -> Target:
        logit = isinstance(target, str) and target == "class"
        return "margin" if logit and self.contrast == "margin" and "margin" in adapter.available else target

    def shares(self, adapter: Adapter) -> list[float]:
        steps = self.steps or (4 if adapter.task == "semantic" else 1)
        return [(step + self.place) / steps for step in range(steps)]

    def baseline_of(self, pixels: Tensor) -> Tensor:
        if self.baseline == "zero":
            return torch.zeros_like(pixels)
        if self.baseline == "mean":
            return pixels.mean(dim=(2, 3), keepdim=True).expand_as(pixels).contiguous()
        return blurred(pixels, self.sigma * max(pixels.shape[2:]), "replicate")

    def maps(self, acts: Tensor, grads: Tensor | None) -> Tensor:
        """See `Method.maps`; `acts` is the difference from the baseline."""
        assert grads is not None
        return (acts * grads).sum(dim=1)

    def finished(self, raw: Tensor) -> Tensor:
        return blurred(raw, self.smooth * max(raw.shape))
