"""Adebayo et al. 2018, "Sanity Checks for Saliency Maps": does a map change when the model forgets what it learned?"""

import copy
from typing import Any

import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from detcam import Explainer, Explanation
from detcam.models.load import load_model
from detcam.scenes import HELD_OUT_SEED, draw_scene


def explain(model: Any, method: str, found: Explanation | None = None, **options: Any) -> Explanation:
    """With `found`, of the very anchors and classes of these objects, whatever the model finds."""
    explainer = Explainer(model, method, max_det=2, **options)
    if found is not None:
        explainer.adapter.detect = lambda *_: [found.objects]  # type: ignore[method-assign]
    return explainer(draw_scene(HELD_OUT_SEED + 4).image)


def likeness(one: Explanation, other: Explanation) -> float:
    """The mean rank correlation of what is shown of an object; that with a blank map counts as 0."""

    def correlation(a: Tensor, b: Tensor) -> float:
        a, b = a.clamp(min=0).flatten(), b.clamp(min=0).flatten()
        return float(spearmanr(a.numpy(), b.numpy())[0]) if a.std() > 0 and b.std() > 0 else 0.0

    pairs = [correlation(a, b) for a, b in zip(one.maps, other.maps, strict=True)]
    return sum(pairs) / len(pairs)


@torch.no_grad()
def randomise(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, nn.Conv2d) and part.weight.shape[1] > 1 and part.weight.numel() != 16:  # not the bins'
            nn.init.kaiming_normal_(part.weight)


@pytest.mark.nightly
def test_guided_backprop_hardly_notices_what_grad_cam_does(seed: int) -> None:
    """Cascading from the head down to the neck's start: every layer that learned to tell classes apart is forgotten."""
    model: Any = load_model("scenes-yolo").model  # type: ignore[union-attr]
    grad_cam = explain(model, "gradcam", layers="level")
    guided = explain(model, "guidedbackprop", grad_cam)
    assert len(grad_cam) == 2
    forgetful = copy.deepcopy(model)
    for number in range(len(forgetful.model) - 1, 9, -1):
        randomise(forgetful.model[number])
        if number not in (22, 12):
            continue
        kept = likeness(guided, explain(forgetful, "guidedbackprop", grad_cam))
        lost = likeness(grad_cam, explain(forgetful, "gradcam", grad_cam, layers="level"))
        print(f"down to layer {number}: guided backpropagation {kept:.2f}, Grad-CAM {lost:.2f}")
        assert kept > 0.8
        assert lost < 0.5
