"""Sweeps that read gradients at a layer, or at all of them, for changed versions of the image."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from detcam.engine.capture import Capture
from detcam.engine.sweeps import Probe
from detcam.methods.base import MOST, SweepMethod, parameter
from detcam.methods.gradient import EPSILON, GradCAM
from detcam.methods.pixel import GuidedBackprop, PixelMethod, gradients_at, guided, input_gradients, noisy_versions

DUST = 1e-7  # keeps the quotient finite where a map is constant; pytorch-grad-cam uses the same


def layer_gradients(probe: Probe, image: Tensor, layer: str) -> Tensor:
    """[M, C, h, w] float32: the gradient of each score at a layer, for a version [3, H, W] of the probe's image."""
    names = {name.split("[")[0].split("#")[0] for name in probe.layers}
    modules = {name: probe.module.get_submodule(name) for name in names}
    with torch.enable_grad():
        with Capture(modules, probe.cut_all, **probe.layout) as capture:
            scores = probe.scores(image[None])[0]
        tensor = next(c.tensor for c in capture.captured if c.name == layer)
        return torch.stack([gradients[0] for gradients in gradients_at(scores, [tensor])])


@dataclass(frozen=True)
class SmoothGradCAMPlusPlus(SweepMethod):
    """Smooth Grad-CAM++: Grad-CAM++ with its derivatives averaged over noisy versions of the image.

    Omeiza et al. 2019, "Smooth Grad-CAM++: An Enhanced Inference Level Visualization Technique for Deep Convolutional
    Neural Network Models": g, g^2 and g^3 are averaged, the activations are those of the image itself. `deviation`
    is a share of the range of the input's values. It has the poles of Grad-CAM++ (see there).
    """

    samples: int = parameter(10, 1, MOST)
    deviation: float = parameter(0.15, 0.0, 100.0)
    seed: int = parameter(0, 0, MOST)

    name = "smoothgradcam++"
    formula = "ReLU(sum_k w_k A_k), w = sum_ij a ReLU(D1), a = D2 / (2 D2 + (sum_ij A) D3), Dn = mean_i g_i^n"
    source = "Omeiza et al. 2019, arXiv:1908.01224"
    reads = "activations, gradients"
    passes = "(1 + L samples) F + N L samples B, for L layers"

    def sweep(self, probe: Probe, layer: str) -> Tensor:
        acts = probe.layers[layer]
        first = second = third = torch.zeros((), device=acts.device)
        for version in noisy_versions(probe, self.samples, self.deviation, self.seed):
            grads = layer_gradients(probe, version, layer)
            first, second, third = first + grads, second + grads**2, third + grads**3
        second, third = second / self.samples, third / self.samples
        total = acts.sum(dim=(1, 2))[:, None, None]
        alpha = second / (2 * second + total * third + EPSILON)
        weights = (alpha * (first / self.samples).clamp(min=0)).sum(dim=(2, 3))  # [M, C]
        return torch.einsum("mc,chw->mhw", weights, acts)


class GuidedGradCAM(SweepMethod):
    """Guided Grad-CAM: guided backpropagation times the enlarged Grad-CAM map.

    Selvaraju et al. 2017, "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", section
    3.1.
    """

    name = "guidedgradcam"
    formula = "ReLU(Grad-CAM), enlarged, times guided backpropagation"
    source = "Selvaraju et al. 2017, arXiv:1610.02391, sec. 3.1"
    reads = "activations, gradients, input gradients"
    passes = "(1 + 2 L) F + 2 N L B, for L layers"
    caution = GuidedBackprop.caution

    def sweep(self, probe: Probe, layer: str) -> Tensor:
        acts, grads = probe.layers[layer], layer_gradients(probe, probe.image, layer)
        coarse = GradCAM().maps(acts.expand(len(grads), -1, -1, -1), grads).clamp(min=0)
        with guided(probe.module):
            fine = input_gradients(probe, probe.image).abs().amax(dim=1)
        return interpolate(coarse[:, None], probe.size, mode="bilinear")[:, 0] * fine


class FullGrad(PixelMethod):
    """FullGrad: the contributions of the pixels and of every layer's biases, each stretched to [0, 1], summed.

    Srinivas & Fleuret 2019, "Full-Gradient Representation for Neural Network Visualization", equation 7. Biases are
    those of convolutions and batch norms; those of other layers (a linear layer's, a layer norm's) have no rule in
    the paper's code and are left out, as in pytorch-grad-cam. Input and biases account for the whole score where
    every rectifier is piecewise linear, as ReLU is and SiLU is not.
    """

    name = "fullgrad"
    formula = "sum_colour stretch(|x dS/dx|) + sum_layers sum_k stretch(|b_k dS/dA_k|), A = ... + b"
    source = "Srinivas & Fleuret 2019, arXiv:1905.00780, eq. 7"
    reads = "input gradients, biases"

    def sweep(self, probe: Probe, layer: str) -> Tensor:
        biases: list[Tensor] = []
        outputs: list[Tensor] = []

        def keep(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            if output.requires_grad:
                biases.append(_bias(module))
                outputs.append(output)
            return output.clone()  # an in-place operation must not change what the gradient is of

        modules = [m for m in probe.module.modules() if isinstance(m, (nn.Conv2d, nn.BatchNorm2d))]
        modules = [module for module in modules if module.bias is not None]
        handles = [module.register_forward_hook(keep) for module in modules]
        try:
            with torch.enable_grad():
                leaf = probe.image.clone()[None].requires_grad_()
                scores = probe.scores(leaf)[0]
        finally:
            for handle in handles:
                handle.remove()
        return torch.stack([_full(leaf.detach()[0], biases, found) for found in gradients_at(scores, [leaf, *outputs])])


def _bias(module: nn.Module) -> Tensor:
    """[C]: the module's bias; for a batch norm including the shift by its running mean."""
    bias: Any = module.bias
    if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None and module.running_var is not None:
        scale = module.weight * (module.running_var + module.eps).rsqrt()
        bias = bias - module.running_mean * scale
    return bias.detach().float()


def _full(image: Tensor, biases: list[Tensor], gradients: list[Tensor]) -> Tensor:
    """[H, W] from gradients at the image [3, H, W] and behind each bias."""
    total = _stretched(image.float() * gradients[0])
    for bias, gradient in zip(biases, gradients[1:], strict=True):
        if gradient.any():
            layer = _stretched(bias[:, None, None] * gradient)
            total = total + interpolate(layer[None, None], total.shape, mode="bilinear")[0, 0]
    return total


def _stretched(maps: Tensor) -> Tensor:
    """[h, w]: the sizes of maps [C, h, w], each stretched to [0, 1], added up."""
    sizes = maps.abs()
    sizes = sizes - sizes.amin(dim=(1, 2), keepdim=True)
    return (sizes / (sizes.amax(dim=(1, 2), keepdim=True) + DUST)).sum(dim=0)
