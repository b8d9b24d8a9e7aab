"""Text-prompted detectors of transformers: the library's own detections, a sound map for each, exact gradients."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from detr_models import middle
from differences import in_double, slopes
from prompted_models import KINDS, TEXT, found, random_prompted
from support import assert_same_objects, fingerprint, random_picture

from detcam import Explainer, InputError
from detcam.adapters import adapter_for
from detcam.engine import shadow
from detcam.errors import MethodError
from detcam.layers import candidate_layers

pytest.importorskip("transformers")

OPTIONS: dict[str, dict[str, float]] = {"omdet-turbo": {"nms_threshold": 0.7}}


def as_result(result: dict[str, Any], classes: Any) -> Any:
    return SimpleNamespace(boxes=SimpleNamespace(xyxy=result["boxes"], conf=result["scores"], cls=classes))


def logits_of(outputs: Any) -> Any:
    return getattr(outputs, "logits", None) if hasattr(outputs, "logits") else outputs.decoder_class_logits


def boxes_of(outputs: Any) -> Any:
    return outputs.pred_boxes if hasattr(outputs, "pred_boxes") else outputs.decoder_coord_logits


def members(processor: Any, phrase: int) -> list[int]:
    """The places of a phrase's tokens in Grounding DINO's text, found from the text itself."""
    before = len(processor.tokenizer(". ".join(TEXT[:phrase]) + ".")["input_ids"]) - 1 if phrase else 0
    after = len(processor.tokenizer(". ".join(TEXT[: phrase + 1]) + ".")["input_ids"]) - 1
    return list(range(before, after + (phrase == len(TEXT) - 1)))


def phrase_logits(kind: str, processor: Any, outputs: Any) -> Any:
    """[Q, K]."""
    raw = logits_of(outputs)[0]
    if "grounding" not in kind:
        return raw
    return torch.stack([raw[:, members(processor, k)].amax(dim=1) for k in range(len(TEXT))], dim=1)


@pytest.mark.parametrize("kind", KINDS)
def test_the_librarys_objects_each_get_a_map(kind: str, seed: int) -> None:
    picture = random_picture(seed, 72, 96)
    model, processor = random_prompted(kind, seed)
    options = OPTIONS.get(kind, {})
    conf = middle(found(model, processor, picture, 0.0, **options)[0]["scores"])
    result, outputs, _ = found(model, processor, picture, conf, **options)
    before = fingerprint(model)
    level = Explainer(model, processor=processor, text=TEXT, conf=conf)(picture)
    evidence = Explainer(model, processor=processor, text=TEXT, conf=conf, layers="evidence")(picture)
    assert fingerprint(model) == before
    assert len(level) >= 2
    assert_same_objects(level, as_result(result, level.class_ids), score=1e-4)
    assert level.labels == [TEXT[c] for c in level.class_ids.tolist()]
    # The class is the library's, and the index is the query: its logit and its box are those of the object.
    if "grounding" not in kind:
        assert sorted(level.class_ids.tolist()) == sorted(result["labels"].tolist())
    logits = phrase_logits(kind, processor, outputs)[level.objects.index, level.class_ids]
    torch.testing.assert_close(logits.sigmoid(), level.scores, rtol=0, atol=1e-4)
    side = torch.tensor([96.0, 96.0 if kind == "owlv2" else 72.0])
    centres = boxes_of(outputs)[0, level.objects.index, :2] * side
    inside = (level.boxes > 0).all(dim=1) & (level.boxes < torch.tensor([96, 72, 96, 72])).all(dim=1)
    expected = (level.boxes[:, :2] + level.boxes[:, 2:]) / 2
    torch.testing.assert_close(centres[inside], expected[inside], rtol=0, atol=1e-2)
    for each in (level, evidence):
        assert all(bool(m.isfinite().all()) and bool(m.any()) for m in each.maps), each.notes
        assert each.heatmaps.shape == (len(each), 72, 96)
        assert bool(each.heatmaps.isfinite().all())


@pytest.fixture
def double() -> Iterator[None]:
    with in_double():
        yield


@pytest.mark.parametrize("preset", ["level", "evidence"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_match_finite_differences(kind: str, preset: str, seed: int, double: None) -> None:
    picture = random_picture(seed, 72, 96)
    model, processor = random_prompted(kind, seed)
    kinds = adapter_for(model)
    adapter: Any = kinds(shadow(kinds.unwrap(model.double())), model, None, processor)
    adapter.prompt(TEXT)
    pixels, geometry = adapter.prepare(picture)

    def choose(outputs: Any) -> Any:
        return adapter.detect(outputs, [geometry], 0.0, 0.7, 300)[0].select(torch.tensor([0]))

    for target, (slope, difference) in slopes(
        adapter, pixels, geometry, preset, choose, ("class", "prob", "margin", "left", "bottom")
    ).items():
        assert slope == pytest.approx(difference, rel=1e-3, abs=1e-5), target


@pytest.mark.parametrize("kind", KINDS)
def test_scalars_by_hand(kind: str, seed: int) -> None:
    picture = random_picture(seed, 72, 96)
    model, processor = random_prompted(kind, seed)
    _, raw, _ = found(model, processor, picture, 0.0)
    adapter: Any = Explainer(model, processor=processor, text=TEXT).adapter
    pixels, geometry = adapter.prepare(picture)
    outputs = adapter.forward(torch.stack([pixels * 0, pixels]), 300)
    objects = adapter.detect(outputs, [geometry, geometry], 0.0, 0.7, 300)
    objects[0] = objects[0].select(torch.arange(0))
    logits = phrase_logits(kind, processor, raw)
    height, width = geometry.network
    scalars = {target: adapter.score(outputs, objects, target) for target in ("class", "prob", "margin", "right")}
    for i, (query, label) in enumerate(zip(objects[1].index.tolist(), objects[1].class_ids.tolist(), strict=True)):
        own = logits[query]
        cx, _, w, _ = (boxes_of(raw)[0, query] * torch.tensor([width, height, width, height])).tolist()
        expected = {
            "class": own[label],
            "prob": own[label].sigmoid(),
            "margin": own[label] - torch.cat([own[:label], own[label + 1 :]]).max(),
            "right": torch.tensor(cx + w / 2),
        }
        for target, value in expected.items():
            torch.testing.assert_close(scalars[target][i].detach(), value, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", ["grounding-dino", "owlv2", "omdet-turbo"])
def test_a_miss_can_be_asked_for_by_its_phrase(kind: str, seed: int) -> None:
    picture = random_picture(seed, 72, 96)
    model, processor = random_prompted(kind, seed)
    everything = Explainer(model, processor=processor, text=TEXT, conf=0.0)(picture)
    explainer = Explainer(model, processor=processor, text=TEXT, conf=0.999999)
    large = (everything.boxes[:, 2:] > everything.boxes[:, :2] + 1).all(dim=1)
    seen = (everything.boxes[:, 2:] > 1).all(dim=1) & (everything.boxes[:, :2] < torch.tensor([95, 71])).all(dim=1)
    i = int((large & seen).nonzero()[0])
    explanation = explainer(picture, ask=[(everything.boxes[i].tolist(), everything.labels[i])])
    (answer,) = explanation.asked
    assert answer.label == everything.labels[i]
    assert answer.reason == "confidence"
    assert answer.iou > 0.3
    assert bool(explanation.heatmaps.isfinite().all())


@pytest.mark.parametrize("kind", KINDS)
def test_a_list_of_pictures_and_a_sweep(kind: str, seed: int) -> None:
    pictures = [random_picture(seed + i, 72, 96) for i in range(2)]
    model, processor = random_prompted(kind, seed)
    options = {"processor": processor, "text": TEXT, "conf": 0.0, "max_det": 2}
    explainer = Explainer(model, **options)
    for together, picture in zip(explainer(pictures), pictures, strict=True):
        alone = explainer(picture)
        torch.testing.assert_close(together.scores, alone.scores, rtol=0, atol=1e-4)
        assert together.labels == alone.labels
    from detcam.methods.perturbation import RISE

    swept = Explainer(model, method=RISE(masks=8), **options)(pictures[0])
    assert all(bool(m.isfinite().all()) for m in swept.maps)


@pytest.mark.parametrize("kind", KINDS)
def test_layers(kind: str, seed: int) -> None:
    picture = random_picture(seed, 72, 96)
    model, processor = random_prompted(kind, seed)
    explainer = Explainer(model, processor=processor, text=TEXT, conf=0.0, max_det=3)
    rows = candidate_layers(explainer, picture)
    for preset in ("level", "evidence"):
        reached = [row.gradient for row in rows if preset in row.presets]
        assert reached
        assert max(share for share in reached if share is not None) == 1
    name = next(row.name for row in rows if not row.presets and row.gradient)
    chosen = Explainer(model, processor=processor, text=TEXT, conf=0.0, max_det=3, layers=[name])(picture)
    assert any(bool(m.any()) for m in chosen.maps)


def test_errors_are_one_clear_line(seed: int) -> None:
    model, processor = random_prompted("grounding-dino", seed)
    with pytest.raises(InputError, match=r"text: expected the phrases to look for, e.g. text=\['a cat'.*got None"):
        Explainer(model, processor=processor)
    for bad in ("a cat", [], ["a cat", ""], [3]):
        with pytest.raises(InputError, match="text: expected the phrases"):
            Explainer(model, processor=processor, text=bad)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"'a cat\. a dog' holds a full stop"):
        Explainer(model, processor=processor, text=["a cat. a dog"])
    with pytest.raises(InputError, match="42 tokens, and the model reads 32: give fewer phrases"):
        Explainer(model, processor=processor, text=["cat"] * 20)
    with pytest.raises(InputError, match="needs its processor with the tokenizer"):
        Explainer(model, text=TEXT)
    owl, processor = random_prompted("owlvit", seed)
    with pytest.raises(InputError, match=r"imgsz: this model takes \{'height': 96, 'width': 96\} only, got 128"):
        Explainer(owl, processor=processor, text=TEXT, imgsz=128)
    with pytest.raises(InputError, match="model takes no text: leave text out"):
        Explainer(pytest.importorskip("torchvision").models.resnet18(weights=None), text=TEXT)


def test_methods_that_read_attention(seed: int) -> None:
    """Grounding DINO's queries sample the picture's maps; OmDet-Turbo's attend to words among themselves."""
    picture = random_picture(seed, 72, 96)
    model, processor = random_prompted("grounding-dino", seed)
    options: dict[str, Any] = {"processor": processor, "text": TEXT, "conf": 0.0, "max_det": 2}
    explanation = Explainer(model, method="samplingpoints", **options)(picture)
    assert all(bool(m.isfinite().all()) and bool(m.any()) for m in explanation.maps)
    for kind, reason in (
        ("omdet-turbo", "mix queries with the words of their task"),
        ("owlvit", "has no attention of"),
    ):
        model, options["processor"] = random_prompted(kind, seed)
        with pytest.raises(MethodError, match=reason):
            Explainer(model, method="relevance", **options)(picture)


