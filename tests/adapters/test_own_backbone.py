"""torchvision detectors with a backbone of the user's own, whatever its parts are called."""

from __future__ import annotations

import pytest
import torch
from support import random_picture
from torch import Tensor, nn

from detcam import Explainer

NAMES = {
    "neck": ("neck",),
    "fpn": ("fpn",),
    "fpn beside a body": ("fpn", "body"),
    "fpn beside features": ("fpn", "features", "extra"),
    "pyramid called features": ("features", "extra"),
    "pyramid called body": ("body", "fpn"),
}


class Backbone(nn.Module):
    """Two stages and torchvision's pyramid, called `name`; what else has torchvision's names is something else."""

    out_channels = 16

    def __init__(self, name: str, *others: str) -> None:
        from torchvision.ops import FeaturePyramidNetwork

        super().__init__()
        self.name, self.first, self.second = name, nn.Conv2d(3, 8, 3, 8, 1), nn.Conv2d(8, 16, 3, 2, 1)
        setattr(self, name, FeaturePyramidNetwork([8, 16], 16))
        for other in others:
            setattr(self, other, nn.Sequential(nn.Identity()))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        first = self.first(x)
        maps: dict[str, Tensor] = getattr(self, self.name)({"0": first, "1": self.second(first)})
        return maps


def detector(kind: str, names: tuple[str, ...], seed: int) -> nn.Module:
    from torchvision.models.detection import FasterRCNN, RetinaNet
    from torchvision.models.detection.rpn import AnchorGenerator
    from torchvision.ops import MultiScaleRoIAlign

    torch.manual_seed(seed)
    anchors = AnchorGenerator(((32,), (64,)), ((1.0,),) * 2)
    sizes = {"num_classes": 3, "min_size": 96, "max_size": 128}
    if kind == "retinanet":
        return RetinaNet(Backbone(*names), anchor_generator=anchors, score_thresh=0.0, **sizes).eval()
    pool = MultiScaleRoIAlign(["0", "1"], 7, 2)
    return FasterRCNN(Backbone(*names), rpn_anchor_generator=anchors, box_roi_pool=pool, **sizes).eval()


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
@pytest.mark.parametrize("kind", ["rcnn", "retinanet"])
def test_the_maps_do_not_depend_on_the_names(kind: str, names: tuple[str, ...], seed: int) -> None:
    pytest.importorskip("torchvision")
    picture = random_picture(seed, 96, 128)
    plain, named = (detector(kind, given, seed) for given in (("neck",), names))
    for layers in ("level", "evidence"):
        ours, theirs = (
            Explainer(model, conf=0.0, max_det=2, method="odam", layers=layers)(picture) for model in (named, plain)
        )
        assert len(ours) == 2
        assert ours.settings["layers"] == ["backbone"]
        torch.testing.assert_close(ours.boxes, theirs.boxes)
        for a, b in zip(ours.maps, theirs.maps, strict=True):
            assert bool(a.any())
            torch.testing.assert_close(a, b)
