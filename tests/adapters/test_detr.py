"""Detection transformers of the transformers library: its own detections, a sound map for each, exact gradients."""

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from detr_models import KINDS, detections, image_processor, random_detr
from finite_differences import in_double, slopes
from support import assert_same_objects, few, few_rows, fingerprint, random_picture
from torch import Tensor, nn

from detcam import Explainer
from detcam.adapters.transformers.detr import DetrAdapter
from detcam.engine import shadow
from detcam.errors import ModelError
from detcam.types import Objects

pytest.importorskip("transformers")


def as_result(found: dict[str, Tensor]) -> Any:
    return SimpleNamespace(
        boxes=SimpleNamespace(xyxy=found["boxes"], conf=found["scores"], cls=found["labels"]),
    )


def outputs_of(model: nn.Module, processor: Any, picture: np.ndarray) -> Any:
    with torch.no_grad():
        return model(**processor(images=picture, return_tensors="pt"))


@pytest.fixture
def double() -> Iterator[None]:
    with in_double():
        yield


@pytest.mark.parametrize(
    ("kind", "preset"),
    few_rows(
        product(KINDS, ["level", "evidence"]),
        *zip(("detr", "deformable_detr", "d_fine"), 2 * ("level", "evidence"), strict=False),
    ),
)
def test_gradients_match_finite_differences(kind: str, preset: str, seed: int, double: None) -> None:
    picture = random_picture(seed, 120, 160)
    model, processor = random_detr(kind, seed)
    adapter = DetrAdapter(shadow(model.double()), model, None, processor)
    pixels, geometry = adapter.prepare(picture)

    def second(outputs: Any) -> Objects:
        return adapter.detect(outputs, [geometry], 0.0, 0.7, 300)[0].select(torch.tensor([1]))

    targets = ("class", "prob", "margin", "left", "bottom")
    found = slopes(adapter, pixels, geometry, preset, second, targets, step=1e-8, complete=("class",))
    for target, (slope, difference) in found.items():
        assert slope == pytest.approx(difference, rel=1e-3, abs=1e-4), target


