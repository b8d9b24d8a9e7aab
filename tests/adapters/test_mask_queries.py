"""Segmenters with mask queries: the processor's own segments, a sound map for each, exact gradients."""

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from detr_models import CLASSES, QUERIES
from finite_differences import slopes
from mask_query_models import (
    ALONE,
    KINDS,
    SIDE,
    inputs_of,
    least_score,
    processor_of,
    random_segmenter,
    raw_of,
    segments_of,
)
from support import few, few_rows, fingerprint, random_picture
from torch import Tensor
from torch.nn.functional import interpolate

from detcam import Explainer, InputError
from detcam.adapters import PanopticAdapter
from detcam.adapters.transformers.mask_processing import PostProcessing
from detcam.adapters.transformers.mask_queries import MaskQueryAdapter
from detcam.engine import shadow
from detcam.errors import ModelError, TargetError

pytest.importorskip("transformers")

BOXED = ("detr", "conditional_detr")
SIZE = (120, 160)


def segments_by_hand(processor: Any, segments: str, logits: Tensor, masks: Tensor, conf: float) -> dict[str, Any]:
    outputs = SimpleNamespace(
        class_queries_logits=logits[None], masks_queries_logits=masks[None], logits=logits[None], pred_masks=masks[None]
    )
    call = getattr(processor, f"post_process_{segments}_segmentation")
    result: dict[str, Any] = call(outputs, threshold=conf, target_sizes=[SIZE])[0]
    return result


def painted(masks: Tensor, result: dict[str, Any]) -> Tensor:
    """The masks laid over one another in the order and with the numbers of the library's map."""
    infos = result["segments_info"]
    whole = torch.full_like(result["segmentation"], infos[0]["id"] - 1)
    for mask, info in zip(masks, infos, strict=True):
        whole[mask] = info["id"]
    return whole


def laid_out(kind: str, masks: Tensor) -> Tensor:
    """Mask logits at the size at which the library decides on them."""
    if kind == "eomt":  # which pads pictures to a square
        square = interpolate(masks[None], (SIDE, SIDE), mode="bilinear")
        return interpolate(square[..., :96, :128], SIZE, mode="bilinear")[0]
    return interpolate(masks[None], (384, 384), mode="bilinear")[0] if kind == "mask2former" else masks


@pytest.mark.parametrize(
    ("kind", "segments"),
    few_rows(
        product(
            ["maskformer", "mask2former", "oneformer", "eomt", "detr", "conditional_detr"], ["instance", "panoptic"]
        ),
        *(("mask2former", "instance"), ("eomt", "instance"), ("oneformer", "panoptic")),
    ),
)
def test_segments_are_the_librarys_and_know_their_query(kind: str, segments: str, seed: int, tmp_path: Path) -> None:
    processor = processor_of(kind, tmp_path)
    post_process = PostProcessing(processor, segments, label_ids_to_fuse=set())
    assert post_process.independent == (segments == "instance" and kind in ALONE)
    coarse = np.random.default_rng(seed).normal(-1, 4, (16, 9, 4, 4))
    masks = torch.tensor(np.array([[cv2.resize(m, (16, 16)) for m in draw] for draw in coarse]), dtype=torch.float32)
    several = 0
    for draw, (classes, conf) in zip(masks, 4 * [(5, 0.0), (5, 0.2), (70, 0.3), (5, 0.95)], strict=True):
        logits = torch.randn(9, classes + 1) * 4
        result = segments_by_hand(processor, segments, logits, draw, conf)
        found = post_process(logits, draw, SIZE, conf)
        infos = result["segments_info"]
        several += len(infos) > 1
        assert found.classes.tolist() == [info["label_id"] for info in infos]
        torch.testing.assert_close(found.scores.tolist(), [info["score"] for info in infos], rtol=0, atol=2e-6)
        assert found.masks.shape == (len(infos), *SIZE)
        if not infos:
            continue
        differ = int((painted(found.masks, result) != result["segmentation"]).sum())
        assert differ <= (0 if post_process.independent else 5), "a near tie of two queries at a pixel"
        own = logits.softmax(1)[found.queries, found.classes]
        full = laid_out(kind, draw)[found.queries]
        if post_process.independent:  # the query's own probability, and how sure its own mask is
            sure = (full.sigmoid() * (full > 0)).sum(dim=(1, 2)) / ((full > 0).sum(dim=(1, 2)) + 1e-6)
            torch.testing.assert_close(found.scores, own * sure, rtol=0, atol=2e-6)
        else:  # the query's own probability; where its own mask, so weighted, beats those of all others
            torch.testing.assert_close(found.scores, own, rtol=0, atol=2e-6)
            weights = full if (kind, segments) == ("oneformer", "instance") else full.sigmoid()
            weights = interpolate(weights[None], SIZE, mode="bilinear")[0] * found.scores[:, None, None]
            for mask, mine in zip(found.masks, weights, strict=True):
                assert float((weights - mine)[:, mask].max()) <= 1e-5
    assert several


