"""Random models whose scores answer to the picture, and what plain single forwards of them give."""

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from support import random_picture, random_yolo, seed_of
from torch import Tensor, nn

from detcam import Explainer, Explanation
from detcam.methods import AnyMethod
from detcam.methods.perturbation import RandomMasks

LAYER = "model.15"  # 64 channels
SIZE = 96  # of the network's input


class Setting:
    """A random model, a picture that fills the network's input, and the raw logits of single forwards."""

    def __init__(self, seed: int, config: str = "yolov8n.yaml", dtype: torch.dtype = torch.float32) -> None:
        self.picture = random_picture(seed, 64, SIZE)
        self.model = random_yolo(config, seed, self.picture, SIZE, found=2)
        pictures = [self.picture, *(random_picture(seed + i, 64, SIZE) for i in (1, 2, 3))]
        pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).to(dtype) / 255
        masks = RandomMasks(8, 4, 0.5, (64, SIZE), seed)(slice(0, 8), torch.device("cpu"))[:, None].to(dtype)
        make_responsive(self.model.to(dtype), torch.cat([pixels, pixels.repeat(2, 1, 1, 1) * masks]))
        self.pixels = pixels[0]

    def explain(self, method: str | AnyMethod, **options: Any) -> Explanation:
        options = {"imgsz": SIZE, "max_det": 4, **options}
        return Explainer(self.model, method, **options)(self.picture)

    @torch.no_grad()
    def raw(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """What Ultralytics returns for one picture: decoded [4 + nc, A] (xywh, probabilities), logits [nc, A]."""
        decoded, raw = self.model(pixels[None])
        return decoded[0], raw["scores"][0]

    def logits(self, pixels: Tensor, explanation: Explanation) -> Tensor:
        """[N]: each object's class logit at its own anchor, for other pixels."""
        return self.raw(pixels)[1][explanation.class_ids, explanation.objects.index]


@torch.no_grad()
def make_responsive(model: nn.Module, pictures: Tensor) -> None:
    """Normalise by what the pictures give, else a deep random model's scores hardly depend on them; logits near 0."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    momentum = norms[0].momentum
    for norm in norms:
        norm.momentum = 1.0
    model.train()
    model(pictures)
    model.eval()
    for norm in norms:
        norm.momentum = momentum
        norm.running_var.clamp_(min=1e-3)  # type: ignore[union-attr]
    head: Any = model.model[-1]  # type: ignore[index]
    for level, logits in enumerate(levels(model, pictures)):
        head.cv3[level][-1].weight /= logits.std()
    for level, logits in enumerate(levels(model, pictures[:1])):
        head.cv3[level][-1].bias += 1 - level / 10 - logits.max()


def levels(model: nn.Module, pictures: Tensor) -> list[Tensor]:
    """The raw class logits of each feature level, [B, nc, cells]."""
    output = model(pictures)[1]
    return list(output["scores"].split([f.shape[2] * f.shape[3] for f in output["feats"]], dim=2))


@cache
def _setting(dtype: torch.dtype) -> Setting:
    return Setting(seed_of("methods"), dtype=dtype)


def fresh_setting(dtype: torch.dtype) -> Setting:
    """A copy of one setting: making it takes longer than most tests."""
    return copy.deepcopy(_setting(dtype))


def assert_maps(explanation: Explanation, expected: Any, tolerance: float = 1e-4) -> None:
    """Equal to `tolerance` of each map's span: what is drawn is min-max normalised."""
    assert len(explanation) == 4
    for ours, truth in zip(explanation.maps, torch.as_tensor(np.asarray(expected)), strict=True):
        span = float(truth.max() - truth.min())
        assert span > 1e-3 * float(truth.abs().max()), "a constant map proves nothing"
        torch.testing.assert_close(ours.double(), truth.double(), rtol=0, atol=tolerance * span)


def captured(setting: Setting, *layers: str) -> list[Tensor]:
    """[C, h, w] of each layer, from plain hooks."""
    found: list[Tensor] = []
    handles = [
        setting.model.get_submodule(name).register_forward_hook(lambda m, a, o: found.append(o.detach()[0]))
        for name in layers
    ]
    setting.raw(setting.pixels)
    for handle in handles:
        handle.remove()
    return found


class Anchor(nn.Module):
    """The model as a classifier of its anchors: [B, 3, H, W] -> logits [B, nc, A]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)[1]["scores"]


def peer_map(kind: Any, setting: Setting, explanation: Explanation, i: int, **options: Any) -> Tensor:
    """[h, w]: pytorch-grad-cam's map at LAYER before its ReLU."""
    wrapped = Anchor(setting.model).eval()
    layer = wrapped.model.get_submodule(LAYER)
    class_id, anchor = int(explanation.class_ids[i]), int(explanation.objects.index[i])
    targets: list[Callable[[Tensor], Tensor]] = [lambda logits: logits[class_id, anchor]]
    cam = kind(model=wrapped, target_layers=[layer], **options)
    x = setting.pixels[None]
    cam.activations_and_grads(x)
    acts = cam.activations_and_grads.activations[0].detach().numpy()
    return torch.from_numpy(np.float32(cam.get_cam_image(x, layer, targets, acts, None)[0]))
