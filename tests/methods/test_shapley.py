"""Shapley-CAM against pytorch-grad-cam, its second derivatives against finite differences; Finer-CAM as a target."""

from typing import Any

import numpy as np
import pytest
import pytorch_grad_cam as peer
import torch
from support import few, few_rows
from sweep_settings import LAYER, Anchor, Setting, assert_maps
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from detcam import Explanation
from detcam.engine import object_gradients
from detcam.errors import MethodError, TargetError
from detcam.methods.finer import FinerCAM
from detcam.methods.shapley import ShapleyCAM


class OneAnchor(nn.Module):
    """The model as a classifier of one of its anchors: [1, 3, H, W] -> logits [1, nc]."""

    def __init__(self, model: nn.Module, anchor: int) -> None:
        super().__init__()
        self.whole, self.anchor = Anchor(model), anchor

    def forward(self, x: Tensor) -> Tensor:
        return self.whole(x)[:, :, self.anchor]


def raw_map(cam: Any, layer: nn.Module, x: Tensor, targets: list[Any], differentiable: bool) -> Tensor:
    """[h, w]: the peer's map before its ReLU; `differentiable` keeps the graph, as its Shapley-CAM needs."""
    outputs = cam.activations_and_grads(x.requires_grad_())
    loss = sum(target(output) for target, output in zip(targets, outputs, strict=True))
    if differentiable:
        torch.autograd.grad(loss, x, retain_graph=True, create_graph=True)
    else:
        loss.backward(retain_graph=True)
    seen = cam.activations_and_grads
    acts, grads = seen.activations[0], seen.gradients[0]
    if not differentiable:
        acts, grads = acts.detach().numpy(), grads.numpy()
    return torch.from_numpy(np.asarray(cam.get_cam_image(x, layer, targets, acts, grads, False)[0]))


def peer_shapley(setting: Setting, explanation: Explanation, i: int) -> Tensor:
    wrapped = OneAnchor(setting.model, int(explanation.objects.index[i])).eval().requires_grad_(True)
    layer = wrapped.whole.model.get_submodule(LAYER)
    cam = peer.ShapleyCAM(model=wrapped, target_layers=[layer])
    class_id = int(explanation.class_ids[i])
    return raw_map(cam, layer, setting.pixels[None].clone(), [lambda logits: logits[class_id]], differentiable=True)


def test_shapleycam_equals_pytorch_grad_cam(exact: Setting) -> None:
    explanation = exact.explain("shapleycam", layers=[LAYER])
    assert_maps(explanation, torch.stack([peer_shapley(exact, explanation, i) for i in range(4)]))
    plain = exact.explain("gradcam", layers=[LAYER])
    for one, other in zip(explanation.maps, plain.maps, strict=True):
        assert not torch.allclose(one, other, rtol=0.01, atol=0), "the curvature changes nothing here"


def peer_finer(setting: Setting, explanation: Explanation, i: int, categories: list[int], alpha: float) -> Tensor:
    """[h, w]: pytorch-grad-cam's Finer-CAM before its ReLU."""
    wrapped = OneAnchor(setting.model, int(explanation.objects.index[i])).eval().requires_grad_(True)
    layer = wrapped.whole.model.get_submodule(LAYER)
    finer = peer.FinerCAM(model=wrapped, target_layers=[layer])
    seen: list[Any] = []
    finer.base_cam.compute_cam_per_layer = lambda x, targets, smooth: seen.extend(targets) or []
    finer.base_cam.aggregate_multi_layers = lambda maps: None
    own = int(explanation.class_ids[i])
    finer(setting.pixels[None].clone(), target_idx=own, comparison_categories=categories, alpha=alpha)
    return raw_map(finer.base_cam, layer, setting.pixels[None].clone(), seen, differentiable=False)


@pytest.mark.parametrize(
    ("classes", "strength"), few_rows([(1, 1.0), (3, 1.0), (3, 0.6), (50, 1.0)], (3, 0.6), (50, 1.0))
)
def test_finercam_equals_pytorch_grad_cam(classes: int, strength: float, exact: Setting) -> None:
    """Seven classes: of fifty nearest there are six."""
    explanation = exact.explain(FinerCAM(classes=classes, strength=strength), layers=[LAYER])
    assert explanation.settings["target"] == "finer"
    categories = list(range(1, 1 + min(classes, 6)))
    assert_maps(explanation, torch.stack([peer_finer(exact, explanation, i, categories, strength) for i in range(4)]))


def test_finercam_contrasts_class_scores(setting: Setting) -> None:
    with pytest.raises(TargetError, match="'finercam' contrasts class scores: target 'class', got 'box'"):
        setting.explain("finercam", target="box")


