"""Semantic segmenters: the library's own label map, region by region, and a sound map for each region."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from finite_differences import slopes
from semantic_models import (
    KINDS,
    classifiers,
    explain,
    fresh_segformer,
    network_input,
    options,
    picture_for,
    processor_for,
    random_segmenter,
    returned,
)
from support import few, few_rows, fingerprint, random_picture
from torch import Tensor

from detcam import Explainer
from detcam.adapters import adapter_for
from detcam.engine import Capture, shadow
from detcam.methods import METHODS

pytest.importorskip("transformers")


@pytest.mark.parametrize(
    "kind",
    few(
        [kind for kind in KINDS if kind not in ("smp-binary", "smp-deeplabv3plus", "dpt-hybrid")],
        "smp-unet",
    ),
)
def test_windows_hold_what_a_plain_backward_gives(kind: str, seed: int) -> None:
    picture = picture_for(kind, seed)
    model = random_segmenter(kind, seed).double()
    for preset, target in (("level", "prob"), ("evidence", "class")):
        settings: dict[str, Any] = {"layers": preset, "target": target, "segments": "component", "max_det": 10}
        explainer = Explainer(model, conf=0.0, **settings, **options(kind))
        quick = explainer(picture)
        settings["target"] = partial(explainer.adapter.score, target=target)  # a callable has no windows
        plain = Explainer(model, conf=0.0, **settings, **options(kind))(picture)
        for one, other in zip(quick.maps, plain.maps, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * float(other.abs().max()))


def test_scores_of_bfloat16_logits(seed: int) -> None:
    """A segment's shares of the cells are float32 whatever the logits are."""
    adapter: Any = Explainer(random_segmenter("segformer", seed), **options("segformer")).adapter
    pixels, geometry = adapter.prepare(picture_for("segformer", seed))
    outputs = adapter.forward(pixels[None], 300)
    objects = adapter.detect(outputs, [geometry], 0.0, 0.7, 300)
    rounded = replace(outputs, logits=outputs.logits.bfloat16())
    for target in ("class", "prob"):
        exact, near = (adapter.score(raw, objects, target) for raw in (outputs, rounded))
        assert near.dtype == torch.bfloat16
        torch.testing.assert_close(near.float(), exact, rtol=0.01, atol=0.01)


