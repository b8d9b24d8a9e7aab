"""Networks with heads as people edit them: every map equals plain autograd's of the score that they output."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from support import few, random_picture, random_yolo
from torch import Tensor, nn

from detcam import Explainer

TOLERANCE = 1e-4  # of the maximum
SIDE = 128


def assert_plain(model: Any, picture: np.ndarray, layers: Any, target: str = "class") -> None:
    """The maps of gradient times activation equal those of autograd, taken from the model's own output."""
    explainer = Explainer(model, "odam", layers, target, conf=0.02, max_det=4, imgsz=SIDE)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "gradients in windows")
        explanation = explainer(picture)
    assert len(explanation)
    captured, names = {}, explainer.plan.names
    for parameter in model.parameters():
        parameter.requires_grad_(False)

    def cut(name: str, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        captured[name] = output if output.requires_grad else output.detach().clone().requires_grad_()
        return captured[name].clone()

    handles = [model.get_submodule(name).register_forward_hook(partial(cut, name)) for name in names]
    decoded = model(explainer.adapter.prepare(explanation.image)[0][None])[0]
    logits = decoded[:, 4:].logit()  # of the very score that predict shows
    for handle in handles:
        handle.remove()
    facts = zip(*(getattr(explanation.objects, x).tolist() for x in ("level", "class_ids", "index")), strict=True)
    for (level, label, anchor), ours in zip(facts, explanation.maps, strict=True):
        layer = captured[names[level] if explainer.plan.fuse == "level" else names[0]]
        scalar = logits[0, label, anchor] if target == "class" else logits[0, label, anchor].sigmoid()
        gradient = torch.autograd.grad(scalar, layer, retain_graph=True)[0]
        plain = (gradient * layer).sum(dim=1)[0].detach()
        assert (ours - plain).abs().max() <= TOLERANCE * plain.abs().max()


def added(head: Any, preds: dict[str, Tensor]) -> Tensor:
    return preds["scores"] + torch.cat([q(f).flatten(2) for q, f in zip(head.quality, preds["feats"], strict=True)], 2)


def multiplied(head: Any, preds: dict[str, Tensor]) -> Tensor:
    return preds["scores"] * added(head, preds).mean(dim=1, keepdim=True).sigmoid()


def scaled(head: Any, preds: dict[str, Tensor]) -> Tensor:
    return preds["scores"] * 0.5


def straight_through(head: Any, preds: dict[str, Tensor]) -> Tensor:
    """The values of the branch with another gradient: only a comparison of gradients can tell."""
    other = added(head, preds)
    return preds["scores"].detach() + other - other.detach()


def clamped(head: Any, preds: dict[str, Tensor]) -> Tensor:
    return preds["scores"].clamp(max=0) * 1.5


HEADS = (added, multiplied, scaled, straight_through, clamped)


@pytest.mark.parametrize("target", few(["class", "prob"], "prob"))
@pytest.mark.parametrize("layers", ["level", ["model.4"]])
@pytest.mark.parametrize("change", HEADS)
def test_heads_whose_scores_are_not_their_branches_outputs(change: Any, layers: Any, target: str, seed: int) -> None:
    from ultralytics.nn.modules.head import Detect as Original

    class Detect(Original):
        def forward_head(self, *args: Any, **options: Any) -> Any:
            preds = super().forward_head(*args, **options)
            return {**preds, "scores": change(self, preds)}

    picture = random_picture(seed, 120, SIDE)
    model: Any = random_yolo("yolov8n.yaml", seed, picture, SIDE, found=2)
    head = model.model[-1]
    head.__class__ = Detect
    torch.manual_seed(seed)
    head.quality = nn.ModuleList([nn.Conv2d(branch[0].conv.in_channels, 1, 7, padding=3) for branch in head.cv3])
    for branch in head.quality:
        nn.init.normal_(branch.weight, std=0.02)
    assert_plain(model, picture, layers, target)


def scaled_when_decoded(head: Any, x: dict[str, Tensor]) -> Tensor:
    return torch.cat([head._get_decode_boxes(x), (x["scores"] * 0.5).sigmoid()], dim=1)


def rated_when_decoded(head: Any, x: dict[str, Tensor]) -> Tensor:
    """The root of class times quality, as in TOOD and PP-YOLOE."""
    quality = x["scores"][:, -1:].sigmoid()
    return torch.cat([head._get_decode_boxes(x), (x["scores"].sigmoid() * quality).sqrt()], dim=1)


@pytest.mark.parametrize("layers", ["level", ["model.4"]])
@pytest.mark.parametrize("decode", [scaled_when_decoded, rated_when_decoded])
def test_heads_that_change_the_scores_when_they_decode(decode: Any, layers: Any, seed: int) -> None:
    picture = random_picture(seed, 120, SIDE)
    model: Any = random_yolo("yolov8n.yaml", seed, picture, SIDE, found=2)
    head = model.model[-1]
    head.__class__ = type("TaskHead", (type(head),), {"_inference": decode})
    assert_plain(model, picture, layers)


def test_an_end_to_end_head_that_changes_the_scores_before_it_selects(seed: int) -> None:
    """Each object is the anchor that its score was read at."""
    picture = random_picture(seed, 120, SIDE)
    model: Any = random_yolo("yolo26n.yaml", seed, picture, SIDE, found=4)
    head = model.model[-1]
    head.__class__ = type("TaskHead", (type(head),), {"_inference": rated_when_decoded})
    head.end2end = True
    explainer = Explainer(model, "odam", "level", conf=0.02, max_det=6, imgsz=SIDE)
    explanation = explainer(picture)
    with torch.no_grad():
        raw = model(explainer.adapter.prepare(picture)[0][None])[1]["one2one"]["scores"].sigmoid()
    expected = (raw * raw[:, -1:]).sqrt()[0, explanation.class_ids, explanation.objects.index]
    torch.testing.assert_close(explanation.scores, expected)
    assert len(explanation) == 6


@pytest.mark.parametrize("layers", ["level", ["model.1"]])
def test_a_class_branch_that_all_levels_share(layers: Any, seed: int) -> None:
    from ultralytics.nn.tasks import DetectionModel

    rows = [[-1, 1, "Conv", [c, 3, 2]] for c in (16, 32, 64, 64, 64)]
    config = {"nc": 5, "backbone": rows, "head": [[[2, 3, 4], 1, "Detect", ["nc"]]]}
    torch.manual_seed(seed)
    model: Any = DetectionModel(config, ch=3, verbose=False)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2.5)
            nn.init.normal_(module.bias, 0, 0.3)
    head = model.model[-1]
    head.cv3 = nn.ModuleList([head.cv3[0]] * 3)
    nn.init.normal_(head.cv3[0][-1].weight, std=0.3)
    head.cv3[0][-1].bias.data.fill_(-3)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "gradients in windows")
        assert_plain(model.eval(), random_picture(seed, 120, SIDE), layers)
