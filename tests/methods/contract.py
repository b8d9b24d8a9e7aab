"""The contract table: one row per method, with cheap parameters and the model that it is tried on."""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from support import random_picture, seed_of
from sweep_settings import LAYER, SIZE, fresh_setting
from torch import Tensor, nn

from detcam import Explainer
from detcam.methods import AnyMethod, Method, SweepMethod, get_method
from detcam.methods.captum_attribution import Captum
from detcam.methods.channels import ReciproCAM
from detcam.methods.layered import SmoothGradCAMPlusPlus
from detcam.methods.path import LayerIG
from detcam.methods.perturbation import DRISE, ISCAM, RISE, SSCAM, Occlusion
from detcam.methods.pixel import IntegratedGradients, SmoothGrad
from detcam.methods.search import Search
from detcam.methods.superpixels import DCLOSE

sys.path.append(str(Path(__file__).parents[1] / "adapters"))
from detr_models import random_detr


@dataclass(frozen=True)
class Row:
    """How the contract tries a method.

    Attributes:
        method: a name, or an instance with as few passes as show what the method does.
        model: "yolo", "detr", "deformable_detr" or "classifier".
        close: whether half precision leaves its maps close to float32's. Elsewhere rounding decides: quotients of sums
            of both signs, ties of principal components, few random masks.
        tolerance: of a map's maximum, by which the rounding of another batch size may change it: in float32 for methods
            that sweep, in float64 for the others.
        passes: what the method declares, where it says it in words.
    """

    method: str | AnyMethod
    model: str = "yolo"
    close: bool = False
    tolerance: float = 1e-3
    passes: str = ""

    def objects(self, wanted: int) -> int:
        """How many objects its model finds: a classifier only one."""
        return 1 if self.model == "classifier" else wanted

    @property
    def made(self) -> AnyMethod:
        return get_method(self.method)


ROWS = (
    Row("odam", close=True),
    Row("hirescam", close=True),
    Row("gradcam"),
    Row("gradcam++"),
    Row("xgradcam"),
    Row("layercam", close=True),
    Row("cam", model="classifier"),
    Row("shapleycam"),
    Row("eigengradcam"),
    Row("elementwise", close=True),
    Row("ssgradcam"),
    Row("ssgradcam++"),
    Row("gcame"),
    Row("finercam", close=True),
    Row("fused", close=True),
    Row("layerig", close=True),
    Row("eigencam"),
    Row("kpcacam"),
    Row("fem", close=True),
    Row("dff"),
    Row(RISE(masks=6)),
    Row(DRISE(masks=6)),
    Row(DCLOSE(masks=2, levels=2, coarsest=6)),
    Row(Search(regions=6, steps=2, window=2)),
    Row(Occlusion(cells=3), close=True),
    Row("scorecam"),
    Row(SSCAM(samples=1, deviation=0.1)),  # with more noise the softmax leaves one channel, which objects share
    Row(ISCAM(samples=1)),
    Row("ablationcam"),
    Row(ReciproCAM(cells=2)),
    Row(SmoothGradCAMPlusPlus(samples=2), tolerance=5e-2),  # its quotient has poles behind SiLU
    Row("gradient"),
    Row("gradientxinput", close=True),
    Row(SmoothGrad(samples=2)),
    Row(IntegratedGradients(steps=2)),
    Row(LayerIG(steps=1)),
    Row("fullgrad"),
    Row("guidedbackprop"),
    Row("guidedgradcam"),
    Row(Captum("InputXGradient"), passes="(2 + N) F + N B"),
    Row("attention", model="detr"),
    Row("rollout", model="detr"),
    Row("relevance", model="detr"),
    Row("samplingpoints", model="deformable_detr"),
    Row("noise"),
    Row("gaussian"),
    Row("box"),
    Row("randomcam"),
)
TABLE = {type(row.made).name: row for row in ROWS}


@cache
def _built(kind: str, dtype: torch.dtype) -> tuple[nn.Module, np.ndarray, dict[str, Any]]:
    seed = seed_of(f"contract {kind}")
    if kind == "yolo":
        setting = fresh_setting(dtype)
        return setting.model, setting.picture, {"imgsz": SIZE, "iou": 1.0}
    torch.manual_seed(seed)
    if kind == "classifier":
        from torchvision.models import resnet18

        return resnet18(num_classes=12).eval().to(dtype), random_picture(seed, 64, 64), {"imgsz": 64}
    model, processor = random_detr(kind, seed)
    return model.to(dtype), random_picture(seed, 96, 128), {"processor": processor}


class Subject:
    """A row's model, its image, and the options of its explainer.

    Args:
        row: of the table.
        dtype: of the model's weights.
        copied: whether the test changes the model, and so needs a copy of it.
    """

    def __init__(self, row: Row, dtype: torch.dtype = torch.float32, copied: bool = True) -> None:
        model, self.image, self.options = _built(row.model, dtype)
        self.row, self.model = row, copy.deepcopy(model) if copied else model

    def explainer(self, found: int, **options: Any) -> Explainer:
        """An explainer of at most `found` objects, at one layer."""
        options = {"conf": 0.0, "max_det": found, "layers": self.layers, **self.options, **options}
        return Explainer(self.model, self.row.made, **options)

    @property
    def layers(self) -> Any:
        """Methods of gradients at each object's level, sweeps and activations at one layer, others at their own."""
        method = self.row.made
        if self.row.model == "classifier":
            return ["layer4"]
        if self._sweeps or not method.object_specific:
            return [LAYER]
        return "level" if isinstance(method, (Method, SweepMethod)) else "auto"

    @property
    def _sweeps(self) -> bool:
        return isinstance(self.row.made, SweepMethod) and self.row.made.starts_from is None

    def plain(self, found: int) -> Explainer:
        """The same with the class logit as a user's function, whose gradient takes a backward for each object."""
        if self._sweeps or self.row.model.endswith("detr") or self.row.method == "finercam":
            return self.explainer(found)
        made: list[Explainer] = []
        made.append(self.explainer(found, target=_class_logit(made)))
        return made[0]


def _class_logit(explainer: list[Explainer]) -> Callable[[Any, Any], Tensor]:
    return lambda outputs, objects: explainer[0].adapter.score(outputs, objects, "class")


def declared(row: Row, objects: int) -> dict[str, int]:
    """The whole forwards F, backwards B and forwards of the tail T that a method declares for a number of objects."""
    method = row.made
    text = re.split(r",(?![^(]*\))", row.passes or method.passes)[0].replace("sum over layers of", "L")
    expression = ""
    for before, word in pairwise(["", *re.findall(r"\w+|[-+(),^]", text)]):
        product = re.fullmatch(r"\w+|\)", before) and before != "min" and re.match(r"\w|\(", word)
        expression += " * " + word if product else word
    names: dict[str, Any] = {"min": min, "N": objects, "L": 1, "C": 64, "h": 8, "w": 12}
    names |= {name: getattr(method, name, None) for name in method.parameters()}
    code = compile(expression.replace("^", "**"), "passes", "eval")
    return {unit: eval(code, names | dict.fromkeys("FBT", 0) | {unit: 1}) for unit in "FBT"}
