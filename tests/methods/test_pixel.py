"""Pixel maps against plain autograd, Captum and the axioms that they claim."""

import copy
from collections.abc import Callable
from typing import Any

import captum.attr
import pytest
import torch
from sweep_settings import SIZE, Anchor, Setting, assert_maps
from torch import Tensor, nn

from detcam import Explainer, Explanation
from detcam.errors import MethodError, TargetError
from detcam.methods import get_method
from detcam.methods.pixel import IntegratedGradients, SmoothGrad, gradients_at


def scalar(setting: Setting, explanation: Explanation, i: int) -> Callable[[Tensor], Tensor]:
    """Object `i`'s class logit, pictures [b, 3, H, W] -> [b], from the library's own forward."""
    model, class_id, anchor = Anchor(setting.model), int(explanation.class_ids[i]), int(explanation.objects.index[i])
    return lambda pixels: model(pixels)[:, class_id, anchor]


def gradient(score: Callable[[Tensor], Tensor], pixels: Tensor) -> Tensor:
    """[3, H, W]"""
    leaf = pixels.clone()[None].requires_grad_()
    return torch.autograd.grad(score(leaf).sum(), leaf)[0][0]


def each(setting: Setting, explanation: Explanation, one: Callable[[Callable[[Tensor], Tensor]], Tensor]) -> Tensor:
    """[N, H, W]: what `one` makes of each object's scalar."""
    return torch.stack([one(scalar(setting, explanation, i)) for i in range(len(explanation))])


def test_gradient_is_autograds(exact: Setting) -> None:
    explanation = exact.explain("gradient")
    assert_maps(explanation, each(exact, explanation, lambda s: gradient(s, exact.pixels).abs().amax(dim=0)))


def test_gradient_x_input_equals_captum(exact: Setting) -> None:
    explanation = exact.explain("gradientxinput")

    def truth(score: Callable[[Tensor], Tensor]) -> Tensor:
        leaf = exact.pixels[None].clone().requires_grad_()
        return captum.attr.InputXGradient(score).attribute(leaf)[0].sum(dim=0).detach()

    assert_maps(explanation, each(exact, explanation, truth))


@pytest.mark.parametrize("steps", [1, 6])
def test_integrated_gradients_equal_captum(steps: int, exact: Setting) -> None:
    explanation = exact.explain(IntegratedGradients(steps=steps))

    def truth(score: Callable[[Tensor], Tensor]) -> Tensor:
        found = captum.attr.IntegratedGradients(score).attribute(exact.pixels[None], n_steps=steps)
        return found[0].sum(dim=0).detach()

    assert_maps(explanation, each(exact, explanation, truth))


def test_integrated_gradients_are_complete(exact: Setting) -> None:
    """They add up to the score of the picture less that of the blank one. Dark: a short way takes few steps."""
    dark = exact.picture // 8
    explanation = Explainer(exact.model, IntegratedGradients(steps=192), imgsz=SIZE, max_det=2, conf=0.0)(dark)
    pixels = torch.from_numpy(dark).permute(2, 0, 1).double() / 255
    difference = exact.logits(pixels, explanation) - exact.logits(torch.zeros_like(pixels), explanation)
    sums = torch.stack([one.sum() for one in explanation.maps]).double()
    torch.testing.assert_close(sums, difference, rtol=0.03, atol=0.03 * float(difference.abs().max()))


def test_smoothgrad_by_hand(exact: Setting, seed: int) -> None:
    explanation = exact.explain(SmoothGrad(samples=3, deviation=0.2, seed=seed))
    generator = torch.Generator().manual_seed(seed)
    strength = 0.2 * float(exact.pixels.max() - exact.pixels.min())
    noises = [strength * torch.randn(exact.pixels.shape, generator=generator) for _ in range(3)]

    def truth(score: Callable[[Tensor], Tensor]) -> Tensor:
        found = [gradient(score, exact.pixels + noise.double()) for noise in noises]
        return torch.stack(found).mean(dim=0).abs().amax(dim=0)

    assert_maps(explanation, each(exact, explanation, truth))


def test_smoothgrad_without_noise_is_the_gradient(exact: Setting) -> None:
    assert_maps(exact.explain(SmoothGrad(samples=2, deviation=0.0)), torch.stack(exact.explain("gradient").maps))


def with_relu(setting: Setting) -> None:
    """A ReLU of its own wherever the model had a SiLU."""
    for module in setting.model.modules():
        if isinstance(getattr(module, "act", None), nn.SiLU):
            module.act = nn.ReLU()