def test_finer_cam_is_grad_cam_of_the_margin(exact: Setting) -> None:
    """The logit less that of the most similar class, as pytorch-grad-cam weighs a single one."""
    explanation = exact.explain("gradcam", layers=[LAYER], target="margin")
    assert_maps(explanation, torch.stack([peer_finer(exact, explanation, i, [1], 1.0) for i in range(4)]))


def test_curvature_equals_a_finite_difference(seed: int) -> None:
    """g - H A / 2 of each object's own scalar, in a batch of two pictures; H A from gradients at A (1 +- e)."""
    acts = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    mix = torch.randn(4, 3, 4, 5, dtype=torch.float64)
    images = torch.tensor([0, 0, 1, 1])

    def scalars(tensor: Tensor) -> Tensor:
        return torch.stack(
            [
                (tensor[image] * m).sum().sin() + (tensor[image] ** 3 * m).sum()
                for image, m in zip(images, mix, strict=True)
            ]
        )

    def plain(tensor: Tensor) -> Tensor:
        leaf = tensor.clone().requires_grad_()
        rounds = object_gradients(scalars(leaf), images, [leaf])
        found = {int(place): g for turn, gs in rounds for place, g in zip(turn, gs[0], strict=True)}
        return torch.stack([found[i] for i in range(4)])

    step = 1e-6
    product = (plain(acts * (1 + step)) - plain(acts * (1 - step))) / (2 * step)
    leaf = acts.clone().requires_grad_()
    turns = list(ShapleyCAM().gradients(scalars(leaf), images, [leaf]))
    assert [int(turn) for turn, _ in turns] == [0, 1, 2, 3]
    torch.testing.assert_close(torch.cat([g[0] for _, g in turns]), plain(acts) - product / 2, rtol=1e-5, atol=1e-5)


def test_a_linear_score_has_no_curvature(seed: int) -> None:
    leaf, other = (torch.randn(1, 3, 4, 5, requires_grad=True) for _ in range(2))
    weights = torch.randn(3, 4, 5)
    ((_, (found, none)),) = ShapleyCAM().gradients((leaf[0] * weights).sum()[None], torch.tensor([0]), [leaf, other])
    torch.testing.assert_close(found[0], weights)
    assert none is None
    ((_, (none,)),) = ShapleyCAM().gradients(torch.ones(1), torch.tensor([0]), [leaf])
    assert none is None


class Slope(torch.autograd.Function):
    """The derivative of `Squared`, which has none itself, like that of fused attention on a CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, grad: Tensor) -> Tensor:
        return 2 * x * grad

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        raise RuntimeError("derivative for Slope is not implemented")


class Squared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return Slope.apply(ctx.saved_tensors[0], grad)


def test_operations_without_second_derivatives_are_named(seed: int) -> None:
    leaf = torch.randn(1, 2, 4, 5, requires_grad=True)
    with pytest.raises(MethodError, match="no second derivative of an operation of this model"):
        list(ShapleyCAM().gradients(Squared.apply(leaf).sum()[None], torch.tensor([0]), [leaf]))
    again = checkpoint(torch.square, leaf, use_reentrant=True)
    with pytest.raises(MethodError, match=r"no second derivative of an operation of this model.*'gradcam'"):
        list(ShapleyCAM().gradients(again.sum()[None], torch.tensor([0]), [leaf]))


@pytest.mark.parametrize("layers", few(["level", "evidence", ["model.4", "model.9"]], "level"))
def test_several_layers_and_several_scalars(layers: Any, setting: Setting) -> None:
    """Each layer's curvature is its own; the sides of the box combine by their maximum."""
    sides = [
        setting.explain("shapleycam", layers=layers, target=side).maps for side in ("left", "top", "right", "bottom")
    ]
    for i, ours in enumerate(setting.explain("shapleycam", layers=layers, target="box").maps):
        expected = torch.stack([maps[i] for maps in sides]).amax(dim=0)
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


@pytest.mark.parametrize("found", [1, 10])
@pytest.mark.parametrize("layers", [["model.15"], ["model.12", "model.15"]])
def test_backwards_of_shapleycam_are_those_declared(layers: list[str], found: int, setting: Setting) -> None:
    """Through the head, for each object: one, and one more for each layer, through the first."""
    seen: list[int] = []

    def watch(module: nn.Module, args: Any, output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(lambda gradient: seen.append(1))

    setting.model.get_submodule("model.22.cv3.0.0").register_forward_hook(watch)
    assert len(setting.explain("shapleycam", layers=layers, conf=0.0, iou=1.0, max_det=found)) == found
    assert len(seen) == found * (1 + len(layers))