def test_one_phrase_has_no_margin(seed: int) -> None:
    model, processor = random_prompted("owlvit", seed)
    assert "margin" not in Explainer(model, processor=processor, text=["zebra"]).adapter.available
    picture = random_picture(seed, 72, 96)
    explanation = Explainer(model, processor=processor, text=["zebra"], conf=0.0, max_det=1)(picture)
    assert explanation.labels == ["zebra"]


def test_words_of_a_phrase(seed: int) -> None:
    """Grounding DINO has a logit for every token: a word's score is that of its strongest piece."""
    picture = random_picture(seed, 72, 96)
    model, processor = random_prompted("grounding-dino", seed)
    explanation = Explainer(model, processor=processor, text=TEXT, conf=0.0, max_det=6)(picture)
    _, raw, inputs = found(model, processor, picture, 0.0)
    tokens = processor.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0].tolist())
    assert tokens[1:4] == ["a", "red", "cat"]
    assert tokens[-4:] == ["ze", "##bra", ".", "[SEP]"]
    assert explanation.words is not None
    listed = explanation.to_dict()["objects"]
    for i, words in enumerate(explanation.words):
        phrase = explanation.labels[i]
        assert [word for word, _ in words] == phrase.split()
        logits = raw.logits[0, explanation.objects.index[i]]
        for word, score in words:
            places = [tokens.index("ze"), tokens.index("##bra")] if word == "zebra" else [tokens.index(word)]
            assert score == pytest.approx(float(logits[places].sigmoid().max()), abs=1e-4)
            assert score <= float(explanation.scores[i]) + 1e-4
        assert listed[i]["words"] == dict(words)
    assert explanation.objects.select(torch.tensor([1])).words == explanation.words[1:2]


