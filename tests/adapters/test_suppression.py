"""Objects that non-maximum suppression dropped: asked for, they name the object that overlaps them."""

from typing import Any

import pytest
import torch
from support import random_picture
from torch import Tensor
from torchvision.ops import box_iou
from torchvision_models import conf_after, predict, small

from detcam import Explainer, InputError
from detcam.questions.missed import SLACK


@pytest.mark.parametrize("kind", ["faster", "retinanet"])
def test_suppression_is_that_of_the_model(kind: str, seed: int) -> None:
    """What was suppressed is returned, box and score, once the model's own overlap is 1."""
    picture = random_picture(seed, 120, 170)
    model: Any = small(kind, seed, picture)
    part, name = (model.roi_heads, "nms_thresh") if kind == "faster" else (model, "nms_thresh")
    setattr(part, name, 1.0)
    free = predict(model, picture)
    conf = conf_after(free["scores"], 20)  # of what is returned without suppression: enough to suppress
    setattr(part, name, 0.1)
    explainer = Explainer(model, conf=conf)
    chosen = (free["scores"] > conf) & (free["boxes"][:, 2:] > free["boxes"][:, :2] + 1).all(dim=1)
    pairs = [
        (box.tolist(), int(label)) for box, label in zip(free["boxes"][chosen], free["labels"][chosen], strict=True)
    ]
    strict = predict(model, picture)
    suppressed = 0
    for answer in explainer(picture, ask=pairs).asked:
        if answer.reason == "suppressed":
            suppressed += 1
            assert not holds(strict, answer)
            assert holds(free, answer)
            assert answer.rival is not None
            assert answer.rival.iou > 0.1 - SLACK
            boxes = torch.tensor([answer.candidate_box, answer.rival.box])
            assert answer.rival.iou == pytest.approx(float(box_iou(boxes[:1], boxes[1:])), abs=1e-2)
        elif answer.reason == "returned":
            assert holds(strict, answer)
        elif answer.reason == "own limit":
            assert not holds(free, answer)
    assert suppressed >= 2
    if kind == "faster":
        with pytest.raises(InputError, match=r"class 0 does not exist: the model has 1 to 4"):
            explainer(picture, ask=[((10, 10, 60, 60), 0)])


def holds(result: dict[str, Tensor], answer: Any) -> bool:
    apart = (result["boxes"] - torch.tensor(answer.candidate_box)).abs().amax(dim=1)
    other = (result["scores"] - answer.score).abs()
    return bool(((apart < 0.1) & (other < 1e-3) & (result["labels"] == answer.class_id)).any())
