"""A model of the user's own, described by a few functions: the same promises as for every family."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from custom_models import SIZE, Grid, adapter, detect, forward, random_grid, score
from support import random_picture
from torch import Tensor, nn

from detcam import Explainer
from detcam.adapters import CallableAdapter
from detcam.errors import InputError, LayerError, ModelError, TargetError
from detcam.methods.perturbation import Occlusion


@pytest.fixture
def model(seed: int) -> nn.Module:
    return random_grid(seed)


def conf_for(model: nn.Module, picture: np.ndarray, count: int = 6) -> float:
    """A threshold that `count` objects exceed, or some more: in the widest gap, as many cells of grey score the same."""
    scores = Explainer(model, adapter=adapter(), imgsz=SIZE, conf=0.0)(picture).scores
    last = count - 1 + int(scores[count - 1 :].diff().argmin())
    return float(scores[last : last + 2].mean())


def explain(model: nn.Module, picture: Any, given: CallableAdapter | None = None, **options: Any) -> Any:
    return Explainer(model, adapter=given or adapter(), **{"imgsz": SIZE, **options})(picture)


@pytest.mark.parametrize("layers", [["neck.1"], ["backbone.2"], "evidence"])
@pytest.mark.parametrize("target", ["class", "box"])
def test_maps_are_the_slope_of_the_score(target: str, layers: Any, model: nn.Module, seed: int) -> None:
    """Scaling the layer's output by 1 + h changes the score by h times the sum of the map, to first order."""
    model = model.double()
    picture = random_picture(seed, 64, 64)
    given = adapter(layers={"level": ["neck.1"], "evidence": ["backbone.2"]})
    conf = conf_for(model, picture)
    explanation = explain(model, picture, given, conf=conf, target=target, layers=layers)
    name = "backbone.2" if layers == "evidence" else layers[0]
    assert explanation.settings["layers"] == [name]
    pixels = torch.from_numpy(picture).permute(2, 0, 1)[None].double() / 255
    height, width = explanation.maps[0].shape
    cells = torch.rand(height, width, dtype=torch.float64)  # one step into a random direction of cells

    def scores_at(step: float) -> Tensor:
        handle = model.get_submodule(name).register_forward_hook(lambda m, a, out: out * (1 + step * cells))
        with torch.no_grad():
            values = score(forward(model, pixels), [explanation.objects], target)
        handle.remove()
        return values if values.ndim == 2 else values[:, None]

    slopes = (scores_at(1e-6) - scores_at(-1e-6)) / 2e-6  # [N, K]
    along = torch.stack([(raw.double() * cells).sum() for raw in explanation.maps])
    if target == "class":
        torch.testing.assert_close(along, slopes[:, 0], rtol=1e-4, atol=1e-5)
    else:  # the element-wise maximum of four maps lies above each of them
        assert bool((along + 1e-5 >= slopes.amax(dim=1)).all())


def test_one_description_serves_several_models(model: nn.Module, seed: int) -> None:
    picture = random_picture(seed, 64, 64)
    given = adapter()
    first, second = Explainer(model, adapter=given, imgsz=64), Explainer(Grid().double(), adapter=given, imgsz=96)
    assert (first.adapter.imgsz, second.adapter.imgsz) == (64, 96)
    assert first.adapter.module is not second.adapter.module
    assert first.adapter.prepare(picture)[0].dtype == torch.float32
    assert second.adapter.prepare(picture)[0].dtype == torch.float64
    assert second.adapter.prepare(picture)[0].shape == (3, 96, 96)
    assert Explainer(model, adapter=given).adapter.prepare(picture)[0].shape == (3, 640, 640)


