"""A small YOLO with an edited layer, and what plain autograd and formulas of their own make of its objects.

The reference is the user's own model: its call gives the scores, hooks of its own capture and cut at the layers, and
`torch.autograd.grad` of the logit of an object's anchor gives the gradients. Nothing of detcam takes part.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import interpolate

SIDE = 96  # of the picture and of the network's input
CONFIG = {
    "nc": 5,
    "backbone": [
        [-1, 1, "Conv", [16, 3, 2]], [-1, 1, "Conv", [24, 3, 2]], [-1, 1, "C2f", [24, True]],
        [-1, 1, "Conv", [32, 3, 2]], [-1, 1, "C2f", [32, True]],
        [-1, 1, "Conv", [48, 3, 2]], [-1, 1, "C2f", [48, True]],
    ],
    "head": [
        [-1, 1, "nn.Upsample", [None, 2, "nearest"]], [[-1, 4], 1, "Concat", [1]], [-1, 1, "C2f", [32]],
        [-1, 1, "Conv", [32, 3, 2]], [[-1, 6], 1, "Concat", [1]], [-1, 1, "C2f", [48]],
        [[9, 12], 1, "Detect", ["nc"]],
    ],
}  # fmt: skip
PLACES = {"backbone": ("4.cv2",), "neck": ("9.cv2",), "head": ("13.cv3.0.0", "13.cv3.1.0")}
PRESETS = {"level": ("model.9", "model.12"), "evidence": ("model.4", "model.6"), "stem": ("model.0",)}
LAYERS = (*PRESETS, "model.2")
Fact = tuple[int, int, int]  # an object's level, class and anchor


@cache
def _base(seed: int) -> tuple[nn.Module, np.ndarray]:
    """The model without edits, whose normalisation fits pictures, and a picture [SIDE, SIDE, 3]."""
    from ultralytics.nn.tasks import DetectionModel

    torch.manual_seed(seed)
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (4, SIDE // 12, SIDE // 12, 3), dtype=np.uint8)
    pictures = np.kron(coarse, np.ones((1, 12, 12, 1), np.uint8))
    model = DetectionModel(copy.deepcopy(CONFIG), ch=3, verbose=False)
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and "dfl" not in name:
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.1, 0.3)
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255)
    return model.eval(), pictures[0]


def edited(kind: Callable[[int], nn.Module], place: str, seed: int = 0) -> tuple[nn.Module, np.ndarray]:
    """A random YOLO in double precision with a layer of this kind, and a picture in which it finds objects."""
    base, picture = _base(seed)
    model: Any = copy.deepcopy(base)
    torch.manual_seed(seed)
    for name in PLACES[place]:
        block = model.model.get_submodule(name)
        block.act = nn.Sequential(nn.SiLU(), kind(block.conv.out_channels))
    model = model.double().eval()
    with torch.no_grad():
        raw = model(_pixels(picture))[1]
        cells = [feature.shape[2] * feature.shape[3] for feature in raw["feats"]]
        for branch, logits in zip(model.model[-1].cv3, raw["scores"].split(cells, dim=2), strict=True):
            branch[-1].weight /= logits.std()
            branch[-1].bias.fill_(0)
        raw = model(_pixels(picture))[1]
        for branch, logits in zip(model.model[-1].cv3, raw["scores"].split(cells, dim=2), strict=True):
            branch[-1].bias += 0.5 - logits.max()
    return model, picture


def _pixels(picture: np.ndarray) -> Tensor:
    return torch.from_numpy(picture).permute(2, 0, 1)[None].double() / 255


def _column(weights: np.ndarray, acts: np.ndarray) -> np.ndarray:
    return np.einsum("c,chw->hw", weights, acts)


def _plus_plus(a: np.ndarray, g: np.ndarray) -> np.ndarray:
    alpha = g**2 / (2 * g**2 + a.sum((1, 2), keepdims=True) * g**3 + 1e-6)  # as pytorch-grad-cam
    return (alpha * np.maximum(g, 0)).sum((1, 2))


def _space(g: np.ndarray) -> np.ndarray:
    size = np.abs(g)
    return size / np.maximum(size.max((1, 2), keepdims=True), 1e-300)


def _principal(a: np.ndarray, g: np.ndarray) -> np.ndarray:
    cells = (a * g).reshape(len(a), -1).T
    centred = cells - cells.mean(0)
    projection = centred @ np.linalg.svd(centred, full_matrices=False)[2][0]
    return (projection * np.sign(projection @ cells.sum(1))).reshape(a.shape[1:])


def _gcame(a: np.ndarray, g: np.ndarray, stride: float = 16.0) -> np.ndarray:
    height, width = a.shape[1:]
    row, column = divmod(int(np.abs(g).sum(0).argmax()), width)
    y, x = np.mgrid[:height, :width]
    squared = (y - row) ** 2 + (x - column) ** 2
    weights = g.mean((1, 2))
    reach = max(math.floor((math.sqrt(height * width) - 1) / 2), 1)
    sigma = np.maximum(3 * np.abs(np.log(np.maximum(np.abs(weights), 1e-300))) * math.log(stride) / reach, 1)
    return np.einsum("c,chw,chw->hw", weights, np.exp(-squared / (2 * sigma[:, None, None] ** 2)), a)


FORMULAS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "odam": lambda a, g: (a * g).sum(0),
    "hirescam": lambda a, g: (a * g).sum(0),
    "gradcam": lambda a, g: _column(g.mean((1, 2)), a),
    "gradcam++": lambda a, g: _column(_plus_plus(a, g), a),
    "xgradcam": lambda a, g: _column((a * g).sum((1, 2)) / (a.sum((1, 2)) + 1e-7), a),
    "layercam": lambda a, g: (a * np.maximum(g, 0)).sum(0),
    "shapleycam": lambda a, g: _column(g.mean((1, 2)), a),  # of corrected gradients
    "finercam": lambda a, g: _column(g.mean((1, 2)), a),  # of a contrast
    "eigengradcam": _principal,
    "elementwise": lambda a, g: np.maximum(a * g, 0).sum(0),
    "ssgradcam": lambda a, g: np.einsum("c,chw,chw->hw", g.mean((1, 2)), _space(g), a),
    "ssgradcam++": lambda a, g: np.einsum("c,chw,chw->hw", _plus_plus(a, g), _space(g), a),
    "gcame": _gcame,
    "layerig": lambda a, g: (a * g).sum(0),  # of differences
}  # activations and gradients [C, h, w] -> map [h, w]


def near_poles(a: np.ndarray, first: np.ndarray, second: np.ndarray, third: np.ndarray) -> np.ndarray:
    """[C]: how far float32 may move the weights of Grad-CAM++ from powers of gradients, whose quotient has poles."""
    terms = 2 * second + np.abs(a).sum((1, 2), keepdims=True) * np.abs(third)
    denominator = 2 * second + a.sum((1, 2), keepdims=True) * third + 1e-6
    return ROUNDING * (second * np.maximum(first, 0) * terms / denominator**2).sum((1, 2))


def _near_poles(a: np.ndarray, g: np.ndarray) -> np.ndarray:
    return near_poles(a, g, g**2, g**3)


def _near_silence(a: np.ndarray, g: np.ndarray) -> np.ndarray:
    total = a.sum((1, 2)) + 1e-7
    size, product = np.abs(a).sum((1, 2)), np.abs((a * g).sum((1, 2)))
    return ROUNDING * (np.abs(a * g).sum((1, 2)) / np.abs(total) + product * size / total**2)


ROUNDING = 32 * float(np.finfo(np.float32).eps)
POLES = {"gradcam++": _near_poles, "ssgradcam++": _near_poles, "xgradcam": _near_silence}


class Reference:
    """Maps of a model's objects by plain autograd.

    Args:
        model: the user's model, in eval mode and double precision.
        picture: [SIDE, SIDE, 3] uint8 RGB.
        facts: the objects.

    Attributes:
        rounding: how far float32, in which detcam computes weights, may move the maps that were asked for last, as a
            share of their largest value.
    """

    def __init__(self, model: nn.Module, picture: np.ndarray, facts: list[Fact]) -> None:
        self.model, self.pixels, self.facts = model, _pixels(picture), facts
        self.rounding = 0.0

    def run(
        self, pixels: Tensor, cut: Iterable[str] = (), given: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The logits [nc, A] of the scores that the model puts out, and the leaves at which it was cut."""
        leaves: dict[str, Tensor] = {}

        def hook(name: str, module: nn.Module, args: Any, output: Tensor) -> Tensor:
            leaves[name] = (output if given is None else given[name]).detach().clone().requires_grad_()
            return leaves[name].clone()

        handles = [self.model.get_submodule(name).register_forward_hook(partial(hook, name)) for name in cut]
        norms = [module for module in self.model.modules() if isinstance(module, nn.BatchNorm2d)]
        handles += [norm.register_forward_hook(_in_order) for norm in norms]
        try:
            return self.model(pixels)[0][0, 4:].logit(), leaves
        finally:
            for handle in handles:
                handle.remove()

    def maps(self, method: str, layers: str) -> list[Tensor]:
        """[h, w] of each object, for a method of FORMULAS at a preset or a layer by name."""
        names, between = PRESETS.get(layers, (layers,)), None
        with sdpa_kernel(SDPBackend.MATH):  # torch's fused attention has no second derivative
            logits, leaves = self.run(self.pixels, names)
        acts = {name: leaf.detach() for name, leaf in leaves.items()}
        if method == "layerig":
            blank = torch.stack([blurred(channel, 0.025, "nearest") for channel in self.pixels[0]])[None]
            base = {name: leaf.detach() for name, leaf in self.run(blank, names)[1].items()}
            between = {name: (base[name] + acts[name]) / 2 for name in names}
            acts = {name: acts[name] - base[name] for name in names}
            logits, leaves = self.run(self.pixels, names, between)
        maps = []
        for level, label, anchor in self.facts:
            scalar = _scalar(method, logits[:, anchor], label)
            parts, moved = [], []
            for name in (names[level],) if layers == "level" else names:
                gradient = _gradient(scalar, leaves[name], method == "shapleycam")
                a, g = acts[name][0].numpy(), gradient[0].numpy()
                parts.append(torch.from_numpy(FORMULAS[method](a, g)))
                moved.append(_column(POLES[method](a, g), np.abs(a)).max() if method in POLES else 0.0)
            total = added(parts)
            self.rounding = max(self.rounding, sum(moved) / float(total.abs().max()))
            maps.append(blurred(total, 0.0125, "constant") if method == "layerig" else total)
        return maps

    def gradients(self, pixels: Tensor, more: Callable[[], list[Tensor]] = list) -> Iterator[list[Tensor]]:
        """Of each object's logit at the pixels, and at tensors of the forward."""
        leaf = pixels.clone().requires_grad_()
        logits = self.run(leaf)[0]
        others = more()
        for _, label, anchor in self.facts:
            found = torch.autograd.grad(logits[label, anchor], [leaf, *others], retain_graph=True, allow_unused=True)
            yield [torch.zeros_like(t) if g is None else g for t, g in zip([leaf, *others], found, strict=True)]


