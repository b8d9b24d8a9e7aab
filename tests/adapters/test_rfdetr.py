"""RF-DETR of the rfdetr package: what its own predict returns, a sound map for each object, exact gradients."""

from collections.abc import Iterator
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from finite_differences import slopes
from rfdetr_models import KINDS, QUERIES, random_rfdetr, raw_of
from support import assert_same_objects, few_rows, random_picture

from detcam import Explainer
from detcam.adapters.rfdetr import RfdetrAdapter
from detcam.engine import shadow
from detcam.errors import ModelError, TargetError

pytest.importorskip("rfdetr")

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*pretrain_weights=None"),
    pytest.mark.filterwarnings("ignore:.*jit.script:FutureWarning"),
]


def as_result(detections: Any) -> Any:
    boxes, scores = torch.from_numpy(detections.xyxy), torch.from_numpy(detections.confidence)
    return SimpleNamespace(boxes=SimpleNamespace(xyxy=boxes, conf=scores, cls=torch.from_numpy(detections.class_id)))


def test_the_module_inside_gives_the_same_maps(seed: int) -> None:
    picture = random_picture(seed, 80, 120)
    wrapper = random_rfdetr("RFDETRNano", seed)
    whole = Explainer(wrapper, conf=0.0, max_det=3)(picture)
    inside = Explainer(wrapper.model.model, conf=0.0, max_det=3, imgsz=96)(picture)
    assert whole.settings["family"] == inside.settings["family"] == "rfdetr"
    assert torch.equal(whole.boxes, inside.boxes)
    assert torch.equal(whole.heatmaps, inside.heatmaps)


def test_names_of_pretrained_models_have_gaps(seed: int) -> None:
    picture = random_picture(seed, 80, 120)
    wrapper = random_rfdetr("RFDETRNano", seed, num_classes=90)
    result = wrapper.predict(picture, threshold=0.0)
    found = Explainer(wrapper, conf=0.0, max_det=QUERIES)(picture)
    assert_same_objects(found, as_result(result), box=1e-2)
    named = dict(zip(result.class_id.tolist(), result.data["class_name"], strict=True))
    for label, number in zip(found.labels, found.class_ids.tolist(), strict=True):
        assert label == (named[number] or str(number))


@pytest.fixture
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    ("kind", "preset"), few_rows(product(KINDS, ["level", "evidence"]), ("RFDETRSegNano", "evidence"))
)
def test_gradients_match_finite_differences(kind: str, preset: str, seed: int, double: None) -> None:
    picture = random_picture(seed, 80, 120)
    wrapper = random_rfdetr(kind, seed)
    adapter = RfdetrAdapter(shadow(wrapper.model.model.double()), wrapper)
    pixels, geometry = adapter.prepare(picture)
    query, label = torch.randint(QUERIES, (1,)), torch.randint(5, (1,))

    def choose(outputs: Any) -> Any:
        return adapter.objects_at(outputs, query, label, geometry)

    targets = ("class", "prob", "margin", "left", "bottom", *(("mask",) if "Seg" in kind else ()))
    for target, (slope, difference) in slopes(adapter, pixels, geometry, preset, choose, targets).items():
        assert slope == pytest.approx(difference, rel=1e-3, abs=1e-4), target


def test_scalars_by_hand(seed: int, double: None) -> None:
    picture = random_picture(seed, 80, 120)
    wrapper = random_rfdetr("RFDETRSegNano", seed)
    # In float64, or rounding decides which of two queries is the first, and on which side of 0 a cell of a mask lies.
    adapter = RfdetrAdapter(shadow(wrapper.model.model.double()), wrapper)
    pixels, geometry = adapter.prepare(picture)
    outputs = adapter.forward(pixels[None], 300)
    queries, labels = torch.arange(QUERIES), torch.randint(5, (QUERIES,))
    objects = [adapter.objects_at(outputs, queries, labels, geometry)]
    raw = raw_of(wrapper, picture)
    scalars = {t: adapter.score(outputs, objects, t) for t in ("class", "prob", "margin", "mask", "box", "right")}
    for query, label in enumerate(labels.tolist()):
        logits, masks = raw["pred_logits"][query], raw["pred_masks"][query]
        cx, cy, w, h = (raw["pred_boxes"][query] * 96).tolist()
        expected = {
            "class": logits[label],
            "prob": logits[label].sigmoid(),
            "margin": logits[label] - torch.cat([logits[:label], logits[label + 1 :]]).max(),
            "mask": masks[masks > 0].mean() if bool((masks > 0).any()) else masks.max(),
            "box": torch.tensor([w / 2 - cx, h / 2 - cy, cx + w / 2, cy + h / 2]),
            "right": torch.tensor(cx + w / 2),
        }
        for target, value in expected.items():
            torch.testing.assert_close(scalars[target][query], value, rtol=1e-3, atol=1e-2)
        torch.testing.assert_close(objects[0].scores[query].double(), expected["prob"], rtol=0, atol=1e-4)
        torch.testing.assert_close(objects[0].mask_logits[query].double(), masks, rtol=1e-3, atol=1e-3)


def test_the_size_follows_the_windows(seed: int) -> None:
    wrapper = random_rfdetr("RFDETRNano", seed)
    explainer = Explainer(wrapper, imgsz=100, conf=0.0, max_det=1)
    assert explainer.settings["imgsz"] == 128
    assert explainer(random_picture(seed, 80, 120)).geometry.network == (128, 128)


def test_what_cannot_be_done_is_said(seed: int) -> None:
    wrapper = random_rfdetr("RFDETRNano", seed)
    with pytest.raises(TargetError, match="target 'mask' does not exist for this rfdetr detect model"):
        Explainer(wrapper, target="mask")
    wrapper.model.model = None
    with pytest.raises(ModelError, match=r"RFDETRNano has no LWDETR, as after inference\(inplace=True\)"):
        Explainer(wrapper)
