"""supervision's Detections with heatmaps, filtered, merged and drawn by its own annotators."""

import cv2
import numpy as np
import pytest
import torch
from awkward import ODD, odd_explanation
from PIL import Image
from support import predict
from torch import nn

from detcam import Explainer, Explanation, InputError
from detcam.integrations import HeatAnnotator

sv = pytest.importorskip("supervision")


def test_detections_hold_all_there_is(odd: Explanation) -> None:
    found = odd.to_supervision()
    assert isinstance(found, sv.Detections)
    assert found.xyxy.tolist() == odd.boxes.tolist()
    assert found.confidence.tolist() == odd.scores.tolist()
    assert found.class_id.tolist() == [0, 1, 2, 3]
    assert found.data["class_name"].tolist() == list(ODD)
    assert found.mask.dtype == bool
    assert found.mask.sum(axis=(1, 2)).tolist() == odd.masks.sum(dim=(1, 2)).tolist()
    assert np.array_equal(found.data["heatmaps"], odd.heatmaps.numpy())


def test_the_same_objects_as_its_own_reader_of_results_finds(detector: nn.Module, picture: np.ndarray) -> None:
    theirs = sv.Detections.from_ultralytics(predict(detector, picture, imgsz=160))
    ours = Explainer(detector, imgsz=160)(picture).to_supervision()
    assert len(ours) == len(theirs) > 0
    # Only objects of equal score may change places.
    np.testing.assert_allclose(ours.confidence, theirs.confidence, atol=1e-4)
    distance = np.abs(ours.xyxy[:, None] - theirs.xyxy[None]).max(axis=2)
    same = ours.data["class_name"][:, None] == theirs.data["class_name"][None]
    assert ((distance < 1e-2) & same).any(axis=1).all()


def test_filters_carry_each_heatmap_with_its_object(odd: Explanation) -> None:
    found = odd.to_supervision()
    kept = found[found.class_id != 1]
    assert kept.data["class_name"].tolist() == [ODD[0], ODD[2], ODD[3]]
    assert np.array_equal(kept.data["heatmaps"], odd.heatmaps.numpy()[[0, 2, 3]])
    both = sv.Detections.merge([found[:1], found[2:]])
    assert np.array_equal(both.data["heatmaps"], kept.data["heatmaps"])


def test_its_annotators_draw_them(odd: Explanation) -> None:
    found = odd.to_supervision()
    annotators = (
        sv.BoxAnnotator(), sv.MaskAnnotator(), sv.LabelAnnotator(), sv.HaloAnnotator(), sv.HeatMapAnnotator(), sv.DotAnnotator(),
    )  # fmt: skip
    for annotator in annotators:
        scene = odd.image[:, :, ::-1].copy()
        drawn = annotator.annotate(scene, found)
        assert drawn.shape == scene.shape
        assert not np.array_equal(drawn, odd.image[:, :, ::-1]), type(annotator).__name__


def test_objects_without_masks(seed: int) -> None:
    found = odd_explanation(seed, masks=False).to_supervision()
    assert found.mask is None
    sv.BoxAnnotator().annotate(np.zeros((60, 90, 3), np.uint8), found)


def test_no_objects(nothing: Explanation) -> None:
    found = nothing.to_supervision()
    assert len(found) == 0
    assert found.data["heatmaps"].shape == (0, 60, 90)
    scene = nothing.image.copy()
    for annotator in (sv.BoxAnnotator(), sv.LabelAnnotator(), HeatAnnotator()):
        assert np.array_equal(annotator.annotate(scene, found), nothing.image)
    assert HeatAnnotator().annotate(scene, sv.Detections.empty()) is scene


def test_our_annotator_draws_the_hottest_object_in_bgr(odd: Explanation) -> None:
    found = odd.to_supervision()
    scene = odd.image[:, :, ::-1].copy()
    drawn = HeatAnnotator(opacity=1).annotate(scene, found)
    assert drawn is scene  # as supervision's own draw
    heat = odd.heatmaps.amax(dim=0).numpy()
    assert np.array_equal(drawn[heat == 0], odd.image[:, :, ::-1][heat == 0])
    top = cv2.applyColorMap(np.full((1, 1), 255, np.uint8), cv2.COLORMAP_INFERNO)[0, 0].astype(int)  # BGR
    hottest = np.unravel_index(heat.argmax(), heat.shape)
    # At heat h the colour of level 255 h shows through with sqrt(h).
    assert np.abs(drawn[hottest] - top).max() <= 3 + 400 * (1 - heat.max())
    y, x = 31, 44
    level = cv2.applyColorMap(np.full((1, 1), round(float(heat[y, x]) * 255), np.uint8), cv2.COLORMAP_INFERNO)[0, 0]
    share = float(heat[y, x]) ** 0.5
    by_hand = odd.image[y, x, ::-1] * (1 - share) + level * share
    assert np.abs(drawn[y, x] - by_hand).max() <= 1


def test_our_annotator_takes_pil_as_theirs_do(odd: Explanation) -> None:
    found = odd.to_supervision()
    scene = Image.fromarray(odd.image)
    drawn = HeatAnnotator().annotate(scene, found)
    assert drawn is scene
    bgr = HeatAnnotator().annotate(odd.image[:, :, ::-1].copy(), found)
    assert np.array_equal(np.asarray(drawn), bgr[:, :, ::-1])


def test_our_annotator_refuses_what_it_cannot_draw(odd: Explanation) -> None:
    found = odd.to_supervision()
    with pytest.raises(InputError, match=r"90 x 60 pixels.*got 45 x 30"):
        HeatAnnotator().annotate(np.zeros((30, 45, 3), np.uint8), found)
    del found.data["heatmaps"]
    with pytest.raises(InputError, match="to_supervision"):
        HeatAnnotator().annotate(odd.image.copy(), found)


def test_a_scene_of_one_object_is_hot_inside_it(detector: nn.Module, picture: np.ndarray) -> None:
    explanation = Explainer(detector, imgsz=160)(picture)
    found = explanation.to_supervision()
    i = int(torch.tensor([not m.any() for m in explanation.maps]).logical_not().nonzero()[0])
    changed = HeatAnnotator().annotate(picture[:, :, ::-1].copy(), found[[i]]) != picture[:, :, ::-1]
    cold = explanation.heatmaps[i].numpy() == 0
    assert changed.any()
    assert not changed[cold].any()