@pytest.mark.parametrize("kind", few(["detr", "conditional_detr", "rt_detr", "yolos"], "detr", "rt_detr"))
def test_scalars_by_hand(kind: str, seed: int) -> None:
    picture = random_picture(seed, 120, 160)
    model, processor = random_detr(kind, seed)
    adapter = DetrAdapter(shadow(model), model, None, processor)
    pixels, geometry = adapter.prepare(picture)
    outputs = adapter.forward(pixels[None], 300)
    objects = adapter.detect(outputs, [geometry], 0.0, 0.7, 300)
    raw = outputs_of(model, processor, picture)
    shared = raw.logits.shape[2] > model.config.num_labels
    scalars = {t: adapter.score(outputs, objects, t) for t in ("class", "prob", "margin", "box", "left", "right")}
    for i, (query, label) in enumerate(zip(objects[0].index.tolist(), objects[0].class_ids.tolist(), strict=True)):
        logits = raw.logits[0, query]
        cx, cy, w, h = (raw.pred_boxes[0, query] * torch.tensor([128.0, 96.0, 128.0, 96.0])).tolist()
        expected = {
            "class": logits[label],
            "prob": logits.softmax(0)[label] if shared else logits[label].sigmoid(),
            "margin": logits[label] - torch.cat([logits[:label], logits[label + 1 : model.config.num_labels]]).max(),
            "box": torch.tensor([w / 2 - cx, h / 2 - cy, cx + w / 2, cy + h / 2]),
            "left": torch.tensor(w / 2 - cx),
            "right": torch.tensor(cx + w / 2),
        }
        for target, value in expected.items():
            torch.testing.assert_close(scalars[target][i].detach(), value, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(objects[0].scores[i], expected["prob"], rtol=0, atol=1e-4)


def test_padding_of_a_processor_is_no_part_of_the_picture(seed: int) -> None:
    picture = random_picture(seed, 120, 160)
    model, processor = random_detr("detr", seed)
    processor.pad_size = {"height": 160, "width": 192}
    inputs = processor(images=picture, return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, 160, 192)
    assert not inputs["pixel_mask"].all()
    found = detections(model, processor, picture, 0.0)
    explanation = Explainer(model, processor=processor, conf=0.0, layers="level")(picture)
    assert_same_objects(explanation, as_result(found), score=1e-4)
    geometry = explanation.geometry
    assert (geometry.resized, geometry.network) == ((96, 128), (160, 192))
    torch.testing.assert_close(explanation.objects.network_boxes, found["boxes"] * 0.8, rtol=0, atol=1e-2)
    assert explanation.maps[0].shape == (5, 6)
    # The last two rows and columns of the map lie on the padding.
    assert explanation.heatmaps.shape == (12, 120, 160)


def test_the_best_objects_stay_in_the_librarys_order(seed: int) -> None:
    picture = random_picture(seed, 120, 160)
    model, processor = random_detr("detr", seed)
    found = detections(model, processor, picture, 0.0)
    best = sorted(found["scores"].topk(4).indices.tolist())
    explanation = Explainer(model, processor=processor, conf=0.0, max_det=4)(picture)
    torch.testing.assert_close(explanation.scores, found["scores"][best])
    assert explanation.objects.index.tolist() == best


@pytest.mark.parametrize("kind", few(KINDS, "detr", "yolos"))
def test_the_architectures_own_processor_is_the_default(kind: str, seed: int) -> None:
    picture = random_picture(seed, 60, 80)
    model, processor = random_detr(kind, seed)
    explainer = Explainer(model, imgsz=128, conf=0.0)
    assert type(explainer.adapter.processor) is type(processor)  # type: ignore[attr-defined]
    stretched = "height" in dict(processor.size) and dict(processor.size)["height"] is not None
    same = type(processor)(
        size={"height": 128, "width": 128} if stretched else {"shortest_edge": 96, "longest_edge": 128}
    )
    explanation = explainer(picture)
    assert explanation.settings["imgsz"] == 128
    assert_same_objects(explanation, as_result(detections(model, same, picture, 0.0)), score=1e-4)


def test_a_checkpoints_own_processor(seed: int, tmp_path: Path) -> None:
    from transformers import AutoImageProcessor, AutoModelForObjectDetection

    picture = random_picture(seed, 120, 160)
    model, _ = random_detr("detr", seed)
    processor = image_processor("DetrImageProcessor")
    processor.image_mean = [0.1, 0.2, 0.3]
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = AutoModelForObjectDetection.from_pretrained(tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    assert list(processor.image_mean) == [0.1, 0.2, 0.3]
    explanation = Explainer(loaded, conf=0.0)(picture)
    assert_same_objects(explanation, as_result(detections(model, processor, picture, 0.0)), score=1e-4)


@pytest.mark.parametrize("kind", few(["detr", "deformable_detr", "rt_detr", "d_fine", "yolos"], "rt_detr"))
def test_caches_made_in_inference_mode(kind: str, seed: int) -> None:
    """The library caches anchors and position embeddings by size, for all models of a process."""
    picture = random_picture(seed, 120, 160)
    model, processor = random_detr(kind, seed)
    with torch.inference_mode():
        model(**processor(images=picture, return_tensors="pt"))
    explanation = Explainer(model, processor=processor, conf=0.0, max_det=3)(picture)
    assert len(explanation) == 3
    assert all(bool(m.any()) for m in explanation.maps)


def test_settings_of_the_model_do_not_matter(seed: int) -> None:
    picture = random_picture(seed, 120, 160)
    model, processor = random_detr("dab-detr", seed)
    expected = Explainer(model, processor=processor, conf=0.0, max_det=3)(picture)
    model.config.output_hidden_states = True
    model.config.return_dict = False
    model.train()
    before = fingerprint(model)
    explanation = Explainer(model, processor=processor, conf=0.0, max_det=3)(picture)
    assert fingerprint(model) == before
    assert torch.equal(explanation.boxes, expected.boxes)
    assert torch.equal(explanation.heatmaps, expected.heatmaps)


def test_other_architectures_are_refused_by_name(seed: int) -> None:
    model, _ = random_detr("yolos", seed)
    model.config.model_type = "mine"
    with pytest.raises(ModelError, match=r"YolosForObjectDetection: 'mine' is not one of the architectures detr"):
        Explainer(model)
