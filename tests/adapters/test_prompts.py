"""Points, boxes, masks and label maps that a user gives to a semantic segmenter, on pictures with planted squares."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from semantic_models import explain, options, picture_for, random_segmenter
from support import NIGHTLY, fingerprint, predict, random_picture
from torch import Tensor, nn

from detcam import Explainer, InputError
from detcam.cli.app import run

pytest.importorskip("torchvision")

SIZE = (48, 64)
FIRST = (slice(8, 24), slice(8, 24))  # red, class 1
SECOND = (slice(28, 40), slice(40, 60))  # red too
BAND = (slice(40, 48), slice(0, 64))  # green, class 2
RED, GREEN = 1, 2


class _Pooled(nn.Module):
    """A backbone that puts out the picture in cells of 4 pixels."""

    def forward(self, picture: Tensor) -> dict[str, Tensor]:
        return OrderedDict(out=nn.functional.avg_pool2d(picture, 4))


def planted_segmenter() -> nn.Module:
    """A segmenter of torchvision that gives red pixels class 1, green ones class 2 and black ones the background."""
    from torchvision.models.segmentation.fcn import FCN

    convolution = nn.Conv2d(3, 3, 1)
    convolution.weight.data = torch.tensor([[0.0, 0, 0], [4, 0, 0], [0, 4, 0]])[:, :, None, None]
    convolution.bias.data = torch.tensor([1.0, 0, 0])
    return FCN(_Pooled(), nn.Sequential(nn.Identity(), convolution)).eval()


def planted_picture() -> np.ndarray:
    picture = np.zeros((*SIZE, 3), np.uint8)
    picture[FIRST] = picture[SECOND] = (255, 0, 0)
    picture[BAND] = (0, 255, 0)
    return picture


def planted_explainer(**more: Any) -> Explainer:
    return Explainer(planted_segmenter(), processor=lambda pixels: pixels.float() / 255, layers="evidence", **more)


def area(*where: tuple[slice, slice]) -> Tensor:
    mask = torch.zeros(SIZE, dtype=torch.bool)
    for rows, columns in where:
        mask[rows, columns] = True
    return mask


def near(mask: Tensor, other: Tensor) -> bool:
    """Whether two masks differ at most in the pixels along an edge, where logits of two classes are interpolated."""
    ring = (
        nn.functional.max_pool2d(other[None].float(), 5, 1, 2)[0]
        + nn.functional.max_pool2d(1 - other[None].float(), 5, 1, 2)[0]
    )
    return bool((mask == other)[ring < 2].all())


def test_a_point_stands_for_the_region_that_it_lies_in() -> None:
    explanation = planted_explainer()(planted_picture(), prompts=[(16, 16), (50.5, 33), (3, 45), (60, 3)])
    assert explanation.class_ids.tolist() == [RED, RED, GREEN, 0]
    assert explanation.labels == ["class 1", "class 1", "class 2", "background"]
    expected = [area(FIRST), area(SECOND), area(BAND), ~area(FIRST, SECOND, BAND)]
    for mask, planted in zip(explanation.masks, expected, strict=True):
        assert near(mask, planted)
    assert not (explanation.masks[0] & explanation.masks[1]).any()
    assert explanation.settings["prompts"][1] == {"point": [50.5, 33.0]}
    # Red cells, and nothing else, carry the logit of red; each region's heat lies in that region.
    for i, own in ((0, FIRST), (1, SECOND), (2, BAND)):
        heat = explanation.heatmaps[i]
        inside = nn.functional.max_pool2d(area(own)[None].float(), 9, 1, 4)[0] > 0
        assert heat[area(own)].mean() > 0.8
        assert not heat[~inside].any()
    assert explanation.notes[3] is not None  # the background's logit is a bias: no cell contributes
    assert "zero map" in explanation.notes[3]


def test_boxes_and_masks_are_explained_for_the_class_that_most_of_their_pixels_have() -> None:
    explainer = planted_explainer()
    box = (40, 30, 60, 46)  # 10 rows of red over 6 of green
    mask = area((slice(32, 48), slice(44, 56)))  # 8 rows of each, and the edge between them
    mask[32:37] = False
    explanation = explainer(planted_picture(), prompts=[box, mask, (mask.numpy(), "class 1"), ((16, 16), 2), (box, 2)])
    assert explanation.class_ids.tolist() == [RED, GREEN, RED, GREEN, GREEN]
    assert torch.equal(explanation.masks[0], area((slice(30, 46), slice(40, 60))))
    assert torch.equal(explanation.masks[1], mask)
    assert torch.equal(explanation.masks[2], mask)
    assert near(explanation.masks[3], area(FIRST))
    assert explanation.boxes[0].tolist() == list(box)
    logits = explainer.adapter.module(torch.from_numpy(planted_picture()).permute(2, 0, 1)[None].float() / 255)["out"][
        0
    ]
    probabilities = logits.softmax(0)
    for mask, c, score in zip(explanation.masks, explanation.class_ids.tolist(), explanation.scores, strict=True):
        assert float(score) == pytest.approx(float(probabilities[c][mask].mean()), abs=1e-5)
    assert [len(region) for region in explanation.settings["prompts"]] == [1, 1, 2, 2, 2]
    assert explanation.settings["prompts"][3] == {"point": [16.0, 16.0], "class_id": 2}
    assert explanation.heatmaps[0][32:38, 42:58].mean() > 0.5  # red, in the box
    assert not explanation.heatmaps[0][42:, :].any()  # green


def test_a_point_is_the_component_that_the_model_found(seed: int) -> None:
    for kind in ("segformer", "mobilevit", "smp-unet", "fcn") if NIGHTLY else ("mobilevit", "fcn"):
        picture = picture_for(kind, seed)
        model = random_segmenter(kind, seed)
        found = explain(kind, model, picture, segments="component", max_det=4)
        explainer = Explainer(model, conf=0.9, **options(kind))
        before = fingerprint(model)
        points = []
        for mask in found.masks:
            row, column = mask.nonzero()[int(torch.randint(int(mask.sum()), ()))].tolist()
            points.append((column + 0.5, row + 0.5))
        explanation = explainer(picture, prompts=points)
        assert fingerprint(model) == before
        assert explanation.labels == found.labels
        assert torch.equal(explanation.masks, found.masks)
        torch.testing.assert_close(explanation.scores, found.scores, rtol=0, atol=1e-4)
        for one, other in zip(explanation.maps, found.maps, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * float(other.abs().max()))


def test_what_is_wrong_by_a_label_map() -> None:
    """The second square should be green, and a corner of the band that no one judges is wrong too."""
    explainer = planted_explainer()
    predicted = explainer.adapter.label_map(*_run(explainer))
    truth = predicted.clone()
    truth[SECOND] = torch.where(predicted[SECOND] == RED, GREEN, predicted[SECOND])
    truth[44:, :8] = 255
    truth[9:13, 9:13] = 0
    second, spot = (predicted == RED) & area(SECOND), area((slice(9, 13), slice(9, 13)))
    explanation = explainer(planted_picture(), truth=truth.numpy().astype(np.uint8))
    assert explanation.class_ids.tolist() == [RED, GREEN, RED, 0]
    assert torch.equal(explanation.masks, torch.stack([second, second, spot, spot]))
    assert explanation.notes[0] == f"wrong: class 1 where the truth is class 2, {int(second.sum())} pixels"
    assert explanation.notes[1] is not None
    assert explanation.notes[1].startswith("the true class where the model says class 1")
    share = (int(second.sum()) + 16) / (48 * 64 - 4 * 8)
    assert explanation.settings["truth"]["wrong_pixels"] == pytest.approx(share, abs=1e-6)
    # The evidence for red lies in the square, and there is none for green.
    assert explanation.heatmaps[0][SECOND].mean() > 0.8
    assert not explanation.heatmaps[1].any()
    assert explanation.scores[0] > 0.8
    assert explanation.scores[1] < 0.2
    few = planted_explainer(max_det=2)(planted_picture(), truth=truth)
    assert few.class_ids.tolist() == [RED, GREEN]
    right = explainer(planted_picture(), truth=predicted)
    assert len(right) == 0
    assert right.settings["truth"] == {"wrong_pixels": 0.0}


def _run(explainer: Explainer) -> tuple[Any, Any]:
    pixels, geometry = explainer.adapter.prepare(planted_picture())
    return explainer.adapter.forward(pixels[None], 300), geometry


def test_one_wrong_region_for_each_pair_of_classes() -> None:
    """Neighbouring pixels of one predicted class that should be two others are two regions."""
    from detcam.adapters.shared.segments import wrong_segments

    predicted = torch.tensor([[1, 1, 0], [1, 1, 0], [2, 2, -1]])
    truth = torch.tensor([[0, 2, 0], [2, 0, -1], [2, 0, 1]])
    masks, given, true = wrong_segments(predicted, truth, 9)
    regions = sorted(zip(given.tolist(), true.tolist(), (m.nonzero().tolist() for m in masks), strict=True))
    assert regions == [(1, 0, [[0, 0], [1, 1]]), (1, 2, [[0, 1], [1, 0]]), (2, 0, [[2, 1]])]
    assert wrong_segments(predicted, truth, 1)[0].sum() == 2
    assert wrong_segments(predicted, predicted, 9)[0].shape == (0, 3, 3)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "expected a list of points, boxes or masks, got []"),
        ("16,16", "expected a list of points, boxes or masks"),
        ([(64, 3)], "prompts[0]: the point (64.0, 3.0) lies outside the picture of 64 x 48 pixels"),
        ([(3, -0.5)], "lies outside the picture"),
        ([(float("nan"), 3)], "lies outside the picture"),
        ([(1, 2, 3)], "expected a point (x, y), a box (x1, y1, x2, y2) or a mask [H, W], got (1, 2, 3)"),
        ([(1, 1), (9, 9, 3, 20)], "prompts[1]: expected (x1, y1, x2, y2) with x1 < x2"),
        ([(70, 9, 80, 20)], "lies outside the picture"),
        ([np.ones((3, 4), bool)], "expected a mask of the picture's size (48, 64), got (3, 4)"),
        ([np.zeros(SIZE, bool)], "the mask is empty"),
        ([((1, 1), "clas 1")], "class 'clas 1' does not exist: did you mean 'class 1'"),
        ([((1, 1), 3)], "class 3 does not exist: the model has 0 to 2"),
        ([((1, 1), 1.5)], "expected a class name or number, got 1.5"),
    ],
)
def test_prompts_that_cannot_be_used(prompts: Any, message: str) -> None:
    with pytest.raises(InputError) as error:
        planted_explainer()(planted_picture(), prompts=prompts)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("truth", "message"),
    [
        (np.zeros((3, 4), int), "the image's size (48, 64), got torch.int64 (3, 4)"),
        (np.zeros(SIZE), "expected a label map of integers"),
        (np.full(SIZE, 255), "no pixel has a class of the model, which has 0 to 2"),
        ("labels.png", "expected a label map [H, W] of integers, got str"),
    ],
)
def test_label_maps_that_cannot_be_used(truth: Any, message: str) -> None:
    with pytest.raises(InputError) as error:
        planted_explainer()(planted_picture(), truth=truth)
    assert message in str(error.value)


def test_one_question_about_one_picture() -> None:
    explainer = planted_explainer()
    with pytest.raises(InputError, match="prompts: expected one image, got a list of 2"):
        explainer([planted_picture()] * 2, prompts=[(3, 3)])
    with pytest.raises(InputError, match="expected one of them, got several"):
        explainer(planted_picture(), prompts=[(3, 3)], truth=np.zeros(SIZE, int))


def test_what_a_crop_hides_cannot_be_pointed_at(seed: int) -> None:
    explainer = Explainer(random_segmenter("mobilevit", seed), **options("mobilevit"))
    with pytest.raises(InputError, match=r"prompts\[1\]: the network saw no pixel of it"):
        explainer(random_picture(seed, 80, 128), prompts=[(64, 40), (1, 40)])


def test_detectors_are_asked_instead(detector: nn.Module, picture: np.ndarray) -> None:
    explainer = Explainer(detector, imgsz=160)
    assert len(predict(detector, picture, imgsz=160).boxes)
    with pytest.raises(InputError, match=r"prompts: this .* takes no prompts: .*ask=\[\(box, class\)\]"):
        explainer(picture, prompts=[(3, 3)])
    with pytest.raises(InputError, match=r"truth: this .* does not classify pixels: .*ask=\[\(box, class\)\]"):
        explainer(picture, truth=np.zeros((120, 200), int))


def test_the_command_line_takes_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    import detcam.explainer

    cv2.imwrite(str(tmp_path / "planted.png"), planted_picture()[:, :, ::-1])
    monkeypatch.setattr(detcam.explainer, "load_model", lambda name, trust: planted_segmenter())
    options = ["explain", "--model", "scenes", str(tmp_path / "planted.png"), "--view", "where", "--imgsz", "48"]
    options += ["--out", str(tmp_path / "out"), "--json"]
    assert run([*options, "--prompt", "16,16", "--prompt", "44,30,60,36:class 2"]) == 0
    document = json.loads(capsys.readouterr().out)[0]
    assert [one["label"] for one in document["objects"]] == ["class 1", "class 2"]
    assert document["settings"]["prompts"] == [
        {"point": [16.0, 16.0]},
        {"box": [44.0, 30.0, 60.0, 36.0], "class_id": 2},
    ]
    for arguments, message in (
        (["--prompt", "16"], "prompt '16': expected x,y or x1,y1,x2,y2"),
        (["--prompt", "16,16", "--ask", "1,1,9,9:1"], "expected one of them, got several"),
    ):
        assert run([*options, *arguments]) == 2
        assert message in capsys.readouterr().err
