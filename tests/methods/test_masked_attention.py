"""Attention of Mask2Former and its like and of RF-DETR, against the softmaxes that PyTorch itself computes in a forward."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
import torch
from support import few, few_rows, fingerprint, random_picture, seed_of
from torch import Tensor, nn

from detcam import Explainer, Explanation
from detcam.adapters.shared.attention import CROSS, ENCODER, QUERIES
from detcam.errors import MethodError
from detcam.methods.attention import RawAttention

sys.path.append(str(Path(__file__).parents[1] / "adapters"))
from mask_query_models import FirstQuery, inputs_of, random_segmenter
from rfdetr_models import random_rfdetr
from test_attention import assert_close, normalised, numbers, sampled_map

pytest.importorskip("transformers")

METHODS = ("attention", "rollout", "relevance")
KINDS = ("maskformer", "mask2former", "oneformer")
DECODER = "model.transformer_module.decoder.layers"


@pytest.fixture
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@contextmanager
def softmaxes(modules: list[nn.Module]) -> Iterator[list[Tensor]]:
    """The results of the softmaxes that run in these modules, in order, with the graph."""
    seen: list[Tensor] = []
    inside: list[nn.Module] = []
    original = nn.functional.softmax

    def softmax(*args: Any, **options: Any) -> Tensor:
        result = original(*args, **options)
        if inside:
            seen.append(result)
        return result

    handles = [module.register_forward_pre_hook(lambda m, args: inside.append(m)) for module in modules]
    handles += [module.register_forward_hook(lambda m, args, output: inside.remove(m)) for module in modules]
    nn.functional.softmax = softmax
    try:
        yield seen
    finally:
        nn.functional.softmax = original
        for handle in handles:
            handle.remove()


class Segmenter:
    """A small segmenter in double precision, and its own attention in a forward of the library."""

    def __init__(self, kind: str) -> None:
        self.kind, seed = kind, seed_of(kind)
        self.picture = random_picture(seed, 120, 160)
        model, self.processor = random_segmenter(kind, seed, Path(mkdtemp()))
        self.model: Any = model.double()

    def explain(self, method: Any, **options: Any) -> Explanation:
        """The first query, whose class is the first."""
        explainer = Explainer(self.model, method, processor=self.processor, adapter=FirstQuery, **options)
        explanation = explainer(self.picture)
        assert isinstance(explanation, Explanation)
        return explanation

    def seen(self) -> tuple[Any, list[tuple[str, Tensor]], list[tuple[int, int]]]:
        """Outputs, (role, attention [H, Q, K]) as the layers run, and the (h, w) of what each cross-attention reads."""
        model = copy.deepcopy(self.model).requires_grad_(True)
        model.config._attn_implementation = "eager"
        sizes: list[tuple[int, int]] = []
        pixel = model.model.pixel_level_module
        pixel.register_forward_hook(lambda m, a, out: sizes.extend(map(size_of, levels_of(self.kind, out))))
        modules: dict[nn.Module, str] = {}
        for i in range(len(model.get_submodule(DECODER))):
            layer = model.get_submodule(f"{DECODER}.{i}")
            own = layer.self_attn.self_attn if self.kind == "oneformer" else layer.self_attn
            cross = layer.cross_attn if hasattr(layer, "cross_attn") else layer.encoder_attn
            modules |= {own: "queries", (cross.multihead_attn if self.kind == "oneformer" else cross): "cross"}
        roles: list[str] = []
        for module, role in modules.items():
            module.register_forward_pre_hook(lambda m, args, role=role: roles.append(role))
        inputs = inputs_of(self.processor, self.picture, "instance")
        with softmaxes(list(modules)) as seen:
            outputs = model(**{**inputs, "pixel_values": inputs["pixel_values"].double()})
        assert len(roles) == len(seen) == len(modules)
        count = roles.count("cross")
        return outputs, list(zip(roles, seen, strict=True)), [sizes[i % len(sizes)] for i in range(count)]


@cache
def built(kind: str) -> Any:
    """The model, the same in every test: copy it to change it."""
    if not kind.startswith("RFDETR"):
        return Segmenter(kind)
    pytest.importorskip("rfdetr")
    wrapper = random_rfdetr(kind, seed_of(kind))
    wrapper.model.model.double()
    return wrapper


@pytest.fixture
def setting(kind: str, double: None) -> Any:
    return built(kind)


def heads(attention: Tensor) -> np.ndarray:
    """[H, Q, K] of one picture, from [H, Q, K] or [1, H, Q, K]."""
    return numbers(attention if attention.ndim == 4 else attention[None])


def levels_of(kind: str, outputs: Any) -> list[Tensor]:
    """The maps that the decoder's layers read in turn."""
    if kind == "maskformer":
        return [outputs.encoder_last_hidden_state]
    return list(outputs.decoder_hidden_states if kind == "mask2former" else outputs.decoder_features)[:3]


