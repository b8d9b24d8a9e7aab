"""Networks with layers and heads as people edit them: every map equals plain autograd's of the score that they output."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from support import few, random_picture, random_yolo
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from detcam import Explainer
from detcam.errors import LayerError

TOLERANCE = 1e-4  # of the maximum
SIDE = 128


class SE(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(c, 4), nn.ReLU(), nn.Linear(4, c), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc(x.mean((2, 3)))[:, :, None, None]


class CBAM(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.channel, self.space = nn.Conv2d(c, c, 1), nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.channel(nn.functional.adaptive_avg_pool2d(x, 1)).sigmoid()
        return x * self.space(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)).sigmoid()


class CoordAtt(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.mix, self.h, self.w = nn.Conv2d(c, 8, 1), nn.Conv2d(8, c, 1), nn.Conv2d(8, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = x.mean(3, keepdim=True), x.mean(2, keepdim=True).transpose(2, 3)
        h, w = nn.functional.hardswish(self.mix(torch.cat([rows, columns], 2))).split([x.shape[2], x.shape[3]], 2)
        return x * self.h(h).sigmoid() * self.w(w.transpose(2, 3)).sigmoid()


class GhostConv(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.first, self.cheap = nn.Conv2d(c, c // 2, 1), nn.Conv2d(c // 2, c // 2, 5, padding=2, groups=c // 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).relu()
        return torch.cat([y, self.cheap(y)], 1)


class PConv(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c // 4, c // 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = x.clone()
        y[:, : len(self.conv.weight)] = self.conv(x[:, : len(self.conv.weight)])  # in place, as in FasterNet
        return y


class Scan(nn.Module):
    """A recurrence over the cells, as in Mamba."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.decay = nn.Parameter(torch.zeros(c))

    def forward(self, x: Tensor) -> Tensor:
        state, states = torch.zeros_like(x[:, :, 0, 0]), []
        for cell in x.flatten(2).unbind(2):
            state = state * self.decay.sigmoid() + cell
            states.append(state)
        return x + torch.stack(states, 2).view_as(x)


class Deformable(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        from torchvision.ops import DeformConv2d

        self.offset, self.deform = nn.Conv2d(c, 18, 3, padding=1), DeformConv2d(c, c, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.deform(x, self.offset(x))


class RepConv(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.three, self.one, self.norm = nn.Conv2d(c, c, 3, padding=1), nn.Conv2d(c, c, 1), nn.BatchNorm2d(c)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.silu(self.three(x) + self.one(x) + self.norm(x))


class SwishFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x.sigmoid()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient * (x.sigmoid() + x * x.sigmoid() * (1 - x.sigmoid()))


class Swish(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return SwishFunction.apply(x)


class Checkpointed(nn.Module):
    def __init__(self, c: int, reentrant: bool = True) -> None:
        super().__init__()
        self.conv, self.reentrant = nn.Conv2d(c, c, 3, padding=1), reentrant

    def forward(self, x: Tensor) -> Tensor:
        run = lambda y: nn.functional.silu(self.conv(y))  # noqa: E731
        return x + (checkpoint(run, x, use_reentrant=True) if self.reentrant else run(x))


LAYERS = (SE, CBAM, CoordAtt, GhostConv, PConv, Scan, Deformable, RepConv, Swish, Checkpointed)


def with_layers(kind: Callable[[int], nn.Module], seed: int) -> tuple[nn.Module, np.ndarray]:
    """A small random YOLO with a layer of this kind in backbone, neck and class branch."""
    picture = random_picture(seed, 120, SIDE)
    model: Any = random_yolo("yolov8n.yaml", seed, picture, SIDE, found=2)
    head = model.model[-1]
    for block in (model.model[6].cv2, model.model[15].m[0].cv1, head.cv3[0][0]):
        block.act = nn.Sequential(nn.SiLU(), kind(block.conv.out_channels))
    return model.eval(), picture


def assert_plain(model: Any, picture: np.ndarray, layers: Any, target: str = "class", reference: Any = None) -> None:
    """The maps of gradient times activation equal those of autograd, taken from the model's own output."""
    explainer = Explainer(model, "odam", layers, target, conf=0.02, max_det=4, imgsz=SIDE)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "gradients in windows")
        explanation = explainer(picture)
    assert len(explanation)
    model, captured, names = reference or model, {}, explainer.plan.names
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


@pytest.mark.parametrize("layers", few(["level", ["model.4"]], ["model.4"]))
@pytest.mark.parametrize("kind", LAYERS)
def test_custom_layers_in_backbone_neck_and_head(kind: type[nn.Module], layers: Any, seed: int) -> None:
    model, picture = with_layers(kind, seed)
    reference = None
    if kind is Checkpointed:  # autograd.grad refuses a reentrant checkpoint, so the reference has none
        reference = with_layers(partial(Checkpointed, reentrant=False), seed)[0]
        reference.load_state_dict(model.state_dict())
    assert_plain(model, picture, layers, reference=reference)


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


def test_a_reentrant_checkpoint_that_only_some_levels_pass(seed: int) -> None:
    """The first objects' windows do not meet it, but the scores that they are compared with do."""
    model, picture = with_layers(Checkpointed, seed)
    reference = with_layers(partial(Checkpointed, reentrant=False), seed)[0]
    reference.load_state_dict(model.state_dict())
    assert_plain(model, picture, ["model.15"], reference=reference)


def test_a_layer_inside_a_reentrant_checkpoint_is_refused(seed: int) -> None:
    model, picture = with_layers(Checkpointed, seed)
    with pytest.raises(LayerError, match="or a checkpoint surrounds it: choose a layer"):
        Explainer(model, "odam", ["model.6.cv2.act.1.conv"], conf=0.02, max_det=2, imgsz=SIDE)(picture)


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
