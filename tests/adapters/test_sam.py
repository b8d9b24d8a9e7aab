"""SAM and SAM 2 of transformers: prompts in, the library's own masks out, with exact gradients and a map for each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from finite_differences import in_double, slopes
from sam_models import KINDS, SIDE, random_sam, segmented
from support import few, few_rows, fingerprint, random_picture

from detcam import Explainer, InputError
from detcam.adapters.transformers.sam import SamAdapter
from detcam.engine import shadow
from detcam.questions.prompts import checked_prompts

pytest.importorskip("transformers")

PROMPTS: list[tuple[float, ...]] = [(40, 20), (10.5, 5, 60, 45), (70.25, 48)]


@pytest.mark.parametrize("kind", few(KINDS, "sam2"))
def test_each_prompt_gives_the_librarys_best_mask_and_a_map(kind: str, seed: int) -> None:
    picture = random_picture(seed, 50, 80)
    model, processor = random_sam(kind, seed)
    runs = []
    handle = model.vision_encoder.register_forward_hook(lambda *given: runs.append(1))  # type: ignore[union-attr,operator]
    before = fingerprint(model)
    level = Explainer(model, processor=processor, layers="level")(picture, prompts=PROMPTS)
    assert len(runs) == 1, "one run of the encoder for all prompts"
    evidence = Explainer(model, processor=processor, layers="evidence")(picture, prompts=PROMPTS)
    assert fingerprint(model) == before
    handle.remove()
    assert level.labels == ["point 40,20", "box 10.5,5,60,45", "point 70.25,48"]
    assert level.settings["prompts"] == [
        {"point": [40.0, 20.0]},
        {"box": [10.5, 5.0, 60.0, 45.0]},
        {"point": [70.25, 48.0]},
    ]
    for i, prompt in enumerate(PROMPTS):
        masks, ious, _ = segmented(model, processor, picture, prompt)
        best = int(ious.argmax())
        assert int(level.objects.index[i]) == best
        assert float(level.scores[i]) == pytest.approx(float(ious[best].clamp(0, 1)), abs=1e-5)
        assert level.masks[i].shape == (50, 80)
        assert int((level.masks[i] != masks[best]).sum()) <= 2  # where a logit is 0 but for rounding
        if masks[best].any():
            rows, columns = masks[best].nonzero().unbind(1)
            box = [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]
            torch.testing.assert_close(level.boxes[i], torch.tensor(box).float(), rtol=0, atol=1)
    for each in (level, evidence):
        assert all(bool(m.isfinite().all()) and bool(m.any()) for m in each.maps), each.notes
        assert each.heatmaps.shape == (3, 50, 80)
    assert not torch.equal(level.maps[0], level.maps[1])


@pytest.fixture
def double() -> Iterator[None]:
    with in_double():
        yield


@pytest.mark.parametrize(
    ("kind", "preset"), few_rows(product(KINDS, ["level", "evidence"]), ("sam", "level"), ("sam2", "evidence"))
)
def test_gradients_match_finite_differences(kind: str, preset: str, seed: int, double: None) -> None:
    picture = random_picture(seed, 50, 80)
    model, processor = random_sam(kind, seed)
    adapter: Any = SamAdapter(shadow(model.double()), model, None, processor)
    pixels, geometry = adapter.prepare(picture)
    regions = checked_prompts([(10.5, 5, 60, 45)], (50, 80), {}, adapter.prompt_kinds)
    for target, (slope, difference) in slopes(
        adapter, pixels, geometry, preset, lambda outputs: adapter.objects_for_prompts(outputs, regions, geometry),
        adapter.available,
    ).items():  # fmt: skip
        assert slope == pytest.approx(difference, rel=1e-3, abs=1e-6), target


@pytest.mark.parametrize("kind", KINDS)
def test_scalars_by_hand(kind: str, seed: int, double: None) -> None:
    """SAM's low-resolution masks lie over the padded input, of which the picture fills the upper 40 of 64 rows."""
    picture = random_picture(seed, 50, 80)
    model, processor = random_sam(kind, seed)
    # In float64, or rounding decides on which side of 0 a cell of a mask lies.
    adapter: Any = SamAdapter(shadow(model.double()), model, None, processor)
    pixels, geometry = adapter.prepare(picture)
    outputs = adapter.forward(pixels[None], 300)
    regions = checked_prompts(PROMPTS, (50, 80), {}, adapter.prompt_kinds)
    objects = adapter.objects_for_prompts(outputs, regions, geometry)
    scalars = {target: adapter.score(outputs, [objects], target).detach() for target in adapter.available}
    assert torch.equal(scalars["class"], scalars["mask"])
    rows = 40 / 64 if kind == "sam" else 1
    for i, prompt in enumerate(PROMPTS):
        raw = segmented(model, processor, picture, prompt)[2]
        best = int(raw.iou_scores[0, 0].argmax())
        logits = raw.pred_masks[0, 0, best]
        logits = logits[: int(logits.shape[0] * rows)]
        own = logits[logits > 0] if (logits > 0).any() else logits.max()
        torch.testing.assert_close(scalars["class"][i], own.mean(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(scalars["prob"][i], own.sigmoid().mean(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(scalars["iou"][i], raw.iou_scores[0, 0, best], rtol=1e-4, atol=1e-4)
        if kind == "sam2":
            there = raw.object_score_logits.flatten()[0]
            torch.testing.assert_close(scalars["objectness"][i], there, rtol=1e-4, atol=1e-4)
    assert ("objectness" in adapter.available) == (kind == "sam2")


@pytest.mark.parametrize("kind", few(KINDS, "sam2"))
def test_blocks_of_the_encoder_put_out_maps_in_the_usual_order(kind: str, seed: int) -> None:
    """Blocks put out channels last; captured, their channels are first, and each cell is where it was."""
    picture = random_picture(seed, 50, 80)
    model, processor = random_sam(kind, seed)
    name = "vision_encoder.layers.1" if kind == "sam" else "vision_encoder.backbone.blocks.3"
    expected: list[Any] = []
    block = model.get_submodule(name)
    handle = block.register_forward_hook(lambda module, args, output: expected.append(output))
    segmented(model, processor, picture, PROMPTS[0])
    handle.remove()
    explanation = Explainer(model, processor=processor, layers=[name], method="eigencam")(picture, prompts=PROMPTS[:1])
    acts = expected[0][0].flatten(0, 1)  # [h * w, C]
    assert explanation.maps[0].shape == expected[0].shape[1:3]
    strongest = torch.linalg.svd(acts - acts.mean(dim=0), full_matrices=False).Vh[0]
    both = torch.stack([explanation.maps[0].flatten(), acts @ strongest])
    assert abs(float(torch.corrcoef(both)[0, 1])) > 0.99  # the sign is the method's own
    explained = Explainer(model, processor=processor, layers=[name])(picture, prompts=PROMPTS[:1])
    assert bool(explained.maps[0].any())


@pytest.mark.parametrize("kind", few(KINDS, "sam2"))
def test_other_targets_sweeps_and_the_default_processor(kind: str, seed: int) -> None:
    from detcam.methods.perturbation import RISE

    picture = random_picture(seed, 50, 80)
    model, processor = random_sam(kind, seed)
    expected = Explainer(model, processor=processor, target="iou")(picture, prompts=PROMPTS)
    explanation = Explainer(model, target="iou")(picture, prompts=PROMPTS)
    assert type(explanation) is type(expected)
    assert torch.equal(explanation.masks, expected.masks)
    assert all(bool(m.any()) for m in explanation.maps)
    swept = Explainer(model, method=RISE(masks=8))(picture, prompts=PROMPTS[:2])
    assert all(bool(m.isfinite().all()) and bool(m.any()) for m in swept.maps)


def test_an_empty_mask_is_explained_at_its_strongest_cell(seed: int) -> None:
    picture = random_picture(seed, 50, 80)
    model, processor = random_sam("sam2", seed)
    adapter: Any = Explainer(model, processor=processor).adapter
    pixels, geometry = adapter.prepare(picture)
    outputs = adapter.forward(pixels[None], 300)
    regions = checked_prompts([(40, 20)], (50, 80), {}, adapter.prompt_kinds)
    objects = adapter.objects_for_prompts(outputs, regions, geometry)
    assert objects.mask_logits is not None
    assert objects.proposals is not None
    low = objects.mask_logits - objects.mask_logits.amax() - 1  # all below zero
    empty = replace(objects, mask_logits=low)
    scalar = adapter.score(outputs, [empty], "class")
    masks = adapter._decoded(outputs, 0, objects.proposals[0])[0]
    expected = masks[int(objects.index[0])][low[0] == low[0].amax()].mean()
    torch.testing.assert_close(scalar[0], expected)
    assert bool(scalar.isfinite().all())


def test_errors_are_one_clear_line(seed: int) -> None:
    picture = random_picture(seed, 50, 80)
    model, processor = random_sam("sam", seed)
    explainer = Explainer(model, processor=processor)
    with pytest.raises(InputError, match=r"SamModel detects nothing without prompts: give explainer\(image, prompts="):
        explainer(picture)
    with pytest.raises(InputError, match=r"prompts\[1\]: this model takes no mask: give a point or box"):
        explainer(picture, prompts=[(3, 3), np.ones((50, 80), bool)])
    with pytest.raises(InputError, match=r"prompts\[0\]: this model has no classes to name"):
        explainer(picture, prompts=[((3, 3), "cat")])
    with pytest.raises(
        InputError, match="truth: this transformers promptable segmentation prompted model does not classify"
    ):
        explainer(picture, truth=np.zeros((50, 80), int))
    with pytest.raises(InputError, match=f"imgsz: SamModel takes {SIDE} only, got 128"):
        Explainer(model, imgsz=128)