def test_caches_of_text_embeddings_stay_the_users(seed: int) -> None:
    """OmDet-Turbo keeps embeddings of texts, here with a graph; the user's cache is neither read nor written."""
    picture = random_picture(seed, 72, 96)
    model, processor = random_prompted("omdet-turbo", seed)
    expected = Explainer(model, processor=processor, text=TEXT, conf=0.0, max_det=2)(picture)
    model(**processor(images=picture, text=[TEXT], return_tensors="pt"))  # with gradients
    cached = dict(model.language_cache_class.cache)  # type: ignore[union-attr,arg-type]
    assert any(tensor.requires_grad for tensor in cached.values())
    explanation = Explainer(model, processor=processor, text=TEXT, conf=0.0, max_det=2)(picture)
    assert torch.equal(explanation.scores, expected.scores)
    assert dict(model.language_cache_class.cache) == cached  # type: ignore[union-attr,arg-type]
    with torch.inference_mode():
        model(**processor(images=picture, text=[TEXT], return_tensors="pt"))
    again = Explainer(model, processor=processor, text=TEXT, conf=0.0, max_det=2)(picture)
    np.testing.assert_array_equal(again.heatmaps, expected.heatmaps)


def test_what_owlv2_pads_is_no_part_of_the_picture(seed: int) -> None:
    picture = random_picture(seed, 48, 96)
    model, processor = random_prompted("owlv2", seed)
    explanation = Explainer(model, processor=processor, text=TEXT, conf=0.0, max_det=3)(picture)
    geometry = explanation.geometry
    assert (geometry.resized, geometry.network) == ((48, 96), (96, 96))
    shares = found(model, processor, picture, 0.0)[1].pred_boxes[0, explanation.objects.index]
    torch.testing.assert_close(
        (explanation.objects.network_boxes[:, :2] + explanation.objects.network_boxes[:, 2:]) / 2,
        shares[:, :2] * 96,
        rtol=0,
        atol=1e-2,
    )