def _in_order(module: nn.Module, args: Any, output: Tensor) -> None:
    """On a CPU, torch 2.15's batch norm misreads a gradient with the strides of tokens; finite differences show it."""
    if output.requires_grad:
        output.register_hook(lambda gradient: gradient.contiguous())


def _scalar(method: str, logits: Tensor, label: int) -> Tensor:
    """An object's scalar from the logits [nc] of its anchor."""
    others = torch.cat([logits[:label], logits[label + 1 :]])
    if method == "layerig":
        return logits[label] - others.max()
    if method != "finercam":
        return logits[label]
    near = (others - logits[label]).detach().abs().argsort(stable=True)[:3]
    weights = (others - logits.logsumexp(0)).exp()[near]  # softmax over all classes
    return (weights * (logits[label] - others[near])).sum() / (weights.sum() + 1e-9)


def _gradient(scalar: Tensor, leaf: Tensor, corrected: bool) -> Tensor:
    """At a leaf, zero where the scalar does not depend on it; `corrected` by the curvature: g - H A / 2."""
    (gradient,) = torch.autograd.grad(scalar, leaf, retain_graph=True, allow_unused=True, create_graph=corrected)
    if gradient is None:
        return torch.zeros_like(leaf)
    if corrected and gradient.requires_grad:
        (product,) = torch.autograd.grad(gradient, leaf, leaf.detach(), retain_graph=True, allow_unused=True)
        gradient = gradient if product is None else gradient - product / 2
    return gradient.detach()


def blurred(one: Tensor, share: float, mode: str) -> Tensor:
    """A map [h, w] under a Gaussian whose deviation is this share of the longest side."""
    deviation = share * max(one.shape)
    reach = math.ceil(3 * deviation)
    return torch.from_numpy(gaussian_filter(one.numpy(), deviation, mode=mode, radius=reach))


def added(maps: list[Tensor]) -> Tensor:
    """The sum of maps [h, w] at the finest resolution among them."""
    size = max((tuple(m.shape) for m in maps), key=lambda shape: shape[0] * shape[1])
    return sum((resized(m, size) for m in maps), torch.zeros(size, dtype=torch.float64))


def resized(one: Tensor, size: tuple[int, int]) -> Tensor:
    return interpolate(one[None, None], size, mode="bilinear")[0, 0]
