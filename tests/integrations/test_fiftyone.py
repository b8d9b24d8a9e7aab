"""FiftyOne's labels on a sample, read back by FiftyOne. It needs no database for that."""

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from awkward import HEIGHT, ODD, WIDTH, odd_explanation

from detcam import Explanation


def test_the_error_names_the_library(odd: Explanation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fiftyone", None)
    with pytest.raises(ImportError, match="pip install fiftyone"):
        odd.to_fiftyone()


def test_labels_on_a_sample(odd: Explanation, tmp_path: Path) -> None:
    fo = pytest.importorskip("fiftyone")
    odd.to_pil().save(tmp_path / "a.png")
    sample = fo.Sample(filepath=str(tmp_path / "a.png"))
    sample.add_labels(odd.to_fiftyone())
    found = sample["detections"].detections
    assert [d.label for d in found] == list(ODD)
    assert [d.confidence for d in found] == pytest.approx(odd.scores.tolist())
    assert found[0].bounding_box == pytest.approx([3.25 / 90, 4.5 / 60, 27.5 / 90, 35.5 / 60])
    for i, each in enumerate(found):
        own = fo.Heatmap.from_dict(sample[each.heatmap].to_dict())  # as its database keeps it
        assert own.label == ODD[i]
        assert own.range == [0, 255]
        assert np.abs(own.map / 255 - odd.heatmaps[i].numpy()).max() <= 0.51 / 255
    assert not sample[found[2].heatmap].map.any(), "the blank map"
    assert np.array_equal(sample["heatmap"].map, odd.render().amax(dim=0).numpy())


def test_masks_lie_where_they_are(odd: Explanation, seed: int) -> None:
    pytest.importorskip("fiftyone")
    found = odd.to_fiftyone()["detections"].detections
    for i, each in enumerate(found):
        drawn = each.to_segmentation(frame_size=(WIDTH, HEIGHT), target=1).mask > 0
        mask = odd.masks[i].numpy()
        # FiftyOne draws at whole pixels, rounded down: by a pixel, and by another where the box has fractions.
        reach = np.ones((3, 3) if i >= 2 else (5, 5), np.uint8)
        for one, other in ((drawn, mask), (mask, drawn)):
            assert (one & (cv2.dilate(other.astype(np.uint8), reach) == 0)).mean() < 0.01, i
    assert odd_explanation(seed, masks=False).to_fiftyone()["detections"].detections[0].mask is None


def test_some_heatmaps_at_another_size_and_no_objects(odd: Explanation, nothing: Explanation) -> None:
    pytest.importorskip("fiftyone")
    some = odd.to_fiftyone(objects=[1], size=(20, 30))
    assert sorted(some) == ["detections", "heatmap", "heatmap_001"]
    assert some["heatmap_001"].map.shape == some["heatmap"].map.shape == (20, 30)
    assert [d.heatmap for d in some["detections"].detections] == [None, "heatmap_001", None, None]
    empty = nothing.to_fiftyone()
    assert sorted(empty) == ["detections", "heatmap"]
    assert empty["detections"].detections == []
    assert not empty["heatmap"].map.any()
