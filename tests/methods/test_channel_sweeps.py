"""Changed activations against whole forwards with plain hooks, and a peer."""

from typing import Any

import pytest
import pytorch_grad_cam as peer
import torch
from pytorch_grad_cam.ablation_layer import AblationLayer
from sweep_formulas import logits_with
from sweep_settings import LAYER, Setting, assert_maps, captured, peer_map
from torch import nn

from detcam.methods.channels import ReciproCAM


@pytest.mark.nightly  # at one layer by default, see test_formulas
def test_ablationcam_by_hand(exact: Setting) -> None:
    """At the head's inputs: each object ablated at its own level, while the other levels keep their values."""
    explanation = exact.explain("ablationcam", layers="level")
    names = ("model.15", "model.18", "model.21")
    everything = {name: acts[None] for name, acts in zip(names, captured(exact, *names), strict=True)}
    before = exact.logits(exact.pixels, explanation)
    assert len(explanation) == 4
    for i, level in enumerate(explanation.objects.level.tolist()[:2]):
        acts = everything[names[level]][0]
        ablated = acts.repeat(len(acts), 1, 1, 1)
        for k in range(len(acts)):
            ablated[k, k] = 0
        after = logits_with(exact, explanation, {**everything, names[level]: ablated})[:, i]
        truth = sum((before[i] - after[k]) / before[i].abs() * acts[k] for k in range(len(acts)))
        ours = explanation.maps[i]
        torch.testing.assert_close(ours, truth.float(), rtol=0, atol=1e-4 * float(truth.abs().max()))


def test_layers_that_are_all_cut_add_up(exact: Setting) -> None:
    """The preset "evidence": each layer changed while the others keep their values, the maps added."""
    names = ("model.4", "model.6", "model.9")
    explanation = exact.explain(ReciproCAM(cells=2), layers="evidence")
    everything = {name: acts[None] for name, acts in zip(names, captured(exact, *names), strict=True)}
    expected = torch.zeros(4, 2, 2)
    for name, acts in everything.items():
        nothing = logits_with(exact, explanation, {**everything, name: torch.zeros_like(acts)})[0]
        halves = [(slice(0, round(side / 2)), slice(round(side / 2), side)) for side in acts.shape[2:]]
        for i in range(2):
            for j in range(2):
                kept = torch.zeros_like(acts)
                kept[..., halves[0][i], halves[1][j]] = acts[..., halves[0][i], halves[1][j]]
                expected[:, i, j] += logits_with(exact, explanation, {**everything, name: kept})[0] - nothing
    assert_maps(explanation, expected)


@pytest.mark.nightly
def test_ablationcam_equals_pytorch_grad_cam(exact: Setting) -> None:
    """Behind a ReLU: elsewhere the peer puts -1e7 into a channel, far from any activation, instead of zero."""
    layer: Any = exact.model.get_submodule(LAYER)
    layer.cv2.act = nn.ReLU()
    explanation = exact.explain("ablationcam", layers=[LAYER], conf=0.0, iou=1.0)
    assert float(captured(exact, LAYER)[0].min()) == 0
    stand_in: Any = AblationLayer()
    stand_in.f, stand_in.i, stand_in.type = layer.f, layer.i, layer.type  # what Ultralytics reads of a layer
    before = exact.logits(exact.pixels, explanation)
    theirs = [peer_map(peer.AblationCAM, exact, explanation, i, ablation_layer=stand_in) for i in range(4)]
    expected = torch.stack([t * s.sign() for t, s in zip(theirs, before, strict=True)])  # we divide by |S|
    assert_maps(explanation, expected)