@pytest.mark.parametrize("kind", few(KINDS, "eomt"))
def test_every_segment_gets_a_map(kind: str, seed: int, tmp_path: Path) -> None:
    picture = random_picture(seed, *SIZE)
    model, processor = random_segmenter(kind, seed, tmp_path)
    conf = least_score(kind, model, {"processor": processor}, picture)
    result = segments_of(model, processor, picture, conf)
    logits, masks = raw_of(model, processor, picture)
    before = fingerprint(model)
    explanations = [
        Explainer(model, processor=processor, conf=conf, layers=layers, target=target)(picture)
        for layers in ("level", "evidence")
        for target in ("class", "mask")
    ]
    assert fingerprint(model) == before

    first = explanations[0]
    assert [i["label_id"] for i in result["segments_info"]] == first.class_ids.tolist()
    scores = torch.tensor([i["score"] for i in result["segments_info"]])
    torch.testing.assert_close(first.scores, scores, rtol=0, atol=1e-4)
    assert first.labels == [model.config.id2label[c] for c in first.class_ids.tolist()]
    assert first.masks is not None
    assert first.masks.shape == (len(first), *SIZE)
    if len(first):
        near = (painted(first.masks, result) == result["segmentation"]).float().mean()
        assert float(near) > 0.999, "convolutions in another memory order round otherwise"
    # The index is the query: its mask logits are those of the object, and its class.
    index = first.objects.index
    assert first.objects.mask_logits is not None
    torch.testing.assert_close(first.objects.mask_logits, masks[index], rtol=1e-3, atol=1e-3)
    own = logits.softmax(1)[index, first.class_ids]
    assert bool((own >= first.scores - 1e-4).all())
    if kind not in BOXED:
        for box, mask in zip(first.boxes.tolist(), first.masks, strict=True):
            rows, columns = mask.nonzero().T
            edges = [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]
            assert box == edges
    for explanation in explanations:
        assert len(explanation) == len(first) >= (3 if kind in ALONE else 0)  # rivals may leave none
        assert all(bool(m.isfinite().all()) for m in explanation.maps)
        told = ["no gradient" in (note or "") for note in explanation.notes]  # EoMT's own mask may hide all patches
        assert all(bool(m.any()) or why for m, why in zip(explanation.maps, told, strict=True)), explanation.notes
        assert kind.startswith("eomt") or not any(told)
        assert explanation.heatmaps.shape == (len(first), *SIZE)
    if kind in ALONE:
        different = [i for i in range(len(first)) if index[i] != index[0]]
        other = first.maps[different[0]]
        assert not torch.equal(first.maps[0], other) or not other.any()


@pytest.mark.parametrize("kind", few(["maskformer", "mask2former", "oneformer", "eomt"], "oneformer"))
def test_panoptic_segments(kind: str, seed: int, tmp_path: Path) -> None:
    picture = random_picture(seed, *SIZE)
    model, processor = random_segmenter(kind, seed, tmp_path)
    conf = least_score(kind, model, {"processor": processor}, picture, "panoptic")
    result = segments_of(model, processor, picture, conf, "panoptic")
    found = Explainer(model, processor=processor, conf=conf, adapter=PanopticAdapter)(picture)
    assert [i["label_id"] for i in result["segments_info"]] == found.class_ids.tolist()
    assert found.masks is not None
    if len(found):
        near = (painted(found.masks, result) == result["segmentation"]).float().mean()
        assert float(near) > 0.999
    model.config._name_or_path = "someone/model-coco-panoptic"
    assert Explainer(model, processor=processor, conf=conf)(picture).labels == found.labels


