"""Gains: one number per cell whose derivative is gradient times activation, exact and without the maps' gradients."""

from typing import Any

import pytest
import torch
from detr_models import random_rtdetr
from support import few, random_picture
from torch.nn.functional import grid_sample

import detcam.runners.gradient
from detcam import Explainer
from detcam.adapters.shared.deformable import GainSampling
from detcam.adapters.ultralytics.rtdetr import RtdetrAdapter
from detcam.engine import Capture, batched_gradients, shadow

pytest.importorskip("ultralytics")


def test_sampling_equals_grid_sample(seed: int) -> None:
    """Values, and gradients of gains, points and weights, for points inside, on the border and far outside."""
    shapes = ((4, 5), (2, 3))
    count, heads, width, queries, points = 26, 2, 3, 6, 2
    maps = torch.randn(1, count, heads, width, dtype=torch.float64)
    biases = torch.randn(2, heads, width, dtype=torch.float64)
    gains = torch.ones(1, count, dtype=torch.float64, requires_grad=True)
    places = torch.rand(1, queries, heads, 2 * points, 2, dtype=torch.float64) * 1.6 - 0.3
    places = places.requires_grad_()
    weights = torch.randn(1, queries, heads, 2 * points, dtype=torch.float64).softmax(-1).requires_grad_()
    rows = biases.repeat_interleave(torch.tensor([20, 6]), dim=0)[None]
    expected = torch.zeros(1, queries, heads, width, dtype=torch.float64)
    values = maps * gains[..., None, None] + rows
    start = 0
    for level, (h, w) in enumerate(shapes):
        level_map = values[0, start : start + h * w].permute(1, 2, 0).unflatten(2, (h, w))  # [H, D, h, w]
        own = slice(level * points, (level + 1) * points)
        grid = 2 * places[0, :, :, own].transpose(0, 1) - 1  # [H, Q, P, 2]
        samples = grid_sample(level_map, grid, align_corners=False)  # [H, D, Q, P]
        expected = expected + (samples * weights[0, :, :, own].transpose(0, 1)[:, None]).sum(-1).permute(2, 0, 1)[None]
        start += h * w
    actual = GainSampling.apply(values.detach(), biases, gains, places, weights, shapes)[0]
    torch.testing.assert_close(actual, expected)
    direction = torch.randn_like(expected)
    inputs = [gains, places, weights]
    for a, b in zip(
        torch.autograd.grad(actual, inputs, direction), torch.autograd.grad(expected, inputs, direction), strict=True
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("target", few(["class", "right"], "right"))
def test_derivatives_by_gains_are_gradient_times_activation(target: str, seed: int) -> None:
    picture = random_picture(seed, 96, 96)
    model = random_rtdetr("yolov8n-rtdetr.yaml", seed).double()
    view = shadow(model)
    adapter = RtdetrAdapter(view, model, 96)
    pixels, geometry = adapter.prepare(picture)
    modules = {name: view.get_submodule(name) for name in adapter.layers("level").names}
    with Capture(modules) as capture:
        outputs = adapter.forward(pixels[None], 300)
    objects = adapter.detect(outputs, [geometry], 0.0, 0.7, 6)
    maps = [captured.tensor for captured in capture.captured]
    scalars = adapter.score(outputs, objects, target)

    gains = [torch.ones(1, *m.shape[2:], dtype=m.dtype, requires_grad=True) for m in maps]
    run = adapter.gain_forward([m.detach() for m in maps])
    gained = run(gains)
    torch.testing.assert_close(gained.logits, outputs.logits)
    torch.testing.assert_close(gained.boxes, outputs.boxes)
    assert torch.equal(gained.sizes, outputs.sizes)
    chunks = list(batched_gradients(adapter.score(gained, objects, target), gains, memory=4, per_object=1))
    assert [len(found) for found, _ in chunks] == [4, 2]
    for i in range(6):
        gradients = torch.autograd.grad(scalars[i], maps, retain_graph=True)
        for level, (gradient, activation) in enumerate(zip(gradients, maps, strict=True)):
            expected = (gradient * activation).sum(dim=1)[0].detach()
            actual = torch.cat([one[level] for _, one in chunks])[i, 0]
            torch.testing.assert_close(actual, expected, rtol=1e-7, atol=1e-9 * float(expected.abs().max()))
    # Nothing stays behind in the view.
    assert torch.equal(adapter.forward(pixels[None], 300).logits, outputs.logits)


@pytest.mark.parametrize("target", few(["class", "box"], "class"))
def test_maps_by_gains_are_those_of_a_backward_for_each_object(
    target: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two pictures in one call; and a model that gives other scores under gains goes the full way."""
    pictures = [random_picture(seed, 64, 64), random_picture(seed + 1, 48, 64)]
    model = random_rtdetr("yolov8n-rtdetr.yaml", seed).double()
    explainer = Explainer(model, imgsz=64, conf=0.0, max_det=3, target=target)
    gained = explainer(pictures)
    with monkeypatch.context() as patch:
        patch.setattr(detcam.runners.gradient, "gain_maps", lambda *rest: None)
        full = explainer(pictures)
    original = RtdetrAdapter.gain_forward
    monkeypatch.setattr(RtdetrAdapter, "gain_forward", lambda self, maps: original(self, [m * 1.5 for m in maps]))
    refused = explainer(pictures)
    for ours, plain, again in zip(gained, full, refused, strict=True):
        assert len(ours) == 3
        assert ours.notes == plain.notes
        for a, b, c in zip(ours.maps, plain.maps, again.maps, strict=True):
            assert (a - b).abs().max() <= 1e-5 * b.abs().max()
            assert torch.equal(b, c)


def test_what_vmap_cannot_batch_gets_a_backward_for_each_object(seed: int) -> None:
    class Inverse(torch.autograd.Function):
        """An activation whose backward reads a value, which vmap refuses."""

        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return -x

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            return -gradient if gradient.sum().item() == gradient.sum().item() else gradient

    class Layer(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return Inverse.apply(Inverse.apply(x))

    model: Any = random_rtdetr("yolov8n-rtdetr.yaml", seed)
    picture = random_picture(seed, 96, 96)
    options: Any = {"layers": "level", "conf": 0.0, "max_det": 2, "imgsz": 96}
    expected = Explainer(model, "odam", **options)(picture)
    head = model.model[-1]
    head.dec_score_head[-1] = torch.nn.Sequential(Layer(), head.dec_score_head[-1])
    actual = Explainer(model, "odam", **options)(picture)
    for ours, theirs in zip(actual.maps, expected.maps, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))
