"""Label Studio's tasks: by hand, and by its own SDK where that is installed."""

import json
from xml.sax.saxutils import quoteattr

import numpy as np
import pytest
from awkward import HEIGHT, ODD, WIDTH, above_threshold

from detcam import Explanation, InputError
from detcam.integrations.label_studio import brush_runs


def unpacked(data: list[int]) -> np.ndarray:
    """The values of an RLE of @thi.ng/rle-pack, read bit by bit as its documentation says; runs and literals."""
    bits = "".join(f"{byte:08b}" for byte in data)
    place = 0

    def read(count: int) -> int:
        nonlocal place
        place += count
        return int(bits[place - count : place], 2)

    total, word = read(32), read(5) + 1
    lengths = [read(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < total:
        run = read(1)
        count = read(lengths[read(2)]) + 1
        values += [read(word)] * count if run else [read(word) for _ in range(count)]
    assert len(values) == total
    assert len(bits) - place < 8
    assert "1" not in bits[place:]
    return np.array(values, np.uint8)


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (60, 90), (300, 200)])
@pytest.mark.parametrize("density", [0.0, 0.02, 0.5, 1.0])
def test_brush_runs_unpack_to_the_mask(shape: tuple[int, int], density: float, seed: int) -> None:
    mask = np.random.default_rng(seed).uniform(size=shape) < density
    pixels = unpacked(brush_runs(mask)).reshape(*shape, 4)
    assert np.array_equal(pixels, np.where(mask[:, :, None], 255, 0).repeat(4, axis=2))


def test_a_task_by_hand(odd: Explanation) -> None:
    task = json.loads(json.dumps(odd.to_label_studio("/data/local-files/?d=a.jpg", threshold=0.3)))
    assert task["data"] == {"image": "/data/local-files/?d=a.jpg"}
    (prediction,) = task["predictions"]
    assert prediction["score"] == pytest.approx(float(odd.scores.mean()))
    rectangles = [r for r in prediction["result"] if r["type"] == "rectanglelabels"]
    brushes = [r for r in prediction["result"] if r["type"] == "brushlabels"]
    assert [r["value"]["rectanglelabels"] for r in rectangles] == [[name] for name in ODD]
    assert [b["id"] for b in brushes] == ["heat-0", "heat-1", "heat-3"], "the third map is blank"
    assert len({r["id"] for r in prediction["result"]}) == 7
    assert all((r["original_width"], r["original_height"]) == (WIDTH, HEIGHT) for r in prediction["result"])
    place = rectangles[0]["value"]
    pixels = [
        place["x"] * 0.9,
        place["y"] * 0.6,
        (place["x"] + place["width"]) * 0.9,
        (place["y"] + place["height"]) * 0.6,
    ]
    np.testing.assert_allclose(pixels, odd.boxes[0], atol=1e-4)
    masks = above_threshold(odd, 0.3)
    for brush in brushes:
        alpha = unpacked(brush["value"]["rle"]).reshape(HEIGHT, WIDTH, 4)[:, :, 3]
        assert np.array_equal(alpha == 255, masks[int(brush["id"][-1])])


def test_other_tags_and_no_objects(odd: Explanation, nothing: Explanation) -> None:
    task = odd.to_label_studio("a.jpg", rectangles="boxes", brush=None, to_name="photo")
    assert task["data"] == {"photo": "a.jpg"}
    assert {(r["from_name"], r["to_name"]) for r in task["predictions"][0]["result"]} == {("boxes", "photo")}
    empty = nothing.to_label_studio("a.jpg")["predictions"][0]
    assert empty["result"] == []
    assert "score" not in empty
    with pytest.raises(InputError, match="threshold"):
        odd.to_label_studio("a.jpg", threshold=2)


def test_its_own_sdk_validates_and_decodes_them(odd: Explanation, nothing: Explanation) -> None:
    pytest.importorskip("label_studio_sdk")
    from label_studio_sdk.converter.brush import decode_rle
    from label_studio_sdk.label_interface import LabelInterface

    choices = "".join(f"<Label value={quoteattr(name, {chr(10): '&#10;'})}/>" for name in ODD)
    interface = LabelInterface(
        "<View><Image name='image' value='$image'/>"
        f"<RectangleLabels name='label' toName='image'>{choices}</RectangleLabels>"
        f"<BrushLabels name='heat' toName='image'>{choices}</BrushLabels></View>"
    )
    for explanation in (odd, nothing):
        task = explanation.to_label_studio("http://pictures/a.jpg")
        assert interface.validate_prediction(task["predictions"][0], return_errors=True) == []
        assert interface.validate_task({"data": task["data"]})
    masks = above_threshold(odd, 0.5)
    for region in odd.to_label_studio("a.jpg")["predictions"][0]["result"]:
        if region["type"] == "brushlabels":
            alpha = decode_rle(region["value"]["rle"]).reshape(HEIGHT, WIDTH, 4)[:, :, 3]
            assert np.array_equal(alpha == 255, masks[int(region["id"][-1])])
