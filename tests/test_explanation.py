"""Heatmaps of hand-made maps against a plain interpolation, masks against Ultralytics' own, plain facts as JSON."""

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import explanation_of, predict, random_picture, random_yolo
from torch import Tensor, nn
from torch.nn.functional import grid_sample, interpolate

from detcam import Explainer, Explanation
from detcam.geometry import Geometry


@pytest.fixture
def picture(seed: int) -> np.ndarray:
    return random_picture(seed, 60, 90)


@pytest.fixture
def explanation(picture: np.ndarray) -> Explanation:
    """Maps of three resolutions; the third is constant, the fourth negative, the last positive everywhere."""
    constant, negative = torch.full((6, 9), 2.0), -torch.rand(6, 9) - 0.1
    maps = [torch.randn(6, 9), torch.randn(12, 18) * 5, constant, negative, torch.rand(4, 20) + 3]
    return explanation_of(picture, maps)


def resized(values: Tensor, size: tuple[int, int]) -> Tensor:
    return interpolate(values[None, None].double(), size, mode="bilinear", align_corners=False)[0, 0].float()


def scaled(values: Tensor) -> Tensor:
    values = values.clamp(min=0)
    span = values.max() - values.min()
    return (values - values.min()) / span if span > 0 else torch.zeros_like(values)


@pytest.mark.parametrize("size", [(60, 90), (33, 17), (200, 300), (1, 1)])
def test_each_map_is_normalised_by_itself_before_the_resize(size: tuple[int, int], explanation: Explanation) -> None:
    heat = explanation.render(size=size, dtype=torch.float32)
    assert heat.shape == (5, *size)
    for ours, raw in zip(heat, explanation.maps, strict=True):
        torch.testing.assert_close(ours, resized(scaled(raw), size), rtol=0, atol=2e-6)
    assert not heat[2].any(), "a constant map has nothing to show"
    assert not heat[3].any(), "a map with negative cells only speaks against the object"


def test_normalised_together_strengths_compare(explanation: Explanation) -> None:
    positive = [m.clamp(min=0) for m in explanation.maps]
    low, high = min(float(m.min()) for m in positive), max(float(m.max()) for m in positive)
    heat = explanation.render(dtype=torch.float32, normalize="image")
    for ours, raw in zip(heat, positive, strict=True):
        torch.testing.assert_close(ours, resized((raw - low) / (high - low), (60, 90)), rtol=0, atol=2e-6)
    one = explanation.render(objects=[0], dtype=torch.float32, normalize="image")
    # The scale is that of the picture, not of the objects that were asked for.
    torch.testing.assert_close(one[0], heat[0], rtol=0, atol=1e-6)


def test_raw_values_stay_reachable(explanation: Explanation) -> None:
    heat = explanation.render(dtype=torch.float32, normalize="none")
    for ours, raw in zip(heat, explanation.maps, strict=True):
        torch.testing.assert_close(ours, resized(raw.clamp(min=0), (60, 90)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("normalize", ["object", "image"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(dtype: torch.dtype, normalize: str, explanation: Explanation) -> None:
    exact = explanation.render(dtype=torch.float32, normalize=normalize)
    other = explanation.render(dtype=dtype, normalize=normalize)
    assert other.dtype == dtype
    tolerance = {torch.uint8: 0.502 / 255, torch.float16: 1e-3, torch.bfloat16: 8e-3, torch.float64: 1e-6}[dtype]
    back = other.float() / 255 if dtype == torch.uint8 else other.float()
    assert (back - exact).abs().max() <= tolerance
    assert explanation.render().dtype == torch.uint8


@pytest.mark.parametrize("chosen", [[2, 0], [1], [], [3, 3, 1]])
def test_some_objects_in_any_order(chosen: list[int], explanation: Explanation) -> None:
    everything = explanation.render()
    some = explanation.render(objects=chosen)
    assert some.dtype == torch.uint8
    assert torch.equal(some, everything[chosen])


def test_heatmaps_are_made_once(explanation: Explanation) -> None:
    assert explanation.heatmaps is explanation.heatmaps
    assert explanation.heatmaps.dtype == torch.float32
    assert torch.equal(explanation.heatmaps, explanation.render(dtype=torch.float32))
    assert 0 <= float(explanation.heatmaps.min()) <= float(explanation.heatmaps.max()) <= 1


def test_no_objects(picture: np.ndarray, tmp_path: Path) -> None:
    nothing = explanation_of(picture, [])
    assert len(nothing) == 0
    assert nothing.heatmaps.shape == (0, 60, 90)
    for normalize in ("object", "image"):
        assert nothing.render(normalize=normalize).shape == (0, 60, 90)
    assert nothing.labels == []
    assert json.loads((nothing.save(tmp_path) / "explanation.json").read_text())["objects"] == []
    assert np.load(tmp_path / "heatmaps.npz")["heatmaps"].shape == (0, 60, 90)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_peaks_that_are_not_finite_are_valid_json(bad: float, picture: np.ndarray) -> None:
    facts = explanation_of(picture, [torch.full((6, 9), bad)]).to_dict()
    json.dumps(facts, allow_nan=False)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_never_leave(bad: float, picture: np.ndarray) -> None:
    broken = torch.randn(6, 9).abs() + 1
    broken[2, 3] = bad
    explanation = explanation_of(picture, [broken, torch.full((6, 9), bad), torch.rand(6, 9)])
    for normalize in ("object", "image", "none"):
        heat = explanation.render(dtype=torch.float32, normalize=normalize)
        assert bool(heat.isfinite().all()), normalize
        assert not heat[1].any()
        assert heat[2].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"normalize": "objects"}, "objects"),
        ({"dtype": torch.int32}, "int32"),
        pytest.param(
            {"normalize": "none"},
            "uint8",
        ),
    ],
    ids=str,
)
def test_wrong_options(options: dict[str, Any], message: str, explanation: Explanation) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        explanation.render(**options)


