"""Text-prompted detectors of transformers: the library's own detections, a sound map for each, exact gradients."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from finite_differences import in_double, slopes
from support import few, few_rows, random_picture
from text_prompted_models import KINDS, TEXT, found, random_prompted

from detcam import Explainer, InputError
from detcam.adapters import adapter_for
from detcam.engine import shadow
from detcam.errors import MethodError
from detcam.methods.perturbation import RISE

pytest.importorskip("transformers")


def boxes_of(outputs: Any) -> Any:
    return outputs.pred_boxes if hasattr(outputs, "pred_boxes") else outputs.decoder_coord_logits


def members(processor: Any, phrase: int) -> list[int]:
    """The places of a phrase's tokens in Grounding DINO's text, found from the text itself."""
    before = len(processor.tokenizer(". ".join(TEXT[:phrase]) + ".")["input_ids"]) - 1 if phrase else 0
    after = len(processor.tokenizer(". ".join(TEXT[: phrase + 1]) + ".")["input_ids"]) - 1
    return list(range(before, after + (phrase == len(TEXT) - 1)))


def phrase_logits(kind: str, processor: Any, outputs: Any) -> Any:
    """[Q, K]."""
    raw = (outputs.logits if hasattr(outputs, "logits") else outputs.decoder_class_logits)[0]
    if "grounding" not in kind:
        return raw
    return torch.stack([raw[:, members(processor, k)].amax(dim=1) for k in range(len(TEXT))], dim=1)


@pytest.fixture
def double() -> Iterator[None]:
    with in_double():
        yield


@pytest.mark.parametrize(
    ("kind", "preset"),
    few_rows(
        product(KINDS, ["level", "evidence"]),
        ("grounding-dino", "evidence"),
        ("owlv2", "level"),
        ("omdet-turbo", "level"),
    ),
)
def test_gradients_match_finite_differences(kind: str, preset: str, seed: int, double: None) -> None:
    picture = random_picture(seed, 72, 96)
    model, processor = random_prompted(kind, seed)
    kinds = adapter_for(model)
    adapter: Any = kinds(shadow(kinds.unwrap(model.double())), model, None, processor)
    adapter.set_text(TEXT)
    pixels, geometry = adapter.prepare(picture)

    def choose(outputs: Any) -> Any:
        return adapter.detect(outputs, [geometry], 0.0, 0.7, 300)[0].select(torch.tensor([0]))

    for target, (slope, difference) in slopes(
        adapter, pixels, geometry, preset, choose, ("class", "prob", "margin", "left", "bottom")
    ).items():
        assert slope == pytest.approx(difference, rel=1e-3, abs=1e-5), target


@pytest.mark.parametrize("kind", few(KINDS, "grounding-dino", "owlvit", "omdet-turbo"))
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
        torch.testing.assert_close(objects[1].scores[i], expected["prob"], rtol=0, atol=1e-4)
        assert objects[1].labels[i] == TEXT[label]


@pytest.mark.parametrize("kind", few(KINDS, "omdet-turbo"))
def test_a_sweep(kind: str, seed: int) -> None:
    model, processor = random_prompted(kind, seed)
    options = {"processor": processor, "text": TEXT, "conf": 0.0, "max_det": 2}
    explanation = Explainer(model, method=RISE(masks=8), **options)(random_picture(seed, 72, 96))
    assert all(bool(m.isfinite().all()) for m in explanation.maps)


def test_errors_are_one_clear_line(seed: int) -> None:
    model, processor = random_prompted("grounding-dino", seed)
    with pytest.raises(InputError, match=r"text: expected the phrases to look for, e.g. text=\['a cat'.*got None"):
        Explainer(model, processor=processor)
    for bad in ("a cat", [], ["a cat", ""], [3]):
        with pytest.raises(InputError, match="text: expected the phrases"):
            Explainer(model, processor=processor, text=bad)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"'a cat\. a dog' has a full stop"):
        Explainer(model, processor=processor, text=["a cat. a dog"])
    with pytest.raises(InputError, match="42 tokens, and the model reads at most 32: give fewer phrases"):
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
        ("owlvit", "has no decoder whose queries attend to the image"),
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


def test_queries_are_found_in_a_batch_of_any_size(seed: int) -> None:
    """In a batch the last bit of OmDet-Turbo's scores depends on where they lie in memory."""
    model, processor = random_prompted("omdet-turbo", seed)
    adapter: Any = Explainer(model, processor=processor, text=TEXT).adapter
    pixels, geometry = adapter.prepare(random_picture(seed, 72, 96))
    one = adapter.forward(pixels[None], 300)
    for size in range(1, 33):
        raw = torch.randn(size, *one.raw.shape[1:])
        some = replace(one, raw=raw, logits=raw, boxes=one.boxes.expand(size, -1, -1), sizes=one.sizes.expand(size, -1))
        for image, objects in enumerate(adapter.detect(some, [geometry] * size, 0.0, 1.0, 300)):
            torch.testing.assert_close(raw[image, objects.index, objects.class_ids].sigmoid(), objects.scores)


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