def size_of(tensor: Tensor) -> tuple[int, int]:
    return (tensor.shape[2], tensor.shape[3])


def added(maps: dict[tuple[int, int], np.ndarray]) -> np.ndarray:
    """Maps at the finest resolution: the share of a coarse cell lies on several fine ones."""
    finest = max(maps, key=np.prod)
    total = torch.zeros(finest, dtype=torch.float64)
    for size, values in maps.items():
        whole = torch.from_numpy(values).double().view(1, 1, *size)
        total += nn.functional.interpolate(whole, finest, mode="bilinear")[0, 0] * (
            size[0] * size[1] / (finest[0] * finest[1])
        )
    return total.numpy()


@pytest.mark.parametrize(
    ("kind", "last"), few_rows([(k, n) for k in KINDS for n in (1, 2, 9)], *((k, 2) for k in KINDS))
)
def test_raw_attention_is_the_models_own(kind: str, last: int, setting: Segmenter) -> None:
    """Each layer reads another map: the mean over layers adds the maps, each on its own cells."""
    explanation = setting.explain(RawAttention(last=last))
    _, layers, sizes = setting.seen()
    cross = [heads(attention).mean(axis=0)[0] for role, attention in layers if role == "cross"]
    last = min(last, len(cross))
    maps = {size: np.zeros(np.prod(size)) for size in sizes}
    for attention, size in list(zip(cross, sizes, strict=True))[-last:]:
        maps[size] += attention / last
    assert len(maps) == (1 if kind == "maskformer" else 3)
    assert_close(explanation.maps[0], added(maps))
    np.testing.assert_allclose(float(explanation.maps[0].sum()), 1, rtol=0.2)


@pytest.mark.parametrize("method", ["rollout", "relevance"])
@pytest.mark.parametrize("kind", KINDS)
def test_rules_by_hand(kind: str, method: str, setting: Segmenter) -> None:
    """In the order that the layers run, which is cross-attention first in Mask2Former and OneFormer."""
    explanation = setting.explain(method)
    outputs, layers, sizes = setting.seen()
    first = {"maskformer": "queries"}.get(kind, "cross")
    assert layers[0][0] == first
    gradients = torch.autograd.grad(
        outputs.class_queries_logits[0, 0, 0], [one for _, one in layers], allow_unused=True
    )
    queries = layers[0][1].shape[-2]
    r_qq = np.eye(queries)
    maps = {size: np.zeros((queries, np.prod(size))) for size in sizes}
    each = iter(sizes)
    for (role, attention), gradient in zip(layers, gradients, strict=True):
        matrix = heads(attention).mean(axis=0)
        if method == "rollout":
            read = {
                size: matrix @ values if role == "queries" else np.zeros_like(values) for size, values in maps.items()
            }
            if role == "cross":
                read[next(each)] = matrix
            maps = {size: (values + read[size]) / 2 for size, values in maps.items()}
            continue
        cam = np.zeros_like(matrix)
        if gradient is not None:
            cam = np.maximum(heads(gradient) * heads(attention), 0).mean(axis=0)
        if role == "queries":
            maps = {size: values + cam @ values for size, values in maps.items()}
            r_qq = r_qq + cam @ r_qq
        else:
            maps[next(each)] += normalised(r_qq).T @ cam
    assert_close(explanation.maps[0], added({size: values[0] for size, values in maps.items()}), 1e-3)


