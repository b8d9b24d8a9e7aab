"""Maps made of several: each part as it is alone, joined with NumPy and SciPy; one forward for all of them."""

import cv2
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from support import diagonal, few
from sweep_settings import SIZE, Setting, assert_maps
from torch import Tensor

from detcam import Explainer
from detcam.errors import LayerError, MethodError
from detcam.methods import Combination, Part, get_method
from detcam.methods.combination import Fused
from detcam.methods.perturbation import Occlusion


def over_maximum(one: Tensor, size: tuple[int, int], blur: float = 0.0) -> np.ndarray:
    """The positive part of a map, blurred, enlarged to `size`, over its maximum."""
    kept = np.maximum(one.double().numpy(), 0)
    if blur:
        kept = gaussian_filter(kept, blur, mode="constant", radius=int(np.ceil(3 * blur)))
    large = cv2.resize(kept, size[::-1], interpolation=cv2.INTER_LINEAR)
    return large / large.max() if large.max() > 0 else large


def finest(*maps: Tensor) -> tuple[int, int]:
    largest = max(maps, key=torch.numel)
    return largest.shape[0], largest.shape[1]


@pytest.mark.parametrize(("target", "blur"), diagonal(["class", "box"], [0.0, 1.5]))
def test_fused_is_the_product_of_evidence_and_level(blur: float, target: str, exact: Setting) -> None:
    evidence = exact.explain("odam", layers="evidence", target=target)
    level = exact.explain("odam", layers="level", target=target)
    fused = exact.explain(Fused(blur=blur), target=target)
    names = ["model.4", "model.6", "model.9", "model.15", "model.18", "model.21"]
    assert fused.settings["layers"] == names
    expected = []
    for one, other in zip(evidence.maps, level.maps, strict=True):
        size = finest(one, other)
        expected.append(over_maximum(one, size) * over_maximum(other, size, blur))
    assert_maps(fused, np.stack(expected))


@pytest.mark.parametrize("how", few(["product", "mean", "max"], "max"))
def test_layers_fused_as_layercam_does(how: str, exact: Setting) -> None:
    names = ("model.9", "model.15", "model.18")
    alone = [exact.explain("layercam", layers=[name]) for name in names]
    joined = exact.explain(get_method(f"{how}:" + ",".join(f"layercam@{name}" for name in names)))
    assert joined.settings["method"] == f"{how}:layercam@model.9,layercam@model.15,layercam@model.18"
    by_name = {"product": np.prod, "mean": np.mean, "max": np.max}
    expected = []
    for maps in zip(*(explanation.maps for explanation in alone), strict=True):
        size = finest(*maps)
        expected.append(by_name[how]([over_maximum(one, size) for one in maps], axis=0))
    for ours, truth in zip(joined.maps, expected, strict=True):  # a level that an object does not reach leaves zeros
        torch.testing.assert_close(ours, torch.from_numpy(truth).float(), rtol=0, atol=1e-4)


def test_methods_of_any_kind_are_combined(exact: Setting) -> None:
    """Gradients, activations and masked forwards; each part is what it is alone."""
    parts = [get_method("odam"), get_method("eigencam"), Occlusion(cells=3)]
    alone = [exact.explain(part) for part in parts]
    joined = exact.explain(Combination([Part(part) for part in parts], "mean"))
    for ours, *maps in zip(joined.maps, *(explanation.maps for explanation in alone), strict=True):
        truth = np.mean([over_maximum(one, finest(*maps)) for one in maps], axis=0)
        torch.testing.assert_close(ours, torch.from_numpy(truth).float(), rtol=0, atol=1e-4)


def test_a_map_of_zero_says_why(setting: Setting) -> None:
    """No object has anything to do with the layer of another level."""
    explanation = setting.explain("product:odam,odam@model.21", conf=0.0, iou=1.0, max_det=20)
    levels = explanation.objects.level.tolist()
    assert {0, 1} & set(levels)
    for level, one, note in zip(levels, explanation.maps, explanation.notes, strict=True):
        assert one.isfinite().all()
        assert one.any() or "zero map" in (note or ""), level


def test_spelling() -> None:
    method = get_method("Max:layercam@model.9+model.12,gradcam++")
    assert isinstance(method, Combination)
    assert method.how == "max"
    assert [(part.method.name, part.layers) for part in method.parts] == [
        ("layercam", ("model.9", "model.12")),
        ("gradcam++", "auto"),
    ]
    assert method.name == "max:layercam@model.9+model.12,gradcam++"
    assert get_method("fused").name == "fused"
    for wrong in ("product:odam", "mean:odam,oadm", "max:"):
        with pytest.raises(MethodError):
            get_method(wrong)
    with pytest.raises(MethodError, match=r"blur: expected .* in \[0.0, 100.0\], got -1.0"):
        Fused(blur=-1.0)
    with pytest.raises(MethodError, match="one of"):
        Combination([Part(get_method("odam"))] * 2, "sum")  # type: ignore[arg-type]


def test_layers_belong_to_the_parts(setting: Setting) -> None:
    with pytest.raises(LayerError, match="'fused' names its own layers: leave layers out"):
        setting.explain("fused", layers="level")


def test_all_objects_share_one_walk(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where an adapter knows the cells, backwards read the seeds of each level, for both parts, and no more."""
    backwards: list[int] = []
    grad = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **options: (backwards.append(1), grad(*a, **options))[1])
    explainer = Explainer(setting.model, "fused", imgsz=SIZE, max_det=10, conf=0.0, iou=1.0)
    explainer(setting.picture)
    backwards.clear()
    assert len(explainer(setting.picture)) == 10
    assert len(backwards) <= 2 * 3
