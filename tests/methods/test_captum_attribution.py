"""Captum by name: equal to Captum called directly, and clear about what it cannot do."""

import sys
from typing import Any

import captum.attr
import numpy as np
import pytest
import torch
from support import few, fingerprint
from sweep_settings import SIZE, Anchor, Setting, assert_maps
from torch import Tensor, nn

from detcam import Explainer, Explanation
from detcam.errors import MethodError
from detcam.methods import get_method
from detcam.methods.captum_attribution import Captum


class Score(nn.Module):
    """One object's class logit, from the library's own forward."""

    def __init__(self, model: nn.Module, explanation: Explanation, i: int) -> None:
        super().__init__()
        self.model = Anchor(model)
        self.at = int(explanation.class_ids[i]), int(explanation.objects.index[i])

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model(pixels)[:, self.at[0], self.at[1]]


def directly(kind: Any, setting: Setting, explanation: Explanation, **options: Any) -> Tensor:
    """[N, H, W]"""
    maps = []
    for i in range(len(explanation)):
        leaf = setting.pixels[None].clone().requires_grad_()
        found = kind(Score(setting.model, explanation, i)).attribute(leaf, **options)
        maps.append(found[0].sum(dim=0).detach())
    return torch.stack(maps)


def nightly(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.nightly)


WINDOWS = {"sliding_window_shapes": (3, 32, 48), "strides": (3, 32, 24)}
PATCHES = torch.arange(8).repeat_interleave(8)[:, None] * 8 + torch.arange(8).repeat_interleave(12)  # of 64 x 96


@pytest.mark.parametrize(
    ("name", "ours", "theirs"),
    [
        ("Saliency", {}, {}),
        nightly("InputXGradient", {}, {}),
        ("IntegratedGradients", {"n_steps": 5}, {"n_steps": 5}),
        nightly("Occlusion", WINDOWS, WINDOWS),
        nightly("GradientShap", {"baselines": torch.zeros(1, 3, 64, 96, dtype=torch.float64), "n_samples": 1}, None),
    ],
)
def test_equals_captum_called_directly(name: str, ours: Any, theirs: Any, exact: Setting) -> None:
    explanation = exact.explain(Captum(name, **ours))
    assert explanation.settings["method"] == f"captum:{name}"
    kind = getattr(captum.attr, name)
    if theirs is None:  # draws where on the way it looks: as many times as there are objects, one after the other
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002
        theirs = ours
    assert_maps(explanation, directly(kind, exact, explanation, **theirs))


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("FeatureAblation", {"feature_mask": PATCHES.expand(1, 3, 64, 96)}),
        ("Occlusion", {"sliding_window_shapes": (3, 8, 12), "strides": (3, 8, 12)}),
    ],
)
def test_patches_are_filled_in(name: str, options: Any, exact: Setting) -> None:
    explanation = exact.explain(f"captum:{name}", max_det=1)
    truth = directly(getattr(captum.attr, name), exact, explanation, **options, perturbations_per_eval=16)
    torch.testing.assert_close(explanation.maps[0], truth[0].float(), rtol=1e-3, atol=1e-4 * float(truth.abs().max()))


def relu_model(setting: Setting) -> None:
    for module in setting.model.modules():
        if isinstance(getattr(module, "act", None), nn.SiLU):
            module.act = nn.ReLU()


@pytest.mark.nightly
def test_deeplift_is_complete_on_relu(exact: Setting) -> None:
    """The pooling that SPPF runs three times is taken out: Captum has no rule for it."""
    relu_model(exact)
    exact.model.get_submodule("model.9").m = nn.Identity()
    explanation = exact.explain("captum:DeepLift", conf=0.0, iou=1.0)
    blank = torch.zeros_like(exact.pixels)
    expected = exact.logits(exact.pixels, explanation) - exact.logits(blank, explanation)
    sums = torch.stack([one.sum() for one in explanation.maps]).double()
    torch.testing.assert_close(sums, expected, rtol=1e-3, atol=1e-4)
    assert_maps(explanation, directly(captum.attr.DeepLift, exact, explanation))


@pytest.mark.nightly
def test_modules_that_run_several_times_are_passed(exact: Setting) -> None:
    """Captum alone fails there; on a model of no other rectifier what is left is gradient times input."""
    explanation = exact.explain("captum:DeepLift")
    assert_maps(explanation, torch.stack(exact.explain("gradientxinput").maps))


@pytest.mark.parametrize(
    "name", few(["DeepLiftShap", "GradientShap", "ShapleyValueSampling", "Lime", "KernelShap"], "GradientShap")
)
def test_runs_with_what_is_filled_in_and_the_same_on_every_run(name: str, setting: Setting) -> None:
    few = {"ShapleyValueSampling": {"n_samples": 1}, "Lime": {"n_samples": 40}, "KernelShap": {"n_samples": 40}}
    explanations = [setting.explain(Captum(name, **few.get(name, {})), max_det=2) for _ in range(2)]
    for one, again in zip(*(e.maps for e in explanations), strict=True):
        assert one.shape == (64, SIZE)
        assert one.isfinite().all()
        assert one.any()
        assert torch.equal(one, again)
    assert not torch.equal(*explanations[0].maps)


def test_leaves_random_numbers_and_hooks_alone(setting: Setting) -> None:
    explainer = Explainer(setting.model, "captum:GuidedBackprop", imgsz=SIZE, max_det=1, conf=0.0)
    before = fingerprint(setting.model), hooks(explainer)
    state, own = torch.random.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    explainer(setting.picture)
    assert fingerprint(setting.model) == before[0]
    assert hooks(explainer) == before[1]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert np.random.get_state()[1].tolist() == own  # noqa: NPY002


def hooks(explainer: Explainer) -> list[int]:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return [len(getattr(module, kind)) for module in explainer.adapter.module.modules() for kind in kinds]


def test_a_model_that_captum_cannot_serve(setting: Setting) -> None:
    """LRP has no rule for SiLU."""
    explainer = Explainer(setting.model, "captum:LRP", imgsz=SIZE, max_det=1, conf=0.0)
    before = hooks(explainer)
    with pytest.raises(MethodError, match=r"method captum:LRP: Captum cannot attribute this model's scores \(.*SiLU.*"):
        explainer(setting.picture)
    assert hooks(explainer) == before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("captum:DeepLft", r"captum:DeepLft does not exist: did you mean 'captum:DeepLift'"),
        ("captum:LayerGradCam", "does not exist"),
        ("captum:ShapleyValues", "is not offered: the exact values of 64 patches"),
        ("captum:featurepermutation", "is not offered"),
        ("captum:", "does not exist"),
        ("captun:DeepLift", "does not exist: did you mean 'captum'"),
    ],
)
def test_names_that_cannot_be_used(name: str, message: str) -> None:
    with pytest.raises(MethodError, match=message):
        get_method(name)


def test_names_in_any_case() -> None:
    assert get_method("Captum:deeplift").name == "captum:DeepLift"
    assert get_method("captum").name == "captum:IntegratedGradients"
    assert Captum.name == "captum"


def test_without_captum_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "captum", None)
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(MethodError, match=r'pip install "detcam\[pixels\]"'):
        get_method("captum:DeepLift")