def test_padding_of_the_letterbox_is_left_out(picture: np.ndarray) -> None:
    """The picture lies in rows 16 to 80 of a network input of 96 x 96: heat in the padding is not in the picture."""
    geometry = Geometry(source=(60, 90), resized=(64, 96), pad=(16, 0), network=(96, 96))
    padding, inside = torch.zeros(12, 12), torch.zeros(12, 12)
    padding[0] = 1
    inside[5, 0] = 1  # rows 40 to 48 of the network's input: the picture's rows 22.5 to 30
    explanation = explanation_of(picture, [padding, inside], geometry)
    heat = explanation.heatmaps
    assert not heat[0].any()
    row, column = divmod(int(heat[1].argmax()), 90)
    assert 22 <= row <= 30
    assert column < 8


@pytest.mark.parametrize("normalize", ["object", "image", "none"])
def test_no_heat_where_a_crop_left_the_network_blind(normalize: str, picture: np.ndarray) -> None:
    """The network saw the middle 60 x 60 of 60 x 90: beside it nothing, in it what the map says."""
    cropped = Geometry(source=(60, 90), resized=(60, 90), pad=(0, -15), network=(60, 60))
    explanation = dataclasses.replace(explanation_of(picture, [torch.rand(6, 6) + 1] * 2), geometry=cropped)
    heat = explanation.render(dtype=torch.float32, normalize=normalize)
    assert not heat[:, :, :15].any()
    assert not heat[:, :, 75:].any()
    raw = explanation.maps[0]
    expected = raw if normalize == "none" else scaled(raw)
    torch.testing.assert_close(heat[0][:, 15:75], resized(expected, (60, 60)), rtol=0, atol=2e-6)


def test_torchs_default_dtype_changes_nothing(picture: np.ndarray) -> None:
    maps = [torch.rand(6, 6), torch.rand(3, 3)]
    expected = explanation_of(picture, maps).heatmaps
    torch.set_default_dtype(torch.float64)
    try:
        heatmaps = explanation_of(picture, maps).heatmaps
    finally:
        torch.set_default_dtype(torch.float32)
    assert heatmaps.dtype == torch.float32
    assert torch.equal(heatmaps, expected)


def test_masks_are_the_logits_at_each_pixel_s_own_place(segmenter: nn.Module, seed: int) -> None:
    """Independent reference: the logits, sampled where the source pixel's centre lies in the network's input."""
    picture = random_picture(seed, 117, 203)
    explanation = Explainer(segmenter, imgsz=160, conf=0.2)(picture)
    masks, logits, geometry = explanation.masks, explanation.objects.mask_logits, explanation.geometry
    assert masks is not None
    assert logits is not None
    assert masks.shape == (len(explanation), 117, 203)
    y = (torch.arange(117) + 0.5) * geometry.resized[0] / 117 + geometry.pad[0]
    x = (torch.arange(203) + 0.5) * geometry.resized[1] / 203 + geometry.pad[1]
    grid = torch.stack(torch.meshgrid(y / geometry.network[0], x / geometry.network[1], indexing="ij")[::-1], dim=-1)
    places = (2 * grid - 1)[None].expand(len(logits), -1, -1, -1)
    sampled = grid_sample(logits[:, None], places, padding_mode="border", align_corners=False)[:, 0]
    for mask, value, (x1, y1, x2, y2) in zip(masks, sampled, explanation.boxes.tolist(), strict=True):
        rows, columns = torch.arange(117), torch.arange(203)  # cropped as Ultralytics does: by a pixel's index
        inside = ((rows >= y1) & (rows < y2))[:, None] & ((columns >= x1) & (columns < x2))
        clear = value.abs() > 1e-4
        assert torch.equal(mask[clear], (inside & (value > 0))[clear])


