"""The backwards that methods declare are those that happen, counted at autograd's door; forwards are counted elsewhere."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sweep_settings import SIZE, Setting
from torch import Tensor

from detcam import Explainer
from detcam.methods import METHODS, Method, get_method

sys.path.append(str(Path(__file__).parents[1] / "adapters"))
from detr_models import random_detr

GRADED = [
    name
    for name, kind in METHODS.items()
    if name not in ("cam", "finercam") and issubclass(kind, Method) and "gradients" in kind.reads
]
TWICE = {"shapleycam": 2, "fused": 2}  # L = 1: each object's own level


@pytest.fixture
def backwards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with every backward."""
    seen: list[int] = []
    original = torch.autograd.grad

    def counted(*args: Any, **options: Any) -> Any:
        seen.append(1)
        return original(*args, **options)

    monkeypatch.setattr(torch.autograd, "grad", counted)
    return seen


def own_target(explainer: list[Explainer]) -> Callable[[Any, Any], Tensor]:
    """The class logit as a user's own function, for which there is no cheaper way than the plain one."""
    return lambda outputs, objects: explainer[0].adapter.score(outputs, objects, "class")


@pytest.mark.parametrize("found", [1, 10])
@pytest.mark.parametrize("name", [*GRADED, "fused", "eigen:gradcam"])
def test_backwards_of_the_plain_way(name: str, found: int, setting: Setting, backwards: list[int]) -> None:
    made: list[Explainer] = []
    options = {"imgsz": SIZE, "max_det": found, "conf": 0.0, "iou": 1.0}
    made.append(Explainer(setting.model, name, target=own_target(made), **options))  # type: ignore[arg-type]
    assert len(made[0](setting.picture)) == found
    assert len(backwards) == found * TWICE.get(name, 1)
    assert get_method(name).passes.startswith("1 F + 2 N B" if name == "fused" else "1 F + N ")


@pytest.mark.parametrize("found", [1, 10])
def test_backwards_of_finer_cam(found: int, setting: Setting, backwards: list[int]) -> None:
    assert len(setting.explain("finercam", max_det=found, conf=0.0, iou=1.0)) == found
    assert len(backwards) == found


def test_all_objects_share_one_walk(setting: Setting, backwards: list[int]) -> None:
    """Where an adapter knows the cells, backwards read the seeds of each level, for both parts, and no more."""
    explainer = Explainer(setting.model, "fused", imgsz=SIZE, max_det=10, conf=0.0, iou=1.0)
    explainer(setting.picture)
    backwards.clear()
    assert len(explainer(setting.picture)) == 10
    assert len(backwards) <= 2 * 3


@pytest.mark.parametrize("found", [1, 6])
@pytest.mark.parametrize(("name", "times"), [("attention", 0), ("rollout", 0), ("relevance", 1)])
def test_passes_of_attention(name: str, times: int, found: int, seed: int, backwards: list[int]) -> None:
    model, processor = random_detr("detr", seed)
    runs: list[int] = []
    model.model.encoder.register_forward_pre_hook(lambda module, args: runs.append(1))
    picture = torch.rand(3, 96, 128)
    assert len(Explainer(model, name, processor=processor, conf=0.0, max_det=found)(picture)) == found
    assert len(runs) == 1
    assert len(backwards) == times * found
    assert get_method(name).passes == ("1 F + N B" if times else "1 F")
