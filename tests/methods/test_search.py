"""Search on models whose cause is known, with and without gradients; its formula is in `sweep_formulas.py`."""

from typing import Any

import numpy as np
import pytest
import torch
from support import random_picture
from torch import Tensor, nn

from detcam import Explainer, Explanation
from detcam.adapters import CallableAdapter
from detcam.methods.search import Search

SIDE = 96
CAUSE = np.s_[8:40, 56:88]  # rows and columns, away from the box
NEAR = np.s_[0:56, 40:96]  # the cause and a superpixel around it: those on its edge show it, too
BOX = (8.0, 56.0, 40.0, 88.0)


class Window(nn.Module):
    """One object in a fixed place, whose score is the mean brightness of another."""

    def __init__(self) -> None:
        super().__init__()
        self.copy = nn.Conv2d(3, 3, 1, bias=False)
        with torch.no_grad():
            self.copy.weight.copy_(torch.eye(3)[:, :, None, None])

    def forward(self, x: Tensor) -> Tensor:
        return self.copy(x)[(..., *CAUSE)].mean(dim=(1, 2, 3))


def explain(seed: int, layers: str = "copy", blind: bool = False, **options: Any) -> Explanation:
    def forward(module: nn.Module, batch: Tensor) -> Tensor:
        if blind:  # as a model of another library that only gives numbers
            with torch.no_grad():
                return module.get_submodule("copy").weight.sum() / 3 * batch[(..., *CAUSE)].mean(dim=(1, 2, 3))
        return module(batch)

    def detect(outputs: Tensor, conf: float) -> list[dict[str, Tensor]]:
        one = {"boxes": torch.tensor([BOX]), "scores": torch.tensor([0.9]), "class_ids": torch.tensor([0])}
        return [{**one, "index": torch.tensor([0])} for _ in outputs]

    def score(outputs: Tensor, objects: Any, target: str) -> Tensor:
        return torch.cat([outputs[i].expand(len(found)) for i, found in enumerate(objects)])

    adapter = CallableAdapter(forward, detect, score, layers=layers)
    method = Search(**{"regions": 36, "steps": 8, "window": 3, **options})
    return Explainer(Window(), method, adapter=adapter, imgsz=SIDE)(random_picture(seed, SIDE, SIDE))


@pytest.mark.parametrize("blind", [False, True])
def test_the_cause_is_found_with_and_without_gradients(blind: bool, seed: int) -> None:
    """A model that gives only numbers, whose layers never run, is searched from the box and from hiding."""
    explanation = explain(seed, blind=blind)
    heat = explanation.heatmaps[0]
    assert bool(heat[NEAR].max() == heat.max())
    assert float(heat[CAUSE].sum() / heat.sum()) > 0.33, "three times its share of the picture"
    assert explanation.settings["target"] == "class"


def test_what_is_taken_first_is_hottest_and_the_rest_has_an_order(seed: int) -> None:
    raw = explain(seed).maps[0]
    assert raw.shape == (SIDE // 8, SIDE // 8)
    assert float(raw.min()) > 0
    assert float(raw.max()) < 1.03
    assert len(raw.unique()) > 0.9 * raw.numel(), "ties would be broken by the metric, not by the map"
