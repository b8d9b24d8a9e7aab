"""Layer Integrated Gradients: equal to Captum's, complete with many steps, and of the queries that the image selected."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import captum.attr
import pytest
import torch
from sweep_settings import LAYER, Anchor, Setting
from torch import Tensor, nn

from detcam import Explainer
from detcam.adapters import Adapter
from detcam.engine.blur import blurred
from detcam.errors import MethodError
from detcam.methods import get_method
from detcam.methods.path import LayerIG

sys.path.append(str(Path(__file__).parents[1] / "adapters"))
from custom_models import SIZE, Grid, adapter
from detr_models import random_detr
from support import fingerprint, random_picture

RAW: dict[str, Any] = {"smooth": 0.0, "contrast": "none"}


class Logit(nn.Module):
    """One object's class logit, or its margin over the best other class, from the library's own forward."""

    def __init__(self, model: nn.Module, class_id: int, anchor: int, margin: bool = False) -> None:
        super().__init__()
        self.model, self.class_id, self.anchor, self.margin = Anchor(model), class_id, anchor, margin

    def forward(self, pixels: Tensor) -> Tensor:
        logits = self.model(pixels)[:, :, self.anchor]
        others = [c for c in range(logits.shape[1]) if c != self.class_id]
        return logits[:, self.class_id] - (logits[:, others].amax(dim=1) if self.margin else 0)


def baselines(pixels: Tensor) -> dict[str, Tensor]:
    """Of one image [1, 3, H, W], by the name of LayerIG's parameter."""
    return {
        "blur": blurred(pixels, 0.025 * max(pixels.shape), "replicate"),
        "mean": pixels.mean(dim=(2, 3), keepdim=True).expand_as(pixels),
        "zero": torch.zeros_like(pixels),
    }


