"""Small stand-ins for the networks of docs/recipes.md, with the interfaces of YOLOv5's and v7's repositories, effdet, MONAI."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

CLASSES, ANCHORS = 4, 3


def conv(channels: int, to: int, stride: int = 1) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, to, 3, stride, 1), nn.ReLU())


class Detect(nn.Module):
    """The anchor head: (decoded [B, A, 5 + C] after sigmoids, changed in place; logits [B, anchors, h, w, 5 + C])."""

    def __init__(self) -> None:
        super().__init__()
        self.m = nn.ModuleList(nn.Conv2d(8, ANCHORS * (5 + CLASSES), 1) for _ in range(3))
        self.register_buffer("sides", torch.rand(3, ANCHORS, 2) * 40 + 20)

    def forward(self, levels: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        decoded = []
        for i, stride in enumerate((8, 16, 32)):
            raw = self.m[i](levels[i])
            batch, _, height, width = raw.shape
            levels[i] = raw.view(batch, ANCHORS, 5 + CLASSES, height, width).permute(0, 1, 3, 4, 2).contiguous()
            y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
            values = levels[i].sigmoid()
            values[..., :2] = (values[..., :2] * 2 - 0.5 + torch.stack([x, y], dim=2)) * stride
            values[..., 2:4] = (values[..., 2:4] * 2) ** 2 * self.sides[i][:, None, None]
            decoded.append(values.view(batch, -1, 5 + CLASSES))
        return torch.cat(decoded, dim=1), levels


class AnchorYolo(nn.Module):
    """A network with the layers' numbers of YOLOv5, and `names`."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.model = nn.Sequential(*(nn.Identity() for _ in range(24)), Detect())
        self.model[0] = nn.Sequential(nn.Conv2d(3, 8, 8, 8), nn.ReLU())
        self.model[17], self.model[20], self.model[23] = conv(8, 8), conv(8, 8, 2), conv(8, 8, 2)
        for head in self.model[24].m:
            nn.init.normal_(head.weight, 0, 4.0)
        self.names = {i: f"thing {i}" for i in range(CLASSES)}

    def forward(self, pixels: Tensor) -> tuple[Tensor, list[Tensor]]:
        first = self.model[17](self.model[0](pixels))
        second = self.model[20](first)
        return self.model[24]([first, second, self.model[23](second)])


def calibrated(pixels: Tensor, count: int = 5) -> AnchorYolo:
    """A network that gives `count` anchors of an image [1, 3, h, w] a score over 0.25."""
    model = AnchorYolo()
    with torch.no_grad():
        logits = torch.cat([level.flatten(1, 3) for level in model(pixels)[1]], dim=1)[0]
        best = logits[:, 5:].sigmoid().amax(dim=1).clamp(min=0.2501)
        needed = ((0.25 / best).logit() - logits[:, 4]).sort().values  # the bias from which each anchor counts
        for head in model.model[24].m:
            head.bias.view(ANCHORS, -1)[:, 4] += (needed[count - 1] + needed[count]) / 2
    return model


class EfficientDet(nn.Module):
    """Logits [B, anchors x C, h, w] and box codes [B, anchors x 4, h, w] for each of two levels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.config = SimpleNamespace(num_classes=CLASSES, image_size=(128, 128), num_levels=2)
        self.backbone = nn.ModuleDict({"conv_stem": nn.Conv2d(3, 8, 8, 8)})
        self.fpn = conv(8, 8, 2)
        self.classes, self.boxes = nn.Conv2d(8, CLASSES, 1), nn.Conv2d(8, 4, 1)
        nn.init.normal_(self.classes.weight, 0, 2)

    def forward(self, pixels: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        first = self.backbone["conv_stem"](pixels)
        levels = [first, self.fpn(first)]
        return [self.classes(level) for level in levels], [self.boxes(level) for level in levels]


def anchor_boxes() -> Tensor:
    """[A, 4] (y1, x1, y2, x2) of both levels."""
    rows = []
    for cells, stride in ((16, 8), (8, 16)):
        y, x = torch.meshgrid(torch.arange(cells) + 0.5, torch.arange(cells) + 0.5, indexing="ij")
        centre = torch.stack([y.flatten(), x.flatten()], dim=1) * stride
        rows.append(torch.cat([centre - stride, centre + stride], dim=1))
    return torch.cat(rows)


def decode(codes: Tensor, anchors: Tensor, output_xyxy: bool = False) -> Tensor:
    assert output_xyxy
    centre, sides = (anchors[:, :2] + anchors[:, 2:]) / 2, anchors[:, 2:] - anchors[:, :2]
    middle, half = centre + codes[:, :2] * sides, codes[:, 2:].exp() * sides / 2
    return torch.cat([middle - half, middle + half], dim=1)[:, [1, 0, 3, 2]]


class UNet(nn.Sequential):
    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int, **rest: Any) -> None:
        super().__init__(nn.Conv2d(in_channels, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, out_channels, 1))


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins for what is not installed; effdet itself makes a small network without downloaded weights."""

    def module(name: str, **names: Any) -> None:
        made = ModuleType(name)
        vars(made).update(names)
        monkeypatch.setitem(sys.modules, name, made)

    if importlib.util.find_spec("effdet") is None:
        module("effdet", create_model=lambda name, pretrained: EfficientDet())
        made = SimpleNamespace(from_config=lambda config: SimpleNamespace(boxes=anchor_boxes()))
        module("effdet.anchors", Anchors=made, decode_box_outputs=decode)
    else:
        import effdet

        real, options = effdet.create_model, {"pretrained_backbone": False, "image_size": (128, 128)}
        monkeypatch.setattr(effdet, "create_model", lambda name, pretrained: real(name, pretrained=False, **options))
    if importlib.util.find_spec("monai") is None:
        for name in ("monai", "monai.networks"):
            module(name)
        module("monai.networks.nets", UNet=UNet)
