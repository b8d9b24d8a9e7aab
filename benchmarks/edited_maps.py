"""Every method that reads gradients, on a YOLO with an edited layer: its maps beside those of a plain reference."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from edited_mechanisms import eagerly
from edited_yolo import FORMULAS, LAYERS, PRESETS, SIDE, Fact, Reference, added, blurred, near_poles, resized
from torch import Tensor, nn

from detcam import Explainer, Explanation
from detcam.errors import InputError
from detcam.methods import AnyMethod, get_method
from detcam.methods.captum_attribution import Captum
from detcam.methods.layered import SmoothGradCAMPlusPlus
from detcam.methods.pixel import IntegratedGradients, SmoothGrad

RECTIFIERS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish)
SAMPLES, STEPS = 2, 2  # of noise, of the way from a blank image
OBJECTS = 3


def of_pixels(one: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Reference], list[Tensor]]:
    """Maps [H, W] from the gradients and the image, [3, H, W] each."""
    return lambda plain: [one(found[0][0], plain.pixels[0]) for found in plain.gradients(plain.pixels)]


def noises(plain: Reference, deviation: float) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    strength = deviation * float(plain.pixels.max() - plain.pixels.min())
    return [strength * torch.randn(3, SIDE, SIDE, generator=generator).double() for _ in range(SAMPLES)]


def smooth_grad(plain: Reference) -> list[Tensor]:
    rows = [[found[0][0] for found in plain.gradients(plain.pixels + noise)] for noise in noises(plain, 0.15)]
    return [torch.stack(of_object).mean(0).abs().amax(0) for of_object in zip(*rows, strict=True)]


def integrated(plain: Reference) -> list[Tensor]:
    """The two points of Gauss and Legendre's rule on [0, 1], of equal weight."""
    places = (0.5 - 0.5 / 3**0.5, 0.5 + 0.5 / 3**0.5)
    rows = [[found[0][0] for found in plain.gradients(place * plain.pixels)] for place in places]
    return [(torch.stack(g).mean(0) * plain.pixels[0]).sum(0) for g in zip(*rows, strict=True)]


