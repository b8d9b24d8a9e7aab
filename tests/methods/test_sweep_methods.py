"""What all sweeping methods share: counts of what runs, the same result in any batch, nothing left behind."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support import fingerprint
from sweep_settings import FEW, LAYER, SIZE, Setting
from torch import Tensor, nn

from detcam import Explainer
from detcam.errors import MethodError
from detcam.methods import METHODS, SweepMethod, get_method
from detcam.methods.baseline import Noise
from detcam.methods.perturbation import DRISE, RISE, SSCAM, Occlusion

WHOLE = {
    "rise": 8, "drise": 8, "dclose": 6, "occlusion": 6, "scorecam": 66, "sscam": 66, "iscam": 66, "ablationcam": 2, "reciprocam": 2,
    "smoothgradcam++": 3, "gradient": 2, "gradientxinput": 2, "smoothgrad": 3, "integratedgradients": 3, "fullgrad": 2,
    "guidedbackprop": 2, "guidedgradcam": 3,
}  # fmt: skip
QUICK = ("gradient", "gradientxinput", "fullgrad", "guidedbackprop", "guidedgradcam")  # too quick to tell of progress
TAILS = {"ablationcam": 66, "reciprocam": 7}


def test_every_sweep_is_covered() -> None:
    assert set(FEW) == {name for name, kind in METHODS.items() if issubclass(kind, SweepMethod)}


@pytest.mark.parametrize("found", [1, 10])
@pytest.mark.parametrize("name", FEW)
def test_passes_are_those_declared_for_1_and_for_10_objects(name: str, found: int, setting: Setting) -> None:
    runs = {"model.0.conv": 0, "model.21.cv1.conv": 0}

    def count(layer: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any) -> None:
            runs[layer] += len(args[0])

        return hook

    for layer in runs:
        setting.model.get_submodule(layer).register_forward_pre_hook(count(layer))
    explanation = setting.explain(FEW[name], layers=[LAYER], conf=0.0, iou=1.0, max_det=found)
    assert len(explanation) == found
    whole = 2 + found if name == "captum" else WHOLE.get(name, 1)  # Captum's forwards are each object's own
    assert runs["model.0.conv"] == whole
    assert runs["model.21.cv1.conv"] == whole + TAILS.get(name, 0)


@pytest.mark.parametrize("name", FEW)
def test_the_same_on_every_run_and_in_any_batch(name: str, setting: Setting) -> None:
    first = setting.explain(FEW[name], layers=[LAYER])
    assert all(one.any() for one in first.maps)
    again = setting.explain(FEW[name], layers=[LAYER])
    one_by_one = setting.explain(FEW[name], layers=[LAYER], memory=1)
    pair = Explainer(setting.model, FEW[name], [LAYER], imgsz=SIZE, max_det=4)(
        [setting.picture[::-1], setting.picture]
    )[1]
    alone = setting.explain(FEW[name], layers=[LAYER], max_det=2)
    for i, ours in enumerate(first.maps):
        assert torch.equal(ours, again.maps[i])
        # Grad-CAM++'s quotient has poles behind SiLU, which amplify the rounding of another batch size.
        tolerance = (5e-2 if name == "smoothgradcam++" else 1e-3) * float(ours.abs().max())
        torch.testing.assert_close(one_by_one.maps[i], ours, rtol=0, atol=tolerance)
        torch.testing.assert_close(pair.maps[i], ours, rtol=0, atol=tolerance)
        if i < 2:
            torch.testing.assert_close(alone.maps[i], ours, rtol=0, atol=tolerance)


@pytest.mark.parametrize("kind", [RISE, DRISE, SSCAM, Noise])
def test_another_seed_gives_another_map(kind: Any, setting: Setting) -> None:
    few = {} if kind is Noise else {"samples": 1} if kind is SSCAM else {"masks": 4, "kept": 0.9}
    one, other = (setting.explain(kind(**few, seed=seed), layers=["model.18"]) for seed in (1, 2))
    assert not torch.allclose(one.maps[0], other.maps[0], rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", [name for name in FEW if name in WHOLE and name not in QUICK])
def test_an_interrupted_sweep_leaves_no_trace(name: str, setting: Setting) -> None:
    told: list[tuple[int, int]] = []

    def stop(done: int, total: int) -> None:
        told.append((done, total))
        if len(told) == 2:
            raise KeyboardInterrupt

    before = fingerprint(setting.model)
    explainer = Explainer(setting.model, FEW[name], [LAYER], imgsz=SIZE, max_det=4, memory=1, progress=stop)
    with pytest.raises(KeyboardInterrupt):
        explainer(setting.picture)
    assert told[1][0] == 2
    assert fingerprint(setting.model) == before
    later = explainer(setting.picture)  # the view too is as before
    for ours, fresh in zip(later.maps, setting.explain(FEW[name], layers=[LAYER], memory=1).maps, strict=True):
        assert torch.equal(ours, fresh)


def test_a_half_precision_model_is_swept(setting: Setting) -> None:
    single = {
        name: setting.explain(FEW[name], layers=["model.18"], max_det=1, conf=0.0) for name in ("drise", "ablationcam")
    }
    setting.model.bfloat16()
    for name, expected in single.items():
        ours = setting.explain(FEW[name], layers=["model.18"], max_det=1, conf=0.0).maps[0]
        assert ours.dtype == torch.float32
        assert ours.isfinite().all()
        assert ours.shape == expected.maps[0].shape


def test_several_scalars_combine_by_their_maximum(setting: Setting) -> None:
    options = {"layers": [LAYER], "method": "ablationcam"}
    sides = [setting.explain(**options, target=side).maps for side in ("left", "top", "right", "bottom")]
    for i, ours in enumerate(setting.explain(**options, target="box").maps):
        expected = torch.stack([maps[i] for maps in sides]).amax(dim=0)
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def test_masks_and_callables_are_swept(seed: int) -> None:
    setting = Setting(seed, "yolov8n-seg.yaml")
    explanation = setting.explain(Occlusion(cells=3), target="mask")
    pixels = setting.pixels.clone()
    pixels[:, :43, :64] = pixels.mean(dim=(1, 2))[:, None, None]  # only this patch covers the first cell

    def mask_score(image: Tensor, i: int) -> Tensor:
        with torch.no_grad():
            (_, prototypes), raw = setting.model(image[None])
        found = explanation.objects
        logits = torch.einsum("k,khw->hw", raw["mask_coefficient"][0, :, found.index[i]], prototypes[0])
        x1, y1, x2, y2 = (found.network_boxes[i] / 4).tolist()
        y, x = torch.meshgrid(torch.arange(16), torch.arange(24), indexing="ij")
        region = (found.mask_logits[i] > 0) & (x >= x1) & (x < x2) & (y >= y1) & (y < y2)
        return logits[region].mean()

    for i in range(len(explanation)):
        drop = mask_score(setting.pixels, i) - mask_score(pixels, i)
        torch.testing.assert_close(explanation.maps[i][0, 0], drop, rtol=1e-3, atol=1e-4)

    def double(outputs: Any, objects: Any) -> Tensor:
        return 2 * Explainer(setting.model, imgsz=SIZE).adapter.score(outputs, objects, "class")

    once, twice = (setting.explain(Occlusion(cells=3), target=target) for target in ("class", double))
    for one, two in zip(once.maps, twice.maps, strict=True):
        torch.testing.assert_close(two, 2 * one, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", FEW)
def test_no_objects_give_no_maps(name: str, setting: Setting) -> None:
    told: list[int] = []
    explanation = setting.explain(FEW[name], conf=1.0, progress=lambda done, total: told.append(done))
    assert len(explanation) == 0
    assert explanation.heatmaps.shape == (0, 64, SIZE)
    assert not told, "nothing is swept for nobody"


def test_baselines_follow_the_box(setting: Setting) -> None:
    boxes = setting.explain("odam").objects.network_boxes.clone()
    boxes[:, 0::2], boxes[:, 1::2] = boxes[:, 0::2].clamp(0, SIZE), boxes[:, 1::2].clamp(0, 64)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    filled, gaussian = setting.explain("box"), setting.explain("gaussian")
    whole = setting.explain("odam").objects.network_boxes
    for i in range(4):
        torch.testing.assert_close(filled.maps[i].sum() * 64, areas[i], rtol=1e-4, atol=1e-2)
        cx, cy = ((whole[i, :2] + whole[i, 2:]) / 2).tolist()
        sx, sy = ((whole[i, 2:] - whole[i, :2]) / 4).clamp(min=1).tolist()
        y, x = torch.meshgrid(torch.arange(8) * 8 + 4.0, torch.arange(12) * 8 + 4.0, indexing="ij")
        expected = torch.exp(-(((x - cx) / sx) ** 2 + ((y - cy) / sy) ** 2) / 2)
        torch.testing.assert_close(gaussian.maps[i], expected, rtol=1e-3, atol=1e-6)
    noise = setting.explain("noise").maps
    assert all(float(one.min()) >= 0 and float(one.max()) < 1 and 0.3 < float(one.mean()) < 0.7 for one in noise)
    assert not torch.equal(noise[0], noise[1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RISE(masks=0), "rise: masks: expected a whole number in"),
        (lambda: RISE(masks=2.5), "masks"),  # type: ignore[arg-type]
        (lambda: DRISE(kept=1.5), r"drise: kept: expected a number with a decimal point in \[0.01, 0.99\], got 1.5"),
        (lambda: Occlusion(patch=True), "patch"),
        (lambda: SSCAM(deviation=float("nan")), "deviation"),
    ],
)
def test_parameters_out_of_range_are_refused(make: Callable[[], SweepMethod], message: str) -> None:
    with pytest.raises(MethodError, match=message):
        make()


def test_parameters_are_declared() -> None:
    assert METHODS["drise"].parameters()["masks"] == {"default": 1000, "range": [1, 2**62]}
    assert set(METHODS["sscam"].parameters()) == {"samples", "deviation", "seed"}
    assert METHODS["scorecam"].parameters() == METHODS["odam"].parameters() == {}
    assert get_method(RISE(masks=7)).masks == 7
