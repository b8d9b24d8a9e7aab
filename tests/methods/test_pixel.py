"""Pixel maps against plain autograd, Captum and the axioms that they claim."""

import captum.attr
import pytest
import torch
from support import few
from sweep_settings import SIZE, Anchor, Setting, assert_maps
from torch import Tensor, nn

from detcam import Explainer
from detcam.engine import object_gradients
from detcam.errors import MethodError, TargetError
from detcam.methods import get_method
from detcam.methods.pixel import IntegratedGradients, SmoothGrad, gradients_at


@pytest.mark.nightly
def test_integrated_gradients_are_complete(exact: Setting) -> None:
    """They add up to the score of the picture less that of the blank one. Dark: a short way takes few steps."""
    dark = exact.picture // 8
    explanation = Explainer(exact.model, IntegratedGradients(steps=192), imgsz=SIZE, max_det=2, conf=0.0)(dark)
    pixels = torch.from_numpy(dark).permute(2, 0, 1).double() / 255
    difference = exact.logits(pixels, explanation) - exact.logits(torch.zeros_like(pixels), explanation)
    sums = torch.stack([one.sum() for one in explanation.maps]).double()
    torch.testing.assert_close(sums, difference, rtol=0.03, atol=0.03 * float(difference.abs().max()))


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


@pytest.mark.parametrize(
    "name", few(["gradient", "integratedgradients", "fullgrad", "guidedgradcam", "captum:Saliency"], "gradient")
)
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
    with pytest.raises(TargetError, match="no gradient at the network's input: no_grad, detach or int8"):
        list(gradients_at(torch.ones(2), [torch.ones(1, 3, 4, 4)]))


def test_the_caution_stands_beside_every_map(setting: Setting) -> None:
    assert set(setting.explain("guidedbackprop").notes) == {get_method("guidedbackprop").caution}


def test_small_gradients_do_not_vanish_in_half_precision() -> None:
    """1e-8, a sixth of the smallest number that half precision has: half of it is rounded to nothing."""
    leaf = torch.ones(1, 2, 3, 4, dtype=torch.float16, requires_grad=True)
    scalar = ((leaf * 1e-4).sum() * 1e-4)[None]
    assert not torch.autograd.grad(scalar[0], leaf, retain_graph=True)[0].any()
    ((_, (found,)),) = object_gradients(scalar, torch.zeros(1, dtype=torch.int64), [leaf])
    assert found is not None
    torch.testing.assert_close(found, torch.full((1, 2, 3, 4), 1e-8), rtol=0.1, atol=0)
    ((pixels,),) = gradients_at(scalar, [leaf])
    torch.testing.assert_close(pixels, torch.full((2, 3, 4), 1e-8), rtol=0.1, atol=0)
