"""A model of the user's own, described by a few functions: the same promises as for every family."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from support import fingerprint, random_picture
from torch import Tensor, nn

from detcam import Explainer, Explanation
from detcam.adapters import CallableAdapter
from detcam.errors import InputError, LayerError, ModelError, TargetError
from detcam.methods.perturbation import Occlusion
from detcam.types import Objects

SIZE, STRIDE, KINDS = 64, 8, 3
MEAN = torch.tensor([0.4, 0.5, 0.6])[:, None, None]


class Grid(nn.Module):
    """A small detector: an anchor in each cell of 8 pixels, logits [B, A, 3] and boxes [B, A, 4] in pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.ReLU(inplace=True), nn.BatchNorm2d(8))
        self.neck = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
        self.head = nn.Conv2d(8, KINDS + 4, 3, 1, 1)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        raw = self.head(self.neck(self.backbone(pixels)))
        height, width = raw.shape[2:]
        raw = raw.flatten(2).transpose(1, 2)
        y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
        centre = torch.stack([x.flatten(), y.flatten()], dim=1).to(raw) * STRIDE
        sides = raw[..., KINDS:].sigmoid() * 2 * STRIDE
        return raw[..., :KINDS], torch.cat([centre - sides[..., :2], centre + sides[..., 2:]], dim=2)


def forward(module: nn.Module, batch: Tensor) -> tuple[Tensor, Tensor]:
    logits, boxes = module(batch - MEAN.to(batch))
    return logits, boxes


def detect(outputs: tuple[Tensor, Tensor], conf: float) -> list[dict[str, Tensor]]:
    found = []
    for logits, boxes in zip(*outputs, strict=True):
        scores, classes = logits.sigmoid().max(dim=1)
        i = scores.argsort(descending=True)
        i = i[scores[i] > conf]
        found.append({"boxes": boxes[i], "scores": scores[i], "class_ids": classes[i], "index": i})
    return found


def score(outputs: tuple[Tensor, Tensor], objects: list[Objects], target: str) -> Tensor:
    logits, boxes = outputs
    if target == "box":
        return torch.cat([boxes[i, o.index] * boxes.new_tensor([-1, -1, 1, 1]) for i, o in enumerate(objects)])
    return torch.cat([logits[i, o.index, o.class_ids] for i, o in enumerate(objects)])


def adapter(**changed: Any) -> CallableAdapter:
    given = {"forward": forward, "detect": detect, "score": score, "layers": ["neck.1"], "targets": ("class", "box")}
    return CallableAdapter(**{**given, "names": ["cat", "dog"], **changed})


@pytest.fixture
def model(seed: int) -> nn.Module:
    model = Grid()
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.normal_(norm.running_mean, 0, 0.2)
    nn.init.normal_(model.head.weight, 0, 0.5)
    return model.eval()


def conf_for(model: nn.Module, picture: np.ndarray, count: int = 6) -> float:
    """A threshold that `count` objects exceed, or some more: in the widest gap, as many cells of grey score the same."""
    scores = Explainer(model, adapter=adapter(), imgsz=SIZE, conf=0.0)(picture).scores
    last = count - 1 + int(scores[count - 1 :].diff().argmin())
    return float(scores[last : last + 2].mean())


def explain(model: nn.Module, picture: Any, given: CallableAdapter | None = None, **options: Any) -> Any:
    return Explainer(model, adapter=given or adapter(), **{"imgsz": SIZE, **options})(picture)


def test_boxes_in_source_pixels(model: nn.Module, seed: int) -> None:
    """A 2:1 picture in a square: half of the network's input is grey, equally above and below."""
    picture = random_picture(seed, 48, 96)
    conf = conf_for(model, picture)
    explanation = explain(model, picture, conf=conf)
    # The letterbox by hand: 96 x 48 becomes 64 x 32, 16 rows of grey on both sides.
    square = np.full((SIZE, SIZE, 3), 114, np.uint8)
    square[16:48] = cv2.resize(picture, (64, 32), interpolation=cv2.INTER_LINEAR)
    batch = torch.from_numpy(square).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        (row,) = detect(forward(model, batch), conf)
    expected = (row["boxes"] - torch.tensor([0, 16.0, 0, 16])) * 1.5
    expected[:, 0::2], expected[:, 1::2] = expected[:, 0::2].clamp(0, 96), expected[:, 1::2].clamp(0, 48)
    assert len(explanation) == len(row["scores"]) >= 3
    torch.testing.assert_close(explanation.boxes, expected, rtol=0, atol=1e-3)
    torch.testing.assert_close(explanation.scores, row["scores"], rtol=0, atol=1e-5)
    assert explanation.labels == [{0: "cat", 1: "dog"}.get(c, f"class {c}") for c in row["class_ids"].tolist()]
    assert explanation.heatmaps.shape == (len(explanation), 48, 96)
    assert explanation.geometry.network == (SIZE, SIZE)


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


def test_the_model_is_untouched_and_a_list_gives_the_same(model: nn.Module, seed: int) -> None:
    model.train()
    model.neck.requires_grad_(False)
    before = fingerprint(model)
    pictures = [random_picture(seed + i, *shape) for i, shape in enumerate([(48, 96), (64, 64), (33, 100)])]
    conf = conf_for(model, pictures[0])
    together = explain(model, pictures, conf=conf)
    assert fingerprint(model) == before
    assert sum(len(e) for e in together) >= 5
    for picture, explanation in zip(pictures, together, strict=True):
        alone: Explanation = explain(model, picture, conf=conf)
        assert alone.labels == explanation.labels
        torch.testing.assert_close(alone.boxes, explanation.boxes, rtol=0, atol=1e-3)
        torch.testing.assert_close(alone.heatmaps, explanation.heatmaps, rtol=0, atol=1e-4)


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
    explanation.save(tmp_path)
    assert json.loads((tmp_path / "explanation.json").read_text())["settings"]["family"] == "own"
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
        (returning(None), "detect: expected a list of 1 dicts, one for each picture, got a NoneType"),
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
    with pytest.raises(TargetError, match="'mask' does not exist for this own detect model"):
        explain(model, picture, target="mask")
    with pytest.raises(ModelError, match=r"expected an nn\.Module, got a function"):
        Explainer(forward, adapter=adapter())