@pytest.mark.parametrize("kind", few(["detr", "conditional_detr"], "detr"))
def test_raw_attention_of_detr_with_masks_is_the_librarys(setting: Segmenter) -> None:
    explanation = setting.explain("attention")
    model = copy.deepcopy(setting.model)
    model.config._attn_implementation = "eager"
    inputs = inputs_of(setting.processor, setting.picture, "instance")
    with torch.no_grad():
        outputs = model(**{**inputs, "pixel_values": inputs["pixel_values"].double()}, output_attentions=True)
    assert_close(explanation.maps[0], numbers(outputs.cross_attentions[-1]).mean(axis=0)[0])


@pytest.mark.parametrize("kind", few(KINDS, "mask2former"))
@pytest.mark.parametrize("method", ["rollout", "relevance"])
def test_pictures_of_a_batch_do_not_mix(method: str, setting: Segmenter) -> None:
    explainer = Explainer(setting.model, method, processor=setting.processor, adapter=FirstQuery)
    pictures = [setting.picture, np.ascontiguousarray(setting.picture[::-1])]
    for together, picture in zip(explainer(pictures), pictures, strict=True):
        alone = explainer(picture)
        assert_close(together.maps[0], alone.maps[0].double().numpy())


@pytest.mark.parametrize("kind", few([*KINDS, "detr", "conditional_detr"], "mask2former", "detr"))
def test_the_model_comes_back_as_it_was(setting: Segmenter) -> None:
    before = fingerprint(setting.model)
    plain = setting.explain("odam")
    for method in METHODS:
        explanation = setting.explain(method)
        torch.testing.assert_close(explanation.scores, plain.scores)
        assert all(bool(one.isfinite().all()) and bool(one.any()) for one in explanation.maps), method
    assert fingerprint(setting.model) == before


def test_what_cannot_be_done_says_so(seed: int, tmp_path: Path) -> None:
    model, processor = random_segmenter("eomt", seed, tmp_path)
    for method in METHODS:
        with pytest.raises(MethodError, match="has no decoder whose queries attend to the image: use a method that"):
            Explainer(model, method, processor=processor)
    segmenter, processor = random_segmenter("mask2former", seed, tmp_path)
    with pytest.raises(MethodError, match="attend to whole maps, not to points: use 'attention'"):
        Explainer(segmenter, "samplingpoints", processor=processor)


def test_attention_of_other_parts_does_not_count() -> None:
    """Of a backbone, of the pixel decoder, and of the queries that OneFormer makes before its decoder."""
    for name in ("model.backbone.encoder.layer.0.attention.attention", "backbone.0.encoder.encoder.layer.3.attention"):
        assert not ENCODER.search(f"{name}.attention")
    assert ENCODER.search("vit.encoder.layer.0.attention.attention")
    assert not ENCODER.search("model.pixel_level_module.encoder.encoder.layer.0.attention.attention")
    assert QUERIES.search(f"{DECODER}.0.self_attn.self_attn")
    assert CROSS.search(f"{DECODER}.0.cross_attn.multihead_attn")
    made = "model.transformer_module.decoder.query_transformer.decoder.layers.0"
    assert not QUERIES.search(f"{made}.self_attn")
    assert not CROSS.search(f"{made}.multihead_attn")