@contextmanager
def hooked(model: nn.Module, kinds: Any, hook: Callable[[nn.Module, Any, Tensor], Tensor | None]) -> Iterator[None]:
    handles = [module.register_forward_hook(hook) for module in model.modules() if isinstance(module, kinds)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def guided(plain: Reference) -> list[Tensor]:
    def positive(module: nn.Module, args: Any, output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(lambda gradient: gradient.clamp(min=0))

    with hooked(plain.model, RECTIFIERS, positive):
        return [found[0][0].abs().amax(0) for found in plain.gradients(plain.pixels)]


def full_grad(plain: Reference) -> list[Tensor]:
    outputs: list[Tensor] = []
    biases: list[Tensor] = []

    def keep(module: Any, args: Any, output: Tensor) -> Tensor | None:
        if module.bias is None:
            return None
        bias = module.bias.detach()
        if isinstance(module, nn.BatchNorm2d):
            bias = bias - module.running_mean * module.weight.detach() / (module.running_var + module.eps).sqrt()
        outputs.append(output)
        biases.append(bias)
        return output.clone()

    def stretched(values: Tensor) -> Tensor:
        sizes = values.abs() - values.abs().amin((1, 2), keepdim=True)
        return (sizes / (sizes.amax((1, 2), keepdim=True) + 1e-7)).sum(0)

    maps = []
    with hooked(plain.model, (nn.Conv2d, nn.BatchNorm2d), keep):
        for at_pixels, *at_outputs in plain.gradients(plain.pixels, lambda: outputs):
            total = stretched(at_pixels[0] * plain.pixels[0])
            for bias, gradient in zip(biases, at_outputs, strict=True):
                if gradient.any():
                    total = total + resized(stretched(bias[:, None, None] * gradient[0]), (SIDE, SIDE))
            maps.append(total)
    return maps


PIXELS: dict[str, tuple[AnyMethod, Callable[[Reference], list[Tensor]]]] = {
    "gradient": (get_method("gradient"), of_pixels(lambda g, x: g.abs().amax(0))),
    "gradientxinput": (get_method("gradientxinput"), of_pixels(lambda g, x: (g * x).sum(0))),
    "smoothgrad": (SmoothGrad(samples=SAMPLES), smooth_grad),
    "integratedgradients": (IntegratedGradients(steps=STEPS), integrated),
    "fullgrad": (get_method("fullgrad"), full_grad),
    "guidedbackprop": (get_method("guidedbackprop"), guided),
    "captum": (Captum("InputXGradient"), of_pixels(lambda g, x: (g * x).sum(0))),
}  # that read gradients at the pixels, with few passes


def fused(plain: Reference) -> list[Tensor]:
    def over_maximum(one: Tensor) -> Tensor:
        return one / one.max().clamp(min=1e-300)

    maps = []
    for evidence, level in zip(plain.maps("odam", "evidence"), plain.maps("odam", "level"), strict=True):
        size = max(tuple(evidence.shape), tuple(level.shape))
        soft = blurred(level.clamp(min=0), 1.5 / max(level.shape), "constant")
        maps.append(over_maximum(resized(evidence.clamp(min=0), size)) * over_maximum(resized(soft, size)))
    return maps


def smooth_plus_plus(plain: Reference, layers: str) -> list[Tensor]:
    names = PRESETS.get(layers, (layers,))
    acts = plain.run(plain.pixels, names)[1]
    runs = [plain.run(plain.pixels + noise, names) for noise in noises(plain, 0.15)]
    maps = []
    for level, label, anchor in plain.facts:
        parts, moved = [], []
        for name in (names[level],) if layers == "level" else names:
            found = [
                torch.autograd.grad(logits[label, anchor], leaves[name], retain_graph=True)[0][0].numpy()
                for logits, leaves in runs
            ]
            first, second, third = (np.mean([g**power for g in found], axis=0) for power in (1, 2, 3))
            a = acts[name].detach()[0].numpy()
            alpha = second / (2 * second + a.sum((1, 2), keepdims=True) * third + 1e-6)
            parts.append(torch.from_numpy(np.einsum("c,chw->hw", (alpha * np.maximum(first, 0)).sum((1, 2)), a)))
            moved.append(np.einsum("c,chw->hw", near_poles(a, first, second, third), np.abs(a)).max())
        maps.append(added(parts))
        plain.rounding = max(plain.rounding, sum(moved) / float(maps[-1].abs().max()))
    return maps


def guided_grad_cam(plain: Reference, layers: str) -> list[Tensor]:
    names, fine = PRESETS.get(layers, (layers,)), guided(plain)
    logits, leaves = plain.run(plain.pixels, names)
    maps = []
    for (level, label, anchor), sharp in zip(plain.facts, fine, strict=True):
        total = torch.zeros(SIDE, SIDE, dtype=torch.float64)
        for name in (names[level],) if layers == "level" else names:
            (g,) = torch.autograd.grad(logits[label, anchor], leaves[name], retain_graph=True)
            coarse = torch.from_numpy(FORMULAS["gradcam"](leaves[name].detach()[0].numpy(), g[0].numpy()))
            total += resized(coarse.clamp(min=0), (SIDE, SIDE)) * sharp
        maps.append(total)
    return maps


SWEPT: dict[str, tuple[AnyMethod, Callable[[Reference, str], list[Tensor]]]] = {
    "smoothgradcam++": (SmoothGradCAMPlusPlus(samples=SAMPLES), smooth_plus_plus),
    "guidedgradcam": (get_method("guidedgradcam"), guided_grad_cam),
}
METHODS = (*FORMULAS, *SWEPT, "fused", *PIXELS)


@dataclass
class Cell:
    """What one model gave.

    Attributes:
        errors: (method, layers) -> the largest difference of an object's map, as a share of its largest value.
        rounding: (method, layers) -> how much of that may be rounding near the poles of a formula.
        refused: (method, layers) -> the sentence.
        lost: what is refused though autograd can do it, with plain operations.
        warned: (method, layers) -> warnings.
    """

    errors: dict[tuple[str, str], float] = field(default_factory=dict)
    rounding: dict[tuple[str, str], float] = field(default_factory=dict)
    refused: dict[tuple[str, str], str] = field(default_factory=dict)
    lost: set[tuple[str, str]] = field(default_factory=set)
    warned: dict[tuple[str, str], list[str]] = field(default_factory=dict)


def rows(methods: Iterable[str] = METHODS, layers: Iterable[str] = LAYERS) -> Iterator[tuple[str, str]]:
    """(method, layers) to compare; methods with layers of their own, or none, once."""
    for method in methods:
        yield from ((method, place) for place in (layers if method in (*FORMULAS, *SWEPT) else ("auto",)))


def thinned(turn: int) -> Iterator[tuple[str, str]]:
    """A part of `rows`: every third method, in each turn others, at one of LAYERS."""
    for i, method in enumerate(METHODS):
        if (i + turn) % 3 == 0:
            yield method, LAYERS[(i + turn) % len(LAYERS)] if method in (*FORMULAS, *SWEPT) else "auto"


def compared(model: nn.Module, picture: np.ndarray, pairs: Iterable[tuple[str, str]] | None = None) -> Cell:
    """Compare (method, layers) pairs, by default all, on a model of `edited_yolo.edited`."""
    cell, options = Cell(), {"imgsz": SIDE, "conf": 0.3, "max_det": OBJECTS}
    facts = _facts(Explainer(model, "eigencam", "level", **options)(picture))
    for method, layers in rows() if pairs is None else pairs:
        made: Any = {**PIXELS, **SWEPT}[method][0] if method in (*PIXELS, *SWEPT) else method
        explanation, refusal = None, ""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                places = layers if layers in (*PRESETS, "auto") else [layers]
                explanation = Explainer(model, made, places, **options)(picture)
            except InputError as error:
                refusal = str(error)
        cell.warned[method, layers] = [str(w.message) for w in caught]
        plain, expected = Reference(model, picture, facts), None
        try:
            with eagerly():
                expected = maps_of(plain, method, layers)
        except RuntimeError:  # an operation without a second derivative
            assert method == "shapleycam"
        if explanation is None:
            cell.refused[method, layers] = refusal
            cell.lost |= set() if expected is None else {(method, layers)}
        else:
            assert expected is not None, "the reference cannot tell"
            assert _facts(explanation) == facts
            cell.errors[method, layers] = _worst(explanation.maps, expected)
            cell.rounding[method, layers] = plain.rounding
    return cell


def _facts(explanation: Explanation) -> list[Fact]:
    rows = [getattr(explanation.objects, name).tolist() for name in ("level", "class_ids", "index")]
    return list(zip(*rows, strict=True))


def _worst(maps: list[Tensor], expected: list[Tensor]) -> float:
    assert expected, "the model was made to find objects"
    assert all(truth.any() for truth in expected), "a map of zero proves nothing"
    pairs = zip(maps, expected, strict=True)
    return max(float((ours - truth).abs().max() / truth.abs().max()) for ours, truth in pairs)


def maps_of(plain: Reference, method: str, layers: str) -> list[Tensor]:
    """[h, w] of each object; for methods that are not in FORMULAS, too."""
    if method in PIXELS:
        return PIXELS[method][1](plain)
    if method in SWEPT:
        return SWEPT[method][1](plain, layers)
    return fused(plain) if method == "fused" else plain.maps(method, layers)
