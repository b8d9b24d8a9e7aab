"""Masks on the picture against loops over single forwards, and a peer."""

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
import pytorch_grad_cam as peer
import torch
from support import few
from sweep_settings import LAYER, SIZE, Setting, assert_maps, peer_map
from torch import Tensor, nn

from detcam import Explainer
from detcam.errors import MethodError
from detcam.methods import METHODS, SweepMethod, get_method
from detcam.methods.baseline import Noise
from detcam.methods.perturbation import DRISE, RISE, SSCAM, Occlusion, RandomMasks
from detcam.methods.similarity import LEAST, similarity


def test_similarity_is_1_for_the_object_itself_and_0_for_nothing(seed: int) -> None:
    boxes, own = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 40]]), torch.tensor([[0.2, 0.8], [0.9, 0.1]])
    itself = similarity(boxes, own, boxes.flip(0), own.flip(0) * 0.5, torch.ones(2))
    torch.testing.assert_close(itself, torch.ones(2))
    half = similarity(boxes, own, torch.tensor([[0.0, 0, 10, 5]]), own[:1], torch.tensor([0.5]))
    torch.testing.assert_close(half, torch.tensor([0.25, 0.0]))
    assert not similarity(boxes, own, boxes, own, torch.full((2,), LEAST / 2)).any()


def test_random_masks_are_the_paper_s(seed: int) -> None:
    """Bilinear enlargements of coarse grids, each shifted by less than a cell, with the asked-for mean."""
    count = 2000  # the mean deviates by 0.0035, not by 0.009 as with 400
    masks = RandomMasks(count, 3, 0.3, (20, 32), seed)(slice(0, count), torch.device("cpu"))
    assert masks.shape == (count, 20, 32)
    assert float(masks.min()) == 0
    assert float(masks.max()) == pytest.approx(1)
    assert abs(float(masks.mean()) - 0.3) < 0.03
    assert float(masks.mean(dim=0).std()) < 0.05, "every pixel is shown as often"
    generator = torch.Generator().manual_seed(seed)
    grid = (torch.rand(count, 3, 3, generator=generator) < 0.3).float()[7].numpy()
    large = cv2.resize(grid, (4 * 11, 4 * 7), interpolation=cv2.INTER_LINEAR)
    windows = [large[y : y + 20, x : x + 32] for y in range(7) for x in range(11)]
    assert min(float(np.abs(window - masks[7].numpy()).max()) for window in windows) < 1e-5


@pytest.mark.nightly
def test_scorecam_equals_pytorch_grad_cam(exact: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """The peer enlarges masks with corners aligned; with cells as areas, as everywhere in detcam, it is the same."""
    monkeypatch.setattr(nn, "UpsamplingBilinear2d", lambda size: nn.Upsample(size=size, mode="bilinear"))
    explanation = exact.explain("scorecam", layers=[LAYER])
    assert_maps(explanation, torch.stack([peer_map(peer.ScoreCAM, exact, explanation, i) for i in range(4)]))


@pytest.mark.parametrize("kind", few([RISE, DRISE, SSCAM, Noise], RISE, Noise))
def test_another_seed_gives_another_map(kind: Any, setting: Setting) -> None:
    few = {} if kind is Noise else {"samples": 1} if kind is SSCAM else {"masks": 4, "kept": 0.9}
    one, other = (setting.explain(kind(**few, seed=seed), layers=["model.18"]) for seed in (1, 2))
    assert not torch.allclose(one.maps[0], other.maps[0], rtol=1e-3, atol=0)


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