def test_guided_backprop_equals_captum_on_relu(exact: Setting) -> None:
    with_relu(exact)
    explanation = exact.explain("guidedbackprop", conf=0.0, iou=1.0)

    class Score(nn.Module):
        def __init__(self, i: int) -> None:
            super().__init__()
            self.model = Anchor(exact.model)
            self.at = int(explanation.class_ids[i]), int(explanation.objects.index[i])

        def forward(self, pixels: Tensor) -> Tensor:
            return self.model(pixels)[:, self.at[0], self.at[1]]

    leaves = [exact.pixels[None].clone().requires_grad_() for _ in range(4)]
    truth = [captum.attr.GuidedBackprop(Score(i)).attribute(leaf)[0] for i, leaf in enumerate(leaves)]
    assert_maps(explanation, torch.stack(truth).abs().amax(dim=1).detach())


def test_guided_backprop_says_what_it_is_worth() -> None:
    for name in ("guidedbackprop", "guidedgradcam", "captum:GuidedBackprop"):
        assert "fails the parameter randomisation check" in str(get_method(name).caution)
    assert get_method("odam").caution is get_method("captum:Saliency").caution is None


def test_guided_backprop_needs_something_to_guide(setting: Setting) -> None:
    for module in setting.model.modules():
        if isinstance(getattr(module, "act", None), nn.SiLU):
            module.act = nn.Tanh()
    with pytest.raises(MethodError, match="no rectifier modules"):
        setting.explain("guidedbackprop", conf=0.0)


@pytest.mark.parametrize("found", [1, 10])
@pytest.mark.parametrize(
    ("method", "passes"),
    [("gradient", 1), ("gradientxinput", 1), ("guidedbackprop", 1), ("fullgrad", 1),
     (SmoothGrad(samples=3), 3), (IntegratedGradients(steps=2), 2), ("captum:InputXGradient", 1)],
)  # fmt: skip
def test_backwards_are_those_declared(method: Any, passes: int, found: int, setting: Setting) -> None:
    """Backwards through the first layer: N for each changed version of the picture."""
    seen: list[int] = []
    stem = setting.model.get_submodule("model.0")
    stem.register_full_backward_hook(lambda module, entering, leaving: seen.append(1))
    explanation = setting.explain(method, conf=0.0, iou=1.0, max_det=found)
    assert len(explanation) == found
    assert len(seen) == found * passes


@pytest.mark.parametrize("name", ["gradient", "integratedgradients", "fullgrad", "guidedgradcam", "captum:Saliency"])
def test_maps_lie_where_the_picture_lay(name: str, setting: Setting) -> None:
    """A picture that does not fill the network's input: maps of pixels, drawn over the source picture only."""
    picture = setting.picture[:50]
    explanation = Explainer(setting.model, IntegratedGradients(steps=1) if name == "integratedgradients" else name,
                            imgsz=SIZE, max_det=2, conf=0.0)(picture)  # fmt: skip
    assert [tuple(one.shape) for one in explanation.maps] == [(64, SIZE)] * 2
    assert explanation.heatmaps.shape == (2, 50, SIZE)
    top, left = explanation.geometry.pad
    assert (top, left) == (7, 0)
    for heat, raw in zip(explanation.heatmaps, explanation.maps, strict=True):
        kept = raw.clamp(min=0)
        expected = (kept - kept.min()) / (kept.max() - kept.min())
        torch.testing.assert_close(heat, expected.nan_to_num()[7:57])  # a blank map stays blank


def test_scores_without_a_gradient_say_so() -> None:
    with pytest.raises(TargetError, match="no gradient at the network's input"):
        list(gradients_at(torch.ones(2), [torch.ones(1, 3, 4, 4)]))


def test_a_half_precision_model_has_pixel_maps(setting: Setting) -> None:
    single = setting.explain("gradient", max_det=2)
    model = copy.deepcopy(setting.model).bfloat16()
    half = Explainer(model, "gradient", imgsz=SIZE, max_det=2, conf=0.0)(setting.picture)
    assert len(half) == len(single) == 2
    assert all(one.dtype == torch.float32 and one.isfinite().all() and one.any() for one in half.maps)


def test_the_caution_stands_beside_every_map(setting: Setting) -> None:
    assert set(setting.explain("guidedbackprop").notes) == {get_method("guidedbackprop").caution}
