"""COCO results: read, decoded and judged by pycocotools."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from awkward import HEIGHT, WIDTH, above_threshold

from detcam import Explanation, InputError

pytest.importorskip("pycocotools")
from pycocotools import mask as coco
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


def ground_truth(folder: Path, results: list[dict[str, Any]]) -> COCO:
    """A COCO file whose objects are those of the results."""
    keys = ("image_id", "category_id", "bbox", "segmentation")
    objects = [
        {"id": i + 1, "iscrowd": 0, "area": float(coco.area(r["segmentation"])), **{key: r[key] for key in keys}}
        for i, r in enumerate(results)
    ]
    path = folder / "truth.json"
    document = {
        "info": {},
        "images": [{"id": 7, "width": WIDTH, "height": HEIGHT, "file_name": "a.jpg"}],
        "categories": [{"id": i, "name": str(i)} for i in sorted({r["category_id"] for r in results})],
        "annotations": objects,
    }
    path.write_text(json.dumps(document))
    return COCO(str(path))


@pytest.mark.parametrize("threshold", [0.2, 0.5, 1.0])
def test_runs_decode_to_where_the_heat_reaches_the_threshold(odd: Explanation, threshold: float) -> None:
    results = json.loads(json.dumps(odd.to_coco(7, threshold)))
    expected = above_threshold(odd, threshold)
    assert len(results) == 4
    for i, result in enumerate(results):
        assert np.array_equal(coco.decode(result["segmentation"]).astype(bool), expected[i])
    assert not coco.decode(results[2]["segmentation"]).any(), "the blank map"


def test_boxes_and_scores(odd: Explanation) -> None:
    first, *_, last = odd.to_coco(7)
    assert (first["image_id"], first["category_id"]) == (7, 0)
    assert first["bbox"] == [3.25, 4.5, 27.5, 35.5]
    assert last["bbox"] == [50, 30, 40, 30]
    assert first["score"] == pytest.approx(0.9, abs=1e-6)


def test_load_res_and_the_judge_take_them(odd: Explanation, tmp_path: Path) -> None:
    results = odd.to_coco(7, 0.3, categories={0: 18, 1: 1, 2: 44, 3: 2})
    results = [r for r in results if coco.area(r["segmentation"])]  # no truth is empty
    truth = ground_truth(tmp_path, results)
    (tmp_path / "results.json").write_text(json.dumps(results))
    loaded = truth.loadRes(str(tmp_path / "results.json"))
    masks = above_threshold(odd, 0.3)
    for annotation, i in zip(loaded.loadAnns(loaded.getAnnIds()), (0, 1, 3), strict=True):
        assert annotation["category_id"] == {0: 18, 1: 1, 3: 2}[i]
        assert np.array_equal(loaded.annToMask(annotation).astype(bool), masks[i])
    for kind in ("bbox", "segm"):
        judge = COCOeval(truth, loaded, kind)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
        assert judge.stats[0] == pytest.approx(1.0), kind


def test_no_objects_and_what_is_refused(odd: Explanation, nothing: Explanation) -> None:
    assert nothing.to_coco(7) == []
    for wrong in (0.0, -0.1, 1.5, float("nan")):
        with pytest.raises(InputError, match="threshold"):
            odd.to_coco(7, wrong)
    with pytest.raises(InputError, match="class 3"):
        odd.to_coco(7, categories={0: 1, 1: 2, 2: 3})