@pytest.mark.parametrize(
    "kind",
    few(
        ["segformer", "dpt", "mobilevit", "deeplabv3", "lraspp", "smp-unet", "smp-binary"],
        "segformer",
        "mobilevit",
        "smp-binary",
    ),
)
def test_scalars_by_hand(kind: str, seed: int) -> None:
    picture = picture_for(kind, seed)
    model = random_segmenter(kind, seed)
    explainer = Explainer(model, conf=0.0, **options(kind))
    adapter: Any = explainer.adapter
    pixels, geometry = adapter.prepare(picture)
    torch.testing.assert_close(pixels[None], network_input(kind, picture), rtol=0, atol=1e-5)
    outputs = adapter.forward(pixels[None], 300)
    objects = adapter.detect(outputs, [geometry], 0.0, 0.7, 300)

    seen: list[Tensor] = []
    for conv in classifiers(model, kind):
        conv.register_forward_hook(lambda module, args, output: seen.append(output[0]))
    returned(kind, model, picture)
    if kind == "lraspp":
        seen[:] = [seen[0] + seen[1]]
    logits = torch.cat([torch.zeros_like(seen[0]), seen[0]]) if kind == "smp-binary" else seen[0]
    # Each cell counts by the share of its pixels in the mask; what the network saw beside the picture is in no mask.
    canvas = torch.zeros(len(objects[0]), *pixels.shape[1:])
    masks = objects[0].masks[:, :, 24:104] if kind == "mobilevit" else objects[0].masks
    if kind == "dpt":  # 128 columns became 96: a pixel of 128 covers three of 384, a column of 48 eight of them
        masks = masks.repeat_interleave(3, dim=2)
        canvas = torch.zeros(len(masks), 96, 384)
    canvas[:, : masks.shape[1], : masks.shape[2]] = masks
    cells = logits.shape[1:]
    blocks = (canvas.shape[1] // cells[0], canvas.shape[2] // cells[1])
    share = canvas.unflatten(2, (cells[1], blocks[1])).unflatten(1, (cells[0], blocks[0])).mean(dim=(2, 4))
    scalars = {target: adapter.score(outputs, objects, target) for target in adapter.available}
    for i, c in enumerate(objects[0].class_ids.tolist()):
        rivals = logits.clone()
        rivals[c] = -torch.inf
        if len(logits) > 2 and adapter.names[0] == "background":
            rivals[0] = -torch.inf
        maps = {"class": logits[c], "prob": logits.softmax(0)[c], "margin": logits[c] - rivals.amax(0)}
        assert set(maps) == set(scalars)
        for target, values in maps.items():
            expected = float((values * share[i]).sum() / share[i].sum())
            assert float(scalars[target][i]) == pytest.approx(expected, rel=1e-4, abs=1e-5), target


@pytest.mark.parametrize(
    ("kind", "preset"),
    few_rows(
        product(KINDS, ["level", "evidence"]), ("fcn", "level"), ("segformer", "evidence"), ("smp-unet", "evidence")
    ),
)
def test_gradients_match_finite_differences(kind: str, preset: str, seed: int) -> None:
    picture = picture_for(kind, seed)
    view = shadow(random_segmenter(kind, seed).double())
    adapter: Any = adapter_for(view)(view, view, **{"imgsz": None, **options(kind)})
    pixels, geometry = adapter.prepare(picture)
    for number in (0, 1):

        def choose(outputs: Any, number: int = number) -> Any:
            return adapter.detect(outputs, [geometry], 0.0, 0.7, 2)[0].select(torch.tensor([number]))

        if number < len(adapter.detect(adapter.forward(pixels[None], 300), [geometry], 0.0, 0.7, 2)[0]):
            compared = slopes(
                adapter, pixels, geometry, preset, choose, adapter.available, step=1e-9, complete=adapter.available
            )
            for target, (slope, difference) in compared.items():
                assert slope == pytest.approx(difference, rel=1e-3, abs=1e-5), target


@pytest.mark.parametrize("kind", few(["segformer", "upernet-swin", "beit", "dpt", "mobilevit"], "segformer", "dpt"))
def test_settings_and_earlier_calls_of_the_model_do_not_matter(kind: str, seed: int) -> None:
    picture = picture_for(kind, seed)
    model: Any = random_segmenter(kind, seed)
    expected = explain(kind, model, picture, layers="evidence")
    with torch.inference_mode():  # the library leaves its own hooks on the model
        model(network_input(kind, picture), output_hidden_states=True)
    model.config.output_hidden_states = True
    model.config.return_dict = False
    model.train()
    before = fingerprint(model)
    explainer = Explainer(model, conf=0.0, layers="evidence", **options(kind))
    for _ in range(2):
        explanation = explainer(picture)
        assert torch.equal(explanation.masks, expected.masks)
        for one, other in zip(explanation.maps, expected.maps, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-4 * float(other.abs().max()))
    assert fingerprint(model) == before
    assert (model.config.return_dict, model.config.output_hidden_states) == (False, True)


@pytest.mark.parametrize(
    ("kind", "layer", "shape"),
    few_rows(
        [
            ("segformer", "segformer.stages.1", (12, 16)),
            ("segformer", "segformer.stages.2.blocks.0", (6, 8)),
            ("segformer", "decode_head.linear_projections.3", (3, 4)),
            ("beit", "beit.layers.1", (6, 8)),
            ("dpt", "dpt.encoder.layer.2", (6, 6)),
            ("deeplabv3", "classifier.0.convs.1", (6, 8)),
            ("upernet-convnext", "decode_head.fpn_convs.0", (24, 32)),
            ("smp-unet", "decoder.blocks.0", (6, 8)),
        ],
        ("segformer", "segformer.stages.2.blocks.0", (6, 8)),
        ("beit", "beit.layers.1", (6, 8)),
    ),
)
def test_layers_by_name(kind: str, layer: str, shape: tuple[int, int], seed: int) -> None:
    explanation = explain(kind, random_segmenter(kind, seed), picture_for(kind, seed), layers=layer)
    assert all(tuple(m.shape) == shape and bool(m.any()) for m in explanation.maps)


@pytest.mark.parametrize(
    ("kind", "tokens", "same"),
    [
        ("beit", "beit.embeddings", "beit.embeddings.patch_embeddings.projection"),
        ("segformer", "segformer.stages.2.layer_norm", "segformer.stages.2"),
    ],
)
def test_maps_inside_sequences_of_tokens(kind: str, tokens: str, same: str, seed: int) -> None:
    view = shadow(random_segmenter(kind, seed))
    adapter: Any = adapter_for(view)(view, view, None, processor_for(kind))
    pixels, geometry = adapter.prepare(picture_for(kind, seed))
    modules = {name: view.get_submodule(name) for name in (tokens, same)}
    capture = Capture(modules, grids=lambda count: adapter.grids(count, geometry.network))
    with capture:
        adapter.forward(pixels[None], 300)
    found = {captured.name: captured.tensor for captured in capture.captured}
    assert found[same].ndim == 4
    assert torch.equal(found[tokens], found[same])
    assert adapter.grids(7, geometry.network) == []


@pytest.mark.parametrize("kind", few(["segformer", "smp-unet"], "segformer"))
def test_methods_that_sweep(kind: str, seed: int) -> None:
    method: Any = METHODS["rise"]
    explanation = explain(
        kind, random_segmenter(kind, seed), picture_for(kind, seed), method=method(masks=20), max_det=2
    )
    assert len(explanation) == 2
    assert all(bool(m.isfinite().all()) and bool(m.any()) for m in explanation.maps)
    assert not torch.equal(*explanation.maps)


def test_conf_bounds_the_score(seed: int) -> None:
    picture = picture_for("fcn", seed)
    model = random_segmenter("fcn", seed)
    scores = explain("fcn", model, picture).scores
    middle = float(scores.sort().values[:2].mean())
    assert torch.equal(explain("fcn", model, picture, conf=middle).scores, scores[scores > middle])


@pytest.fixture
def fresh(seed: int) -> Explainer:
    """Of a model that has never run."""
    torch.manual_seed(seed)
    return Explainer(fresh_segformer().eval(), conf=0.0, imgsz=64)


def test_a_model_that_never_ran_before_is_explained(fresh: Explainer, seed: int) -> None:
    """SegFormer's head reads what hooks record that transformers adds in the first forward: here in detcam's."""
    picture, explainer = random_picture(seed, 64, 96), fresh
    first, second = explainer(picture), explainer(picture)
    assert len(first) == len(second) > 0
    with torch.no_grad():
        logits = explainer.adapter.module(explainer.adapter.prepare(picture)[0][None]).logits[0]
    assert set(first.class_ids.tolist()) == set(logits.argmax(dim=0).unique().tolist())
