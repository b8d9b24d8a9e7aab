from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("ultralytics")

from benchmarks.recipes import (
    MAIN,
    BaseMaps,
    alike,
    gated,
    made,
    net_evidence,
    over_maximum,
    product,
    rectified,
    signed,
    summed,
)
from detcam import Explainer
from detcam.methods.path import LayerIG
from detcam.scenes import HELD_OUT_SEED
from detcam.scenes.planted import draw_planted


@pytest.fixture(scope="module")
def image() -> Any:
    return draw_planted(HELD_OUT_SEED, "mark").image


@pytest.fixture(scope="module")
def explanation(image: Any) -> Any:
    return Explainer("planted_mark", "layerig")(image)


@pytest.fixture(scope="module")
def bases() -> BaseMaps:
    return BaseMaps("planted_mark", [MAIN["layerig"], MAIN["odam @ level"]])


def test_the_recipe_of_layerig_is_the_method(bases: BaseMaps, image: Any, explanation: Any) -> None:
    ours = made(MAIN["layerig"], bases(image, explanation.objects))
    assert len(ours) == len(explanation) > 0
    for a, b in zip(ours.maps, explanation.maps, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))


def test_a_twin_explains_the_same_objects_by_other_maps_and_leaves_the_model(
    bases: BaseMaps, image: Any, explanation: Any
) -> None:
    objects = explanation.objects.select(torch.arange(2))
    before, twin, after = bases(image, objects), bases(image, objects, 3), bases(image, objects)
    for name, recipe in MAIN.items():
        if not set(recipe.bases) <= set(before):
            continue
        first, other, again = (made(recipe, explained) for explained in (before, twin, after))
        assert torch.equal(other.boxes, objects.boxes)
        assert all(torch.equal(a, b) for a, b in zip(first.maps, again.maps, strict=True)), name
        assert all(-0.5 < value < 0.9 for value in alike(first, other)), name
        assert alike(first, again) == pytest.approx([1.0, 1.0], abs=1e-6)


def test_signs_cancel_before_the_relu_only() -> None:
    board = (torch.arange(40)[:, None] + torch.arange(40)) % 2 * 2.0 - 1
    inner = slice(10, 30)
    assert signed(board, 0.05)[inner, inner].abs().max() < 1e-3
    assert rectified(board, 0.05)[inner, inner].min() > 0.49
    assert torch.equal(signed(board, LayerIG().smooth), LayerIG().finished(board))


def test_joins_by_hand() -> None:
    a, b = torch.tensor([[2.0, -1.0], [1.0, 0.0]]), torch.tensor([[4.0, 4.0], [0.0, -2.0]])
    assert torch.equal(over_maximum(a), torch.tensor([[1.0, 0.0], [0.5, 0.0]]))
    assert torch.equal(product(a, b), torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    assert torch.equal(summed(a, b, smooth=0.0), torch.tensor([[2.0, 0.5], [0.5, -0.5]]))
    assert torch.equal(gated(a, 0.0, 0.0), over_maximum(a) ** 2)
    assert not over_maximum(-a.abs()).any()


def test_net_evidence_in_two_halves_is_the_sum_of_the_map(bases: BaseMaps, image: Any, explanation: Any) -> None:
    ours = made(MAIN["layerig"], bases(image, explanation.objects))
    left = torch.zeros(image.shape[:2], dtype=torch.bool)
    left[:, : image.shape[1] // 3] = True
    whole = torch.stack([raw.sum() for raw in ours.maps])
    assert torch.allclose(net_evidence(ours, left) + net_evidence(ours, ~left), whole, rtol=1e-3, atol=1e-3)