@pytest.mark.filterwarnings("ignore:.*pretrain_weights=None")
@pytest.mark.filterwarnings("ignore:.*jit.script:FutureWarning")
@pytest.mark.parametrize("kind", few(["RFDETRNano", "RFDETRSegNano"], "RFDETRSegNano"))
@pytest.mark.parametrize("method", [*METHODS, "samplingpoints"])
def test_rfdetr_by_hand(method: str, setting: Any) -> None:
    """Points and weights by Zhu et al.'s formula from the outputs of the layers' projections."""
    network = setting.model.model
    before = fingerprint(network)
    explainer = Explainer(setting, method, conf=0.0, max_det=2)
    explanation = explainer(random_picture(seed_of(method), 80, 120))
    assert fingerprint(network) == before
    model = copy.deepcopy(network).requires_grad_(True)
    kept: list[dict[str, Any]] = []
    modules = []
    for layer in model.transformer.decoder.layers:
        facts: dict[str, Any] = {}
        kept.append(facts)
        own, cross = layer.self_attn, layer.cross_attn
        modules += [own, cross]
        own.register_forward_pre_hook(lambda m, a, options: (a, {**options, "need_weights": True}), with_kwargs=True)
        cross.register_forward_pre_hook(lambda m, a, facts=facts: facts.update(reference=a[1], shapes=a[3].tolist()))
        cross.sampling_offsets.register_forward_hook(lambda m, a, out, facts=facts: facts.update(offsets=out))
    with softmaxes(modules) as seen:
        outputs = model(explainer.adapter.prepare(explanation.image)[0][None])
    assert len(seen) == 2 * len(kept)
    among = seen[::2]
    weights = [one[0] for one in seen[1::2]]  # [Q, H, T]
    for i, ours in enumerate(explanation.maps):
        query = int(explanation.objects.index[i])
        score = outputs["pred_logits"][0, query, explanation.class_ids[i]]
        gradients = torch.autograd.grad(score, seen, retain_graph=True, allow_unused=True)
        maps: list[np.ndarray] = []  # of each layer [Q, h, w]
        matrices = []
        for n, facts in enumerate(kept):
            (height, width), count = facts["shapes"][0], weights[n].shape[1]
            assert len(facts["shapes"]) == 1
            offsets = facts["offsets"][0].unflatten(1, (count, -1, 2)).detach()
            reference = facts["reference"][0].detach()  # [Q, 1, 4]
            points = offsets.shape[2]
            places = reference[:, None, :, :2] + offsets / points * reference[:, None, :, 2:] / 2
            counted, matrix = weights[n].detach(), heads(among[n]).mean(axis=0)
            if method == "relevance":
                own, cross = gradients[2 * n], gradients[2 * n + 1]
                counted = counted * 0 if cross is None else (counted * cross[0]).clamp(min=0)
                own = torch.zeros_like(among[n]) if own is None else own
                matrix = np.maximum(heads(own) * heads(among[n]), 0).mean(axis=0)
            rows = range(len(counted)) if method in ("rollout", "relevance") else [query]
            of_layer = np.zeros((len(counted), height, width))
            for q in rows:
                of_layer[q] = sampled_map(counted[q], places[q], [(height, width, points)])[0].numpy()
            maps.append(of_layer)
            matrices.append(matrix)
        if method in ("attention", "samplingpoints"):
            truth = maps[-1][query] if method == "attention" else np.mean(maps, axis=0)[query]
        else:
            total, r_qq = np.zeros_like(maps[0]), np.eye(len(matrices[0]))
            for matrix, read in zip(matrices, maps, strict=True):
                spread = np.einsum("pq,qhw->phw", matrix, total)
                if method == "rollout":
                    total = ((total + spread) / 2 + read) / 2
                else:
                    r_qq = r_qq + matrix @ r_qq
                    total = total + spread + np.einsum("qp,qhw->phw", normalised(r_qq), read)
            truth = total[query]
        assert_close(ours, truth, 1e-3)