@pytest.mark.parametrize("layer", [LAYER, "model.0"])
@pytest.mark.parametrize(("steps", "baseline"), [(4, "blur"), (3, "mean"), (2, "zero")])
def test_equals_captums_layer_integrated_gradients(layer: str, steps: int, baseline: str, exact: Setting) -> None:
    explanation = exact.explain(LayerIG(steps=steps, baseline=baseline, **RAW), layers=[layer])
    pixels = exact.pixels[None]
    for raw, class_id, anchor in zip(
        explanation.maps, explanation.class_ids.tolist(), explanation.objects.index.tolist(), strict=True
    ):
        score = Logit(exact.model, class_id, anchor)
        peer = captum.attr.LayerIntegratedGradients(score, score.model.model.get_submodule(layer))
        with torch.enable_grad():
            found = peer.attribute(
                pixels.clone(), baselines(pixels)[baseline], n_steps=steps, method="riemann_middle"
            ).detach()
        expected = found[0].sum(dim=0)
        torch.testing.assert_close(raw.double(), expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize(("contrast", "steps"), [("none", 50), pytest.param("margin", 200, marks=pytest.mark.nightly)])
def test_many_steps_account_for_the_whole_score(contrast: str, steps: int, exact: Setting) -> None:
    """At the stem, the cells sum to S(x) - S(b); the error of the midpoint rule falls at least like 1 / steps."""
    exact.model.get_submodule("model.9").m = nn.AvgPool2d(5, 1, 2)  # the error at kinks of a max-pool is luck
    explanation = exact.explain(LayerIG(steps=steps, smooth=0.0, contrast=contrast), max_det=1, conf=0.0)
    assert explanation.settings["layers"] == ["model.0"]
    assert explanation.settings["target"] == {"margin": "margin", "none": "class"}[contrast]
    pixels = exact.pixels[None]
    for raw, class_id, anchor in zip(
        explanation.maps, explanation.class_ids.tolist(), explanation.objects.index.tolist(), strict=True
    ):
        score = Logit(exact.model, class_id, anchor, contrast == "margin")
        with torch.no_grad():
            change = float(score(pixels) - score(baselines(pixels)["blur"]))
        assert float(raw.sum()) == pytest.approx(change, rel=4 / steps, abs=0.02)


def test_the_place_moves_within_each_step() -> None:
    detector, segmenter = (cast(Adapter, SimpleNamespace(task=task)) for task in ("detect", "semantic"))
    assert LayerIG(steps=2).shares(detector) == LayerIG(steps=2).shares(segmenter) == [0.25, 0.75]
    assert LayerIG(steps=2, place=0.0).shares(detector) == [0.0, 0.5]
    assert (LayerIG().shares(detector), len(LayerIG().shares(segmenter))) == ([0.5], 4)
    with pytest.raises(MethodError, match="baseline: did you mean 'blur'"):
        LayerIG(baseline="blurr")
    with pytest.raises(MethodError, match="not a sum over channels"):  # of activations, which `eigen` would project
        get_method("eigen:layerig")


def test_a_target_that_is_not_a_class_stays(exact: Setting) -> None:
    assert exact.explain("layerig", target="top", max_det=1).settings["target"] == "top"


@pytest.mark.parametrize("kind", ["rt_detr", "detr"])
def test_the_queries_are_those_of_the_image(kind: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against plain hooks: for the features on the way the encoder would select other queries."""
    model, processor = random_detr(kind, seed)
    picture = random_picture(seed, 96, 128)
    before = fingerprint(model)
    explainer = Explainer(model, LayerIG(**RAW), processor=processor, conf=0.0, max_det=3)
    explanation = explainer(picture)
    assert fingerprint(model) == before
    adapter = explainer.adapter
    stem = adapter.module.get_submodule(explainer.plan.names[0])
    pixels = adapter.prepare(picture)[0][None]
    kept: list[Tensor] = []
    selected: list[Tensor] = []
    topk = torch.topk

    def recording(*args: Any, **options: Any) -> Any:
        result = topk(*args, **options)
        selected.append(result.indices)
        return result

    def replaying(values: Tensor, k: int, dim: int = -1, **options: Any) -> Any:
        indices = selected.pop(0)
        return torch.return_types.topk((values.gather(dim, indices), indices))

    handle = stem.register_forward_hook(lambda m, a, out: kept.append(out))
    with torch.no_grad():
        adapter.forward(baselines(pixels)["blur"], 300)
        monkeypatch.setattr(torch, "topk", recording)
        adapter.forward(pixels, 300)
    handle.remove()
    assert bool(selected) == (kind == "rt_detr")
    monkeypatch.setattr(torch, "topk", replaying)
    difference = kept[1] - kept[0]
    leaf = (kept[0] + difference / 2).requires_grad_()
    handle = stem.register_forward_hook(lambda m, a, out: leaf)
    with torch.enable_grad():
        outputs = adapter.forward(pixels, 300)
    handle.remove()
    for raw, score in zip(explanation.maps, adapter.score(outputs, [explanation.objects], "class"), strict=True):
        (gradient,) = torch.autograd.grad(score, leaf, retain_graph=True)
        expected = (gradient * difference).sum(dim=1)[0]
        torch.testing.assert_close(raw, expected, rtol=0, atol=1e-3 * float(expected.abs().max()))


class Forked(Grid):
    """Reads the image a second time, behind its first convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Conv2d(3, 5, 3, padding=1)

    def forward(self, x: Tensor) -> Any:
        logits, *rest = super().forward(x)
        return logits + self.second(x).mean(dim=(2, 3))[:, None, : logits.shape[2]], *rest


def test_an_image_that_enters_in_two_places_is_told(seed: int) -> None:
    picture = random_picture(seed, SIZE, SIZE)
    with pytest.warns(UserWarning, match="also around layer 'backbone'"):
        Explainer(Forked(), "layerig", adapter=adapter(), imgsz=SIZE, conf=0.0, max_det=2)(picture)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        both = adapter(layers={"level": ["neck.1"], "stem": ["backbone", "second"]})
        explanation = Explainer(Forked(), "layerig", adapter=both, imgsz=SIZE, conf=0.0, max_det=2)(picture)
    assert explanation.settings["layers"] == ["backbone", "second"]
