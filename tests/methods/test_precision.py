"""Models in half precision and bfloat16 with every method: float32 maps, close to those of the same model in float32."""

import copy
import sys
from pathlib import Path

import pytest
import torch
from sweep_settings import FEW, SIZE, Setting

from detcam import Explainer, Explanation
from detcam.engine import object_gradients
from detcam.methods import METHODS, Method, get_method
from detcam.methods.pixel import gradients_at

sys.path.append(str(Path(__file__).parents[1] / "adapters"))
from detr_models import random_detr

ATTENTION = [name for name, kind in METHODS.items() if "attention" in kind.reads.split(", ")]
NAMES = [name for name in METHODS if name not in ("cam", *ATTENTION)]
# Grad-CAM++ and XGrad-CAM divide by sums of both signs, and principal components may change places: any rounding
# decides there. Masks and noise from few samples make maps of which the order is chance.
CLOSE = ("odam", "hirescam", "layercam", "elementwise", "fused", "finercam", "fem", "gradientxinput", "occlusion")


def explain(setting: Setting, model: torch.nn.Module, name: str) -> Explanation:
    method = FEW[name] if name in FEW else get_method(name)
    layers = "auto" if name == "fused" else "level"
    return Explainer(model, method, layers, imgsz=SIZE, max_det=2, conf=0.0, iou=0.3)(setting.picture)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_every_method_on_yolo(name: str, dtype: torch.dtype, setting: Setting) -> None:
    model = copy.deepcopy(setting.model).to(dtype)
    rounded = copy.deepcopy(model).float()  # the same weights
    ours, single = explain(setting, model, name), explain(setting, rounded, name)
    assert len(ours) == len(single) == 2
    for raw, heat, note in zip(ours.maps, ours.heatmaps, ours.notes, strict=True):
        assert raw.dtype == heat.dtype == torch.float32
        assert raw.isfinite().all()
        assert heat.isfinite().all()
        assert raw.any() or note
    if name in CLOSE and torch.equal(ours.objects.index, single.objects.index):
        for raw, truth in zip(ours.maps, single.maps, strict=True):
            both = torch.stack([raw.clamp(min=0).flatten(), truth.clamp(min=0).flatten()])
            if both.std(dim=1).amin() > 0:
                assert float(torch.corrcoef(both)[0, 1]) > 0.8


@pytest.mark.parametrize("name", [name for name in ATTENTION if name != "samplingpoints"])
def test_attention_of_a_bfloat16_model(name: str, seed: int) -> None:
    model, processor = random_detr("detr", seed)
    picture = torch.rand(3, 96, 128)
    explanation = Explainer(model.bfloat16(), name, processor=processor, conf=0.0, max_det=3)(picture)
    assert len(explanation) == 3
    assert all(one.dtype == torch.float32 and one.isfinite().all() and one.any() for one in explanation.maps)


def test_small_gradients_do_not_vanish_in_half_precision() -> None:
    """1e-8, a sixth of the smallest number that half precision has: half of it is rounded to nothing."""
    leaf = torch.ones(1, 2, 3, 4, dtype=torch.float16, requires_grad=True)
    scalar = ((leaf * 1e-4).sum() * 1e-4)[None]
    assert not torch.autograd.grad(scalar[0], leaf, retain_graph=True)[0].any()
    ((_, (found,)),) = object_gradients(scalar, torch.zeros(1, dtype=torch.int64), [leaf])
    assert found is not None
    torch.testing.assert_close(found, torch.full((1, 2, 3, 4), 1e-8), rtol=0.1, atol=0)
    ((pixels,),) = gradients_at(scalar, [leaf])
    torch.testing.assert_close(pixels, torch.full((2, 3, 4), 1e-8), rtol=0.1, atol=0)


def test_every_method_is_covered() -> None:
    uses_gradients = [name for name in METHODS if issubclass(METHODS[name], Method)]
    assert {*NAMES, *ATTENTION, "cam"} >= {*uses_gradients, *METHODS}
