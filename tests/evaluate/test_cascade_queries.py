"""Randomised weights of transformers: the same queries, the order that layers run in, attention that keeps its graph."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from support import random_yolo
from torch import Tensor, nn

from detcam import Explainer, zoo
from detcam.engine.randomised import randomised, run_order
from detcam.evaluate.metrics.stability import cascade
from detcam.runners.twin import frozen_topk, held
from detcam.scenes import HELD_OUT_SEED, draw_scene


class Fake:
    """As much of an adapter as `frozen_topk` looks at."""

    def __init__(self, stable: bool) -> None:
        self.stable = stable


def test_models_with_fixed_queries_run_as_they_are() -> None:
    with frozen_topk(Fake(stable=True), lambda: pytest.fail("nothing to record"))():  # type: ignore[arg-type]
        assert torch.tensor([1.0, 3.0, 2.0]).topk(2).indices.tolist() == [1, 2]


@pytest.fixture(scope="module")
def transformer() -> Any:
    return zoo.load("scenes-detr")


@contextmanager
def noted(module: nn.Module) -> Iterator[list[Tensor]]:
    """What goes into a module, forward by forward."""
    seen: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
    yield seen
    handle.remove()


def test_the_same_queries_are_asked_of_changed_weights(transformer: Any) -> None:
    """With nothing changed but the layer that ranks cells: what the chosen cells hold is the same, if they are held."""
    explainer = Explainer(transformer, "attention", max_det=3)
    image = draw_scene(HELD_OUT_SEED).image
    plain = explainer(image)
    head = explainer.adapter.module.get_submodule("model.22")
    ranker: Any = head.enc_score_head

    def again() -> Any:
        with held(explainer.adapter, plain.objects):
            return explainer(image)

    same_queries = frozen_topk(explainer.adapter, again)
    with noted(head.enc_bbox_head) as chosen:
        again()
        with randomised(ranker, 1.0, 1):
            moved = again()
            with same_queries():
                kept = again()
    assert not torch.equal(chosen[1], chosen[0])
    assert torch.equal(chosen[2], chosen[0])
    assert all(torch.equal(a, b) for a, b in zip(kept.maps, plain.maps, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(moved.maps, plain.maps, strict=True))


def test_maps_of_attention_under_randomised_weights(transformer: Any) -> None:
    """Relevance needs the graph of the projections, which shuffled weights must keep; a Gaussian stays what it is."""
    image = draw_scene(HELD_OUT_SEED).image
    found = {}
    for method in ("relevance", "gaussian", "odam"):
        explainer = Explainer(transformer, method, max_det=3)
        plain = explainer(image)
        before = [p.data_ptr() for p in explainer.adapter.module.parameters()]
        found[method] = cascade(explainer, image, plain, [0, 1], stages=2)
        assert [p.data_ptr() for p in explainer.adapter.module.parameters()] == before
        again = explainer(image)
        assert all(torch.equal(a, b) for a, b in zip(plain.maps, again.maps, strict=True))
    assert bool(found["relevance"].isfinite().all())
    assert bool((found["relevance"] < 0.999).all())
    np.testing.assert_allclose(found["gaussian"].numpy(), 1, atol=1e-6)
    assert bool((found["odam"].abs() < 0.9).all())


class Backwards(nn.Module):
    """Layers registered the wrong way round, and one whose weights another one reads."""

    def __init__(self) -> None:
        super().__init__()
        self.aside = nn.Linear(2, 2)
        self.last = nn.Linear(2, 2)
        self.read = nn.Linear(2, 2)
        self.first = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x) @ self.read.weight
        result: Tensor = self.last(x)
        return result


def test_layers_count_in_the_order_that_they_run() -> None:
    model = Backwards()
    order = run_order(model, lambda: model(torch.ones(1, 2)))
    assert order == [model.aside, model.first, model.last, model.read]
    assert not any(m._forward_pre_hooks for m in model.modules())
    weights = dict(model.named_parameters())

    def changed(share: float, order: list[nn.Module] | None) -> set[str]:
        with randomised(model, share, 1, order):
            return {name.split(".")[0] for name, p in model.named_parameters() if p is not weights[name]}

    assert changed(0.5, order) == {"last", "read"}
    assert changed(0.75, order) == {"first", "last", "read"}
    assert changed(0.5, None) == {"read", "first"}
    assert all(p is weights[name] for name, p in model.named_parameters())


def test_shuffling_all_is_the_same_in_any_order(seed: int) -> None:
    """So that figures do not depend on how the order is found out."""
    picture = np.zeros((96, 96, 3), np.uint8)
    model = random_yolo("yolov8n.yaml", seed, picture, 96)
    order = run_order(model, lambda: model(torch.zeros(1, 3, 96, 96)))
    assert {id(m) for m in order} == {id(m) for m in model.modules() if list(m.parameters(recurse=False))}
    kept = []
    for given in (order, None):
        with randomised(model, 1.0, 3, given):
            kept.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*kept)