def test_masks_are_those_of_predict(seed: int) -> None:
    for number in itertools.count(seed, 100):  # until a mask is large enough to be compared
        picture = random_picture(number, 120, 200)
        segmenter = random_yolo("yolov8n-seg.yaml", number, picture, 320)  # no score is close to the threshold
        explanation = Explainer(segmenter, "odam", imgsz=320)(picture)
        overlaps = mask_overlaps(explanation, predict(segmenter, picture, imgsz=320, retina_masks=True))
        assert len(explanation) >= 3
        if len(overlaps):
            break
    assert float(overlaps.mean()) > 0.99


@pytest.mark.nightly
def test_masks_of_real_weights_are_those_of_predict(shared: Path) -> None:
    from ultralytics import YOLO

    explainer = Explainer(shared / "weights" / "yolov8n-seg.pt")
    wrapper = YOLO(shared / "weights" / "yolov8n-seg.pt")
    for path in sorted((shared / "data" / "coco64" / "images").glob("*.jpg"))[2:8]:
        explanation = explainer(path)
        for options, least in (({"retina_masks": True}, 0.999), ({}, 0.93)):
            result = wrapper.predict(path, verbose=False, **options)[0]
            assert len(result) == len(explanation)
            if len(explanation):
                assert float(mask_overlaps(explanation, result).mean()) > least


def mask_overlaps(explanation: Explanation, result: Any) -> Tensor:
    """[n] intersection over union of our masks with those of the predict call, of masks of at least 100 pixels."""
    assert explanation.masks is not None
    shares = []
    for mask, box in zip(explanation.masks, explanation.boxes, strict=True):
        distance = (result.boxes.xyxy - box).abs().amax(dim=1)
        assert float(distance.min()) < 0.01
        theirs = result.masks.data[int(distance.argmin())]
        if theirs.shape != mask.shape:  # at the size of the network's input, with its padding
            top, left = explanation.geometry.pad
            height, width = explanation.geometry.resized
            inner = theirs[top : top + height, left : left + width]
            theirs = interpolate(inner[None, None].float(), mask.shape, mode="bilinear")[0, 0] > 0.5
        union = int((mask | theirs.bool()).sum())
        if union >= 100:
            shares.append(int((mask & theirs.bool()).sum()) / union)
    return torch.tensor(shares)


def test_no_masks_from_a_detector(detector: nn.Module, picture: np.ndarray) -> None:
    assert Explainer(detector, imgsz=160)(picture).masks is None


def test_overlay_is_the_picture_with_heat_and_box(explanation: Explanation, picture: np.ndarray) -> None:
    before = picture.copy()
    overlay = explanation.overlay(0)
    assert overlay.shape == (60, 90, 3)
    assert overlay.dtype == np.uint8
    assert not np.array_equal(overlay, explanation.overlay(1))
    assert not np.array_equal(overlay, explanation.overlay(0, colormap="viridis"))
    plain = explanation.overlay(0, alpha=0.0)
    cold = (explanation.heatmaps[0] == 0).numpy()
    assert cold.any()
    assert np.array_equal(overlay[cold], plain[cold])
    assert np.array_equal(picture, before)


def test_plain_facts(explanation: Explanation) -> None:
    facts = explanation.to_dict()
    json.dumps(facts, allow_nan=False)
    assert facts["image"] == {"width": 90, "height": 60}
    assert [o["label"] for o in facts["objects"]] == explanation.labels
    assert [o["map"] for o in facts["objects"]] == [[6, 9], [12, 18], [6, 9], [6, 9], [4, 20]]
    assert facts["objects"][1]["peak"] == pytest.approx(float(explanation.maps[1].max()))
    assert "min-max" in facts["normalization"]
