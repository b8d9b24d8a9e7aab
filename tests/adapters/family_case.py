"""What a case of the contract says of one kind of model, and how tests run it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from support import random_picture, seed_of
from torch import Tensor, nn

from detcam import Explainer, Explanation
from detcam.adapters import adapter_for

Options = dict[str, Any]  # of the Explainer, beside the model
Size = tuple[int, int]


@dataclass(frozen=True)
class Prediction:
    """The objects that a library's own call finds in one image, in its order.

    Attributes:
        scores: [N].
        boxes: [N, 4] xyxy in source pixels; None: the library gives none.
        class_ids: [N] int64; None: the library gives no numbers.
        masks: [N, H, W] bool; None: the library gives none.
        segments: [H, W] int64, the object of each pixel, -1 where there is none: of libraries that lay masks over one
            another; else None.
        names: the classes by number; None: the library knows none.
    """

    scores: Tensor
    boxes: Tensor | None = None
    class_ids: Tensor | None = None
    masks: Tensor | None = None
    segments: Tensor | None = None
    names: dict[int, str] | None = None


@dataclass(frozen=True)
class FamilyCase:
    """One kind of model of one family.

    Attributes:
        id: the name in the tests' ids.
        adapter: the name of the class that must serve the model.
        build: (image, seed) -> the model in eval mode, and the Explainer's options for it.
        predict: (model, options, image, conf) -> the objects of the library's own call.
        default: whether it is tested in the default tier.
        size: (height, width) of the image.
        conf: lowest score of an object; None: in the widest gap of the library's scores, after about six objects.
        least: objects that there must be at least.
        exact: whether predictions are compared in float64, where rounding decides no pixel between two classes.
        box, share, score: the largest distance from the library's boxes, in pixels and as a share of the coordinate,
            and from its scores.
        prompted: whether the model must be given prompts.
        exact_candidates: whether candidates have the very scores and boxes of the objects that they become.
        planted: whether a change of the image stays in its place up to the layers.
        square: the layers at which a painted square is looked for; (): those of "evidence".
        local: changes a model such that no layer carries a change to other places.
        enlarged: options under which the input has cells enough for a square to lie in.
        half: the types of lower precision that the library runs the model in.
    """

    id: str
    adapter: str
    build: Callable[[np.ndarray, int], tuple[Any, Options]]
    predict: Callable[[Any, Options, np.ndarray, float], Prediction]
    default: bool = False
    size: Size = (96, 128)
    conf: float | Callable[[Any, Options, np.ndarray], float] | None = None
    least: int = 2
    exact: bool = False
    box: float = 1e-3
    share: float = 0.0
    score: float = 1e-4
    prompted: bool = False
    exact_candidates: bool = True
    planted: bool = True
    square: tuple[str, ...] = ()
    local: Callable[[nn.Module], None] | None = None
    enlarged: Callable[[Options], Options] | None = None
    half: tuple[torch.dtype, ...] = (torch.bfloat16,)

    @property
    def seed(self) -> int:
        return seed_of(self.id)

    @property
    def options(self) -> Options:
        return built(self)[1]

    def model(self) -> Any:
        """The model, the same in every test: copy it to change it."""
        return built(self)[0]

    def fresh(self) -> Any:
        """A copy of the model."""
        return copy.deepcopy(self.model())

    def module(self, model: Any) -> nn.Module:
        """The nn.Module inside what the library calls a model."""
        return model if isinstance(model, nn.Module) else adapter_for(model).unwrap(model)

    def image(self, number: int = 0, size: Size | None = None) -> np.ndarray:
        return random_picture(self.seed + number, *(size or self.size))

    def threshold(self) -> float:
        """The lowest score of an object: no rounding decides what lies above it."""
        return threshold_of(self)

    @staticmethod
    def gap(prediction: Prediction) -> float:
        """The middle of the widest gap between two scores, after four to eight of them."""
        ordered = prediction.scores.double().sort(descending=True).values
        first = min(3, len(ordered) // 3)
        near = ordered[first : first + 6]
        widest = int(near.diff().argmin())
        return float(near[widest : widest + 2].mean())

    def explainer(self, model: Any = None, **more: Any) -> Explainer:
        return Explainer(self.model() if model is None else model, **{**self.options, **more})

    def question(self, image: np.ndarray) -> Options:
        """What the explainer's call is given beside the image."""
        return {"prompts": prompts_in(image)} if self.prompted else {}

    def explain(self, model: Any = None, image: np.ndarray | None = None, **more: Any) -> Explanation:
        image = self.image() if image is None else image
        explanation = self.explainer(model, **more)(image, **self.question(image))
        assert isinstance(explanation, Explanation)
        return explanation


@cache
def built(case: FamilyCase) -> tuple[Any, Options]:
    return case.build(case.image(), case.seed)


@cache
def threshold_of(case: FamilyCase) -> float:
    if callable(case.conf):
        return case.conf(case.model(), case.options, case.image())
    return case.gap(case.predict(case.model(), case.options, case.image(), 0.0)) if case.conf is None else case.conf


def prompts_in(image: np.ndarray) -> list[tuple[float, ...]]:
    """A point and a box, which lie in the image whatever its size."""
    height, width = image.shape[:2]
    return [(width * 0.5, height * 0.4), (width * 0.1, height * 0.1, width * 0.8, height * 0.9)]


def around(masks: Tensor) -> Tensor:
    """[N, 4] xyxy boxes around masks [N, H, W]; zeros around an empty mask."""
    boxes = torch.zeros(len(masks), 4)
    for box, mask in zip(boxes, masks, strict=True):
        if mask.any():
            y, x = mask.nonzero().unbind(1)
            box.copy_(torch.stack([x.min(), y.min(), x.max() + 1, y.max() + 1]))
    return boxes
