"""Every method's map is its formula, as `layer_formulas.py` and `sweep_formulas.py` write it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from contract import TABLE
from layer_formulas import LAYER_FORMULAS
from support import NIGHTLY
from sweep_formulas import SWEEP_FORMULAS, rounding_near_poles
from sweep_settings import LAYER, Setting, assert_maps

from detcam.methods import METHODS, get_method
from detcam.methods.layered import SmoothGradCAMPlusPlus
from detcam.methods.perturbation import DRISE, ISCAM, RISE, SSCAM, Occlusion
from detcam.methods.pixel import IntegratedGradients, SmoothGrad
from detcam.methods.search import Search
from detcam.methods.superpixels import DCLOSE

ELSEWHERE = {
    "dff": "test_activation",
    "fused": "test_combination",
    "guidedbackprop": "test_pixel",
    "guidedgradcam": "test_layered",
    "fullgrad": "test_layered",
    "attention": "test_attention",
    "rollout": "test_attention",
    "relevance": "test_attention",
    "samplingpoints": "test_attention",
    "noise": "test_formulas",
}  # name -> the file with an oracle of another kind
MORE: dict[str, Any] = {
    "rise": lambda seed: RISE(masks=23, cells=4, kept=0.4, seed=seed),
    "drise": lambda seed: DRISE(masks=17, cells=5, seed=seed),
    "dclose": lambda seed: DCLOSE(masks=7, levels=2, coarsest=6, seed=seed),
    "search": lambda seed: Search(regions=8, steps=2, window=2),
    "occlusion": lambda seed: Occlusion(cells=5, patch=2),
    "sscam": lambda seed: SSCAM(samples=2 if NIGHTLY else 1, deviation=0.5, seed=seed),
    "iscam": lambda seed: ISCAM(samples=2),
    "reciprocam": lambda seed: get_method("reciprocam"),
    "smoothgradcam++": lambda seed: SmoothGradCAMPlusPlus(samples=3, deviation=0.1, seed=seed),
    "smoothgrad": lambda seed: SmoothGrad(samples=3, deviation=0.2, seed=seed),
    "integratedgradients": lambda seed: IntegratedGradients(steps=3),
}  # with more passes than the contract takes
SCALARS = {"rise": "prob", "drise": "similarity", "dclose": "similarity", "search": "similarity"}
POLES = ("gradcam++", "ssgradcam++", "xgradcam")  # quotients with an epsilon
TIES = ("eigengradcam", "eigencam", "kpcacam")  # defined where one direction leads


def test_every_method_has_an_oracle() -> None:
    assert sorted([*LAYER_FORMULAS, *SWEEP_FORMULAS, *ELSEWHERE]) == sorted(METHODS)


@pytest.mark.parametrize("name", LAYER_FORMULAS)
def test_layer_formulas(name: str, seed: int) -> None:
    sizes = [int(torch.randint(1, high, ())) for high in (4, 6, 6, 8)]
    if name in TIES:
        sizes = [2, 5, 6, 7]
    acts, grads = torch.randn(sizes, dtype=torch.float64), torch.randn(sizes, dtype=torch.float64)
    if name in POLES:
        acts, grads = acts.abs() + 0.1, grads + 0.2 * grads.sign()
    if name in TIES:
        acts[:, 0] *= 5
    if name == "cam":
        grads = grads[:, :, :1, :1].expand_as(grads)
    expected = torch.stack([LAYER_FORMULAS[name](a, g) for a, g in zip(acts, grads, strict=True)])
    tolerance = 1e-4 * max(1.0, float(expected.abs().max()))
    for dtype in (torch.float64, torch.float32):
        maps = get_method(name).maps(acts.to(dtype), grads.to(dtype))
        assert maps.dtype == dtype
        torch.testing.assert_close(maps.double(), expected, rtol=1e-4, atol=tolerance)


@pytest.mark.parametrize("name", SWEEP_FORMULAS)
def test_sweep_formulas(name: str, exact: Setting, seed: int) -> None:
    method = MORE[name](seed) if name in MORE else TABLE[name].made
    explanation = exact.explain(method, layers=[LAYER])
    expected = SWEEP_FORMULAS[name](exact, explanation, method)
    tolerance = 1e-3 if name in ("dclose", "search") else 1e-4
    if name == "smoothgradcam++":
        span = expected.amax(dim=(1, 2)) - expected.amin(dim=(1, 2))
        tolerance += float((rounding_near_poles(exact, explanation, method).amax(dim=(1, 2)) / span).max())
    if name == "box":  # which may fill the image, and is constant then
        torch.testing.assert_close(
            torch.stack(explanation.maps).double(), torch.from_numpy(expected), rtol=0, atol=1e-4
        )
    else:
        assert_maps(explanation, expected, tolerance)
    assert explanation.settings["target"] == SCALARS.get(name, "class")
    assert explanation.settings["layers"] == ([LAYER] if "activations" in METHODS[name].reads else [])


def test_noise_is_uniform_and_differs_between_objects(exact: Setting) -> None:
    maps = exact.explain("noise").maps
    assert all(float(one.min()) >= 0 and float(one.max()) < 1 and 0.3 < float(one.mean()) < 0.7 for one in maps)
    assert not torch.equal(maps[0], maps[1])