def test_limits_sweeps_masks_and_files(model: nn.Module, seed: int, tmp_path: Path) -> None:
    picture = random_picture(seed, 64, 64)
    explanation = explain(model, picture, conf=0.0, max_det=3)
    assert len(explanation) == 3
    assert explanation.scores.tolist() == sorted(explanation.scores.tolist(), reverse=True)
    assert explanation.labels == [{0: "cat", 1: "dog"}.get(c, f"class {c}") for c in explanation.class_ids.tolist()]
    explanation.save(tmp_path)
    assert json.loads((tmp_path / "explanation.json").read_text())["settings"]["family"] == "custom"
    assert len(explain(model, picture, conf=1.0)) == 0
    swept = explain(model, picture, conf=0.0, max_det=3, method=Occlusion(cells=2))
    assert all(bool(raw.any()) for raw in swept.maps)
    with pytest.raises(InputError, match="list no candidates"):
        explain(model, picture, conf=0.0, max_det=1, method="drise")

    def with_masks(outputs: Any, conf: float) -> list[dict[str, Tensor]]:
        return [{**row, "mask_logits": torch.ones(len(row["index"]), 8, 8)} for row in detect(outputs, conf)]

    masks = explain(model, picture, adapter(detect=with_masks), conf=0.0, max_det=3).masks
    assert masks.shape == (3, 64, 64)
    assert bool(masks.flatten(1).any(dim=1).all())


def test_what_is_not_finite_stays_inside(model: nn.Module, seed: int) -> None:
    def broken(outputs: Any, conf: float) -> list[dict[str, Tensor]]:
        rows = detect(outputs, conf)
        rows[0]["boxes"] = rows[0]["boxes"].index_fill(0, torch.tensor([0]), float("nan"))
        return rows

    picture = random_picture(seed, 64, 64)
    whole = explain(model, picture, conf=0.0)
    explanation = explain(model, picture, adapter(detect=broken), conf=0.0)
    assert explanation.objects.index.tolist() == whole.objects.index.tolist()[1:]


def returning(value: Any) -> CallableAdapter:
    return adapter(detect=lambda outputs, conf: value)


def test_mistakes_are_named(model: nn.Module, seed: int) -> None:
    picture = random_picture(seed, 64, 64)
    (row,) = detect(forward(model, torch.zeros(1, 3, 64, 64)), 0.0)
    for given, message in [
        (returning(None), "detect: expected a list of 1 dicts, one for each image, got a NoneType"),
        (returning([]), "got a list of 0"),
        (returning([row, row]), "got a list of 2"),
        (returning([{k: v for k, v in row.items() if k != "index"}]), "no 'index'"),
        (returning([{**row, "scores": row["scores"][:2]}]), r"expected shape \(64,\), got \(2,\)"),
        (returning([{**row, "boxes": [1, 2]}]), "detect: expected dicts"),
        (returning([3]), "detect: expected dicts"),
    ]:
        with pytest.raises(ModelError, match=message) as caught:
            explain(model, picture, given)
        assert "\n" not in str(caught.value)
    for value in (lambda o, objects, t: 1.0, lambda o, objects, t: o[0], lambda o, objects, t: torch.zeros(2, 1, 1)):
        with pytest.raises(TargetError, match=r"CallableAdapter.score: expected a tensor of shape \[64\]"):
            explain(model, picture, adapter(score=value), conf=0.0)
    with pytest.raises(LayerError, match=r"CallableAdapter: layer 'neck\.9' does not exist"):
        explain(model, picture, adapter(layers=["neck.9"]))
    with pytest.raises(LayerError, match=r"'nick\.1' does not exist: did you mean 'neck\.1'"):
        explain(model, picture, layers=["nick.1"])
    with pytest.raises(TargetError, match="'mask' does not exist for this custom detect model"):
        explain(model, picture, target="mask")
    with pytest.raises(LayerError, match=r"layer 'neck\.1' does not exist"):
        Explainer(forward, adapter=adapter())


class Channels(nn.Module):
    """What a 1 x 1 convolution computes, by a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Pooled(Grid):
    """A grid whose image enters through no convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.neck = nn.Sequential(nn.AvgPool2d(8)), nn.Sequential(nn.Identity())
        self.head = Channels()  # type: ignore[assignment]


def test_auto_shows_where_in_a_model_without_a_stem(model: nn.Module, seed: int) -> None:
    picture, given = random_picture(seed, 64, 64), adapter(layers=["backbone.0"])
    found = explain(Pooled().eval(), picture, given, conf=0.0, max_det=2)
    assert (found.settings["method"], found.settings["layers"]) == ("odam", ["backbone.0"])
    with pytest.raises(LayerError, match="no convolution runs in Pooled"):
        explain(Pooled().eval(), picture, given, method="layerig")
    assert explain(model, picture, conf=0.0, max_det=2).settings["view"] == "why"
