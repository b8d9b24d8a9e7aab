"""Methods that read gradients at the network's input: one value for every pixel.

Each is a sweep over changed versions of the image: one forward serves all objects, and each object's score has a
backward through the whole model. Colours count as in the network's input, after normalisation.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from detcam.engine.gradients import scaled_gradients
from detcam.engine.sweeps import Probe
from detcam.errors import MethodError, TargetError
from detcam.methods.base import MOST, SweepMethod, parameter

RECTIFIERS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish)


class PixelMethod(SweepMethod):
    """A method that reads gradients at the network's input."""

    reads = "input gradients"
    passes = "2 F + N B"


def gradients_at(scores: Tensor, tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    """The float32 gradients of an image's scores [M] at `tensors` [1, ...]; a TargetError if all have none."""
    if not scores.requires_grad:
        raise TargetError(
            "the scores have no gradient at the network's input: no_grad, detach or int8 in the forward end it: "
            "remove them, or use a method that needs none, e.g. 'rise'"
        )
    with torch.enable_grad():
        rows = scores.unbind()
    for score in rows:
        found = scaled_gradients(score, tensors)
        yield [(torch.zeros_like(t) if g is None else g)[0].float() for t, g in zip(tensors, found, strict=True)]


def input_gradients(probe: Probe, image: Tensor) -> Tensor:
    """[M, 3, H, W] float32: the gradient of each score at a version [3, H, W] of the probe's image."""
    with torch.enable_grad():
        leaf = image.detach().clone()[None].requires_grad_()
        return torch.stack([gradients[0] for gradients in gradients_at(probe.scores(leaf)[0], [leaf])])


def noisy_versions(probe: Probe, samples: int, deviation: float, seed: int) -> Iterator[Tensor]:
    """The image [3, H, W] with Gaussian noise, `deviation` times its range of values strong, `samples` times.

    Reports progress after each.
    """
    generator = torch.Generator().manual_seed(seed)
    image = probe.image
    strength = deviation * float(image.max() - image.min())
    for done in range(1, samples + 1):
        noise = torch.randn(image.shape, generator=generator)
        yield image + (strength * noise).to(image)
        report(probe, done, samples)


def report(probe: Probe, done: int, total: int) -> None:
    """Call the probe's progress function."""
    if probe.progress is not None:
        probe.progress(done, total)


class Gradient(PixelMethod):
    """Vanilla gradient: the absolute rate of change of the score with each pixel.

    Simonyan et al. 2013, "Deep Inside Convolutional Networks: Visualising Image Classification Models and Saliency
    Maps", section 3.1: the largest absolute value over the colours.
    """

    name = "gradient"
    formula = "max_colour |dS/dx|"
    source = "Simonyan et al. 2013, arXiv:1312.6034, sec. 3.1"

    def sweep(self, probe: Probe, layer: str) -> Tensor:
        return input_gradients(probe, probe.image).abs().amax(dim=1)


class GradientXInput(PixelMethod):
    """Gradient times input: each pixel's contribution to a score that is linear around it.

    Shrikumar et al. 2016, "Not Just a Black Box: Learning Important Features Through Propagating Activation
    Differences", section 2; signed, summed over the colours.
    """

    name = "gradientxinput"
    formula = "ReLU(sum_colour x dS/dx)"
    source = "Shrikumar et al. 2016, arXiv:1605.01713"

    def sweep(self, probe: Probe, layer: str) -> Tensor:
        return (input_gradients(probe, probe.image) * probe.image.float()).sum(dim=1)


@dataclass(frozen=True)
class SmoothGrad(PixelMethod):
    """SmoothGrad: the gradient averaged over noisy versions of the image.

    Smilkov et al. 2017, "SmoothGrad: removing noise by adding noise", section 2: the largest absolute value of the mean
    over the colours, as for the vanilla gradient. `deviation` is a share of the range of the input's values; the paper
    takes 10 to 20 % and 50 samples.
    """

    samples: int = parameter(25, 1, MOST)
    deviation: float = parameter(0.15, 0.0, 100.0)
    seed: int = parameter(0, 0, MOST)

    name = "smoothgrad"
    formula = "max_colour |mean_i dS/dx (x + noise_i)|"
    source = "Smilkov et al. 2017, arXiv:1706.03825"
    passes = "(1 + samples) F + N samples B"

    def sweep(self, probe: Probe, layer: str) -> Tensor:
        total = torch.zeros((), device=probe.image.device)
        for version in noisy_versions(probe, self.samples, self.deviation, self.seed):
            total = total + input_gradients(probe, version)
        return (total / self.samples).abs().amax(dim=1)


@dataclass(frozen=True)
class IntegratedGradients(PixelMethod):
    """Integrated Gradients: the gradient averaged along the line from a blank image, times the difference to it.

    Sundararajan et al. 2017, "Axiomatic Attribution for Deep Networks", equation 1, with the image of zeros as the
    baseline (black, or the mean colour where the model normalises its input) and the integral by Gauss and Legendre's
    rule of `steps` points. Signed, summed over the colours: all cells together give the score's difference.
    """

    steps: int = parameter(24, 1, 10_000)

    name = "integratedgradients"
    formula = "ReLU(sum_colour x int_0^1 dS/dx (a x) da)"
    source = "Sundararajan et al. 2017, arXiv:1703.01365, eq. 1"
    passes = "(1 + steps) F + N steps B"

    def sweep(self, probe: Probe, layer: str) -> Tensor:
        nodes, weights = np.polynomial.legendre.leggauss(self.steps)  # on [-1, 1], the weights add up to 2
        total = torch.zeros((), device=probe.image.device)
        for done, (node, weight) in enumerate(zip(nodes.tolist(), weights.tolist(), strict=True), start=1):
            total = total + weight / 2 * input_gradients(probe, (1 + node) / 2 * probe.image)
            report(probe, done, self.steps)
        return (total * probe.image.float()).sum(dim=1)


@contextmanager
def guided(model: nn.Module) -> Iterator[None]:
    """Within, only positive gradients pass back through the model's rectifiers; a MethodError if the model has none."""
    rectifiers = [module for module in model.modules() if isinstance(module, RECTIFIERS)]
    if not rectifiers:
        raise MethodError("the model has no rectifier modules (ReLU, SiLU, GELU, ...) to guide: use 'gradient'")
    handles = [module.register_forward_hook(_guide) for module in rectifiers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _guide(module: nn.Module, args: Any, output: Tensor) -> None:
    if output.requires_grad:
        output.register_hook(lambda gradient: gradient.clamp(min=0))


class GuidedBackprop(PixelMethod):
    """Guided backpropagation: the gradient with its negative parts dropped at every rectifier.

    Springenberg et al. 2014, "Striving for Simplicity: The All Convolutional Net", section 3.4, written for ReLU; at
    smooth rectifiers such as SiLU the negative part of the incoming gradient is dropped and their slope stays.
    Rectifiers that a model calls as functions rather than modules are not changed.
    """

    name = "guidedbackprop"
    formula = "max_colour |dS/dx|, gradients clamped to >= 0 behind every rectifier"
    source = "Springenberg et al. 2014, arXiv:1412.6806, sec. 3.4"
    caution = (
        "guided backpropagation fails the parameter randomisation check (Adebayo et al. 2018): it shows edges of the "
        "image, hardly what this model learned"
    )

    def sweep(self, probe: Probe, layer: str) -> Tensor:
        with guided(probe.module):
            return input_gradients(probe, probe.image).abs().amax(dim=1)