@pytest.fixture
def double() -> Iterator[None]:
    """Models that are in float64 throughout: some make tensors of the default type."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    ("kind", "preset"), few_rows(product(KINDS, ["level", "evidence"]), ("maskformer", "evidence"), ("detr", "level"))
)
def test_gradients_match_finite_differences(kind: str, preset: str, seed: int, tmp_path: Path, double: None) -> None:
    picture = random_picture(seed, *SIZE)
    model, processor = random_segmenter(kind, seed, tmp_path)
    adapter = MaskQueryAdapter(shadow(model.double()), model, None, processor)
    pixels, geometry = adapter.prepare(picture)
    # The query with the largest mask: an empty one may hide all patches from its query, whose class then has no gradient.
    areas = (raw_of(model, processor, picture)[1] > 0).sum(dim=(1, 2))
    query, label = areas.argmax()[None], torch.randint(CLASSES - 1, (1,))

    def choose(outputs: Any) -> Any:
        return adapter.objects_at(outputs, query, label, geometry)

    targets = ("class", "prob", "margin", "mask", *(("left", "bottom") if kind in BOXED else ()))
    for target, (slope, difference) in slopes(adapter, pixels, geometry, preset, choose, targets).items():
        assert slope == pytest.approx(difference, rel=1e-3, abs=1e-5), target


@pytest.mark.parametrize("kind", few(["maskformer", "oneformer", "eomt", "detr"], "eomt", "detr"))
def test_scalars_by_hand(kind: str, seed: int, tmp_path: Path, double: None) -> None:
    picture = random_picture(seed, *SIZE)
    model, processor = random_segmenter(kind, seed, tmp_path)
    # In float64, or rounding decides on which side of 0 a cell of a mask lies.
    adapter = MaskQueryAdapter(shadow(model.double()), model, None, processor)
    pixels, geometry = adapter.prepare(picture)
    outputs = adapter.forward(pixels[None], 300)
    queries, labels = torch.arange(QUERIES), torch.randint(CLASSES, (QUERIES,))
    objects = [adapter.objects_at(outputs, queries, labels, geometry)]
    logits, masks = raw_of(model, processor, picture)
    inside = masks[:, :12, :] if kind == "eomt" else masks  # it sees 96 x 128 pixels on a square
    for query, label in enumerate(labels.tolist()):
        own, region = logits[query], inside[query]
        expected = {
            "class": own[label],
            "prob": own.softmax(0)[label],
            "margin": own[label] - torch.cat([own[:label], own[label + 1 : -1]]).max(),  # without "no object"
            "mask": region[region > 0].mean() if bool((region > 0).any()) else region.max(),
        }
        for target, value in expected.items():
            scalars = adapter.score(outputs, objects, target)
            torch.testing.assert_close(scalars[query], value, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", few(["maskformer", "mask2former", "eomt", "detr", "conditional_detr"], "mask2former"))
def test_the_architectures_own_processor_is_the_default(kind: str, seed: int, tmp_path: Path) -> None:
    picture = random_picture(seed, 60, 80)
    model, processor = random_segmenter(kind, seed, tmp_path)
    options: dict[str, Any] = {} if kind == "eomt" else {"imgsz": 128}
    explainer = Explainer(model, **options)
    adapter: Any = explainer.adapter
    assert type(adapter.processor) is type(processor)
    pixels = inputs_of(processor, picture, "instance")["pixel_values"][0]
    torch.testing.assert_close(adapter.prepare(picture)[0][:3], pixels)
    explainer(picture)


def test_settings_of_the_model_do_not_matter(seed: int, tmp_path: Path) -> None:
    picture = random_picture(seed, *SIZE)
    model, processor = random_segmenter("mask2former", seed, tmp_path)
    expected = Explainer(model, processor=processor, conf=0.02, max_det=3)(picture)
    model.config.output_hidden_states = True
    model.config.return_dict = False
    model.train()
    before = fingerprint(model)
    explanation = Explainer(model, processor=processor, conf=0.02, max_det=3)(picture)
    assert fingerprint(model) == before
    assert torch.equal(explanation.scores, expected.scores)
    assert torch.equal(explanation.heatmaps, expected.heatmaps)


def test_what_cannot_be_done_is_said(seed: int, tmp_path: Path) -> None:
    one, _ = random_segmenter("oneformer", seed, tmp_path)
    with pytest.raises(ModelError, match=r"OneFormer reads its task from text.*give processor=OneFormerProcessor"):
        Explainer(one)
    eomt, _ = random_segmenter("eomt", seed, tmp_path)
    with pytest.raises(InputError, match="imgsz: this model takes images of 128 x 128 pixels only, got 256"):
        Explainer(eomt, imgsz=256)
    with pytest.raises(TargetError, match="target 'left' does not exist for this transformers instance segmentation"):
        Explainer(eomt, target="left")
