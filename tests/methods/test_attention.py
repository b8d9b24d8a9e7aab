"""Attention maps against what the libraries themselves return as attention, with the papers' rules in NumPy."""

import copy
import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import few, few_rows, fingerprint, random_picture, random_yolo
from torch import Tensor, nn
from torch.nn.functional import grid_sample

from detcam import Explainer, Explanation
from detcam.engine.attention import splat
from detcam.errors import LayerError, MethodError
from detcam.methods import get_method
from detcam.methods.attention import RawAttention

sys.path.append(str(Path(__file__).parents[1] / "adapters"))
from detr_models import KINDS, random_detr, random_rtdetr

pytest.importorskip("transformers")
pytest.importorskip("ultralytics")

DENSE = ("detr", "table-transformer", "conditional_detr", "dab-detr")
SAMPLED = tuple(kind for kind in KINDS if kind.startswith(("deformable", "rt_detr", "d_fine")))
METHODS = ("attention", "rollout", "relevance")
SINGLE = ("dab-detr",)  # has constants in single precision
OBJECTS = 4


def settle(kind: str, seed: int) -> tuple[Any, Any, np.ndarray]:
    """In double precision, so that rounding decides nothing, where the library can."""
    picture = random_picture(seed, 96, 128)
    if kind == "ultralytics":
        return random_rtdetr("yolov8n-rtdetr.yaml", seed).double(), None, picture
    model, processor = random_detr(kind, seed)
    return model if kind in SINGLE else model.double(), processor, picture


def explain(setting: tuple[Any, Any, np.ndarray], method: Any, **options: Any) -> tuple[Explainer, Explanation]:
    model, processor, picture = setting
    explainer = Explainer(model, method, processor=processor, conf=0.0, max_det=OBJECTS, **options)
    explanation = explainer(picture)
    assert len(explanation) == OBJECTS
    return explainer, explanation


def library_outputs(setting: tuple[Any, Any, np.ndarray], explainer: Explainer) -> Any:
    """The library's own eager forward with its attention, on a copy with gradients."""
    model = copy.deepcopy(setting[0]).requires_grad_(True)
    model.config._attn_implementation = "eager"
    pixels = explainer.adapter.prepare(setting[2])[0][None]
    return model(pixel_values=pixels[:, :3], output_attentions=True)


def numbers(attention: Tensor) -> np.ndarray:
    """[H, Q, K]"""
    return attention.detach().double().numpy()[0]


def assert_close(ours: Tensor, truth: np.ndarray, share: float = 1e-4) -> None:
    assert np.abs(truth).max() > 0
    torch.testing.assert_close(
        ours.double().flatten(), torch.from_numpy(truth).flatten(), rtol=0, atol=share * float(np.abs(truth).max())
    )


@pytest.mark.parametrize(
    ("kind", "last"), few_rows(itertools.product(DENSE, [1, 2]), ("detr", 1), ("conditional_detr", 2))
)
def test_raw_attention_is_the_librarys(kind: str, last: int, seed: int) -> None:
    setting = settle(kind, seed)
    explainer, explanation = explain(setting, RawAttention(last=last))
    cross = library_outputs(setting, explainer).cross_attentions
    mean = np.mean([numbers(one).mean(axis=0) for one in cross[-last:]], axis=0)
    for ours, query in zip(explanation.maps, explanation.objects.index.tolist(), strict=True):
        assert ours.shape == (3, 4)
        assert_close(ours, mean[query])


@pytest.mark.parametrize("kind", few(DENSE, "detr"))
def test_rollout_by_hand(kind: str, seed: int) -> None:
    """One large matrix over tokens and queries, multiplied as in the paper: (A + I) / 2 for each attention."""
    setting = settle(kind, seed)
    explainer, explanation = explain(setting, "rollout")
    outputs = library_outputs(setting, explainer)
    tokens, queries = numbers(outputs.encoder_attentions[0]).shape[1], numbers(outputs.cross_attentions[0]).shape[1]
    flow = np.eye(tokens + queries)

    def step(rows: slice, columns: slice, attention: np.ndarray) -> np.ndarray:
        layer = np.eye(tokens + queries)
        layer[rows] /= 2
        layer[rows, columns] += attention / 2
        return layer @ flow

    among, across = slice(tokens, None), slice(0, tokens)
    for one in outputs.encoder_attentions:
        flow = step(across, across, numbers(one).mean(axis=0))
    for own, cross in zip(outputs.decoder_attentions, outputs.cross_attentions, strict=True):
        flow = step(among, among, numbers(own).mean(axis=0))
        flow = step(among, across, numbers(cross).mean(axis=0))
    np.testing.assert_allclose(flow.sum(axis=1), 1, rtol=1e-6)
    for ours, query in zip(explanation.maps, explanation.objects.index.tolist(), strict=True):
        assert_close(ours, flow[tokens + query, :tokens])


def normalised(relevance: np.ndarray) -> np.ndarray:
    """Equations 8 and 9 of Chefer et al., row by row."""
    result = np.eye(len(relevance))
    for i, row in enumerate(relevance - np.eye(len(relevance))):
        if row.sum() > 0:
            result[i] += row / row.sum()
    return result


@pytest.mark.parametrize(
    ("kind", "target"), few_rows(itertools.product(DENSE, ["class", "left"]), ("detr", "left"), ("dab-detr", "class"))
)
def test_relevance_by_hand(kind: str, target: str, seed: int) -> None:
    """Chefer et al. 2021, equations 5 to 11, with gradients of the library's own logits at its own attention."""
    setting = settle(kind, seed)
    explainer, explanation = explain(setting, "relevance", target=target)
    outputs = library_outputs(setting, explainer)
    layers = [*outputs.encoder_attentions, *outputs.decoder_attentions, *outputs.cross_attentions]
    count = len(outputs.encoder_attentions), len(outputs.decoder_attentions)
    found = explanation.objects
    for i, ours in enumerate(explanation.maps):
        query = int(found.index[i])
        score = outputs.logits[0, query, found.class_ids[i]]
        if target == "left":
            cx, _, width, _ = outputs.pred_boxes[0, query]
            score = (width / 2 - cx) * 128
        gradients = torch.autograd.grad(score, layers, retain_graph=True, allow_unused=True)
        kept = [
            np.zeros(one.shape[2:]) if g is None else np.maximum(numbers(g) * numbers(one), 0).mean(axis=0)
            for g, one in zip(gradients, layers, strict=True)
        ]
        encoder, among, across = kept[: count[0]], kept[count[0] : sum(count)], kept[sum(count) :]
        r_ii, r_qq = np.eye(len(encoder[0])), np.eye(len(among[0]))
        r_qi = np.zeros((len(r_qq), len(r_ii)))
        for layer in encoder:
            r_ii = r_ii + layer @ r_ii
        for own, cross in zip(among, across, strict=True):
            r_qi = r_qi + own @ r_qi
            r_qq = r_qq + own @ r_qq
            r_qi = r_qi + normalised(r_qq).T @ cross @ normalised(r_ii)
        assert_close(ours, r_qi[query], 1e-3)  # sums of small gradients in float32, each row over its sum


@pytest.mark.parametrize("method", METHODS)
def test_yolos_has_one_sequence(method: str, seed: int) -> None:
    """The row of the detection token, among all of the sequence's, at the patches behind the class token."""
    setting = settle("yolos", seed)
    explainer, explanation = explain(setting, method)
    outputs = library_outputs(setting, explainer)
    attentions = outputs.attentions
    found = explanation.objects
    for i, ours in enumerate(explanation.maps):
        token = 1 + 6 * 8 + int(found.index[i])
        total = np.eye(attentions[0].shape[2])
        score = outputs.logits[0, int(found.index[i]), found.class_ids[i]]
        gradients = torch.autograd.grad(score, attentions, retain_graph=True)
        for one, gradient in zip(attentions, gradients, strict=True):
            mean = numbers(one).mean(axis=0)
            if method == "rollout":
                total = (mean + np.eye(len(mean))) / 2 @ total
            elif method == "relevance":
                total = total + np.maximum(numbers(gradient) * numbers(one), 0).mean(axis=0) @ total
            else:
                total = mean
        assert ours.shape == (6, 8)
        assert_close(ours, total[token, 1:49])


def test_splat_is_what_a_bilinear_sample_reads(seed: int) -> None:
    """The samples of any map are the map's inner product with the splat: points inside, on the border, outside."""
    places, weights = torch.rand(3, 40, 2) * 1.6 - 0.3, torch.rand(3, 40)
    found = splat(places, weights, 5, 7)
    for _ in range(3):
        values = torch.randn(5, 7)
        samples = grid_sample(values.expand(1, 1, 5, 7), 2 * places[None] - 1, align_corners=False)[0, 0]  # [3, 40]
        torch.testing.assert_close((found * values).sum(dim=(1, 2)), (samples * weights).sum(dim=1))


def sampled_points(setting: tuple[Any, Any, np.ndarray], explainer: Explainer) -> list[tuple[Tensor, Tensor, Any]]:
    """Of each decoder layer: weights and places [Q, H, T(, 2)] by Zhu et al.'s formula, and (h, w, points) of levels."""
    model = copy.deepcopy(setting[0])
    pixels = explainer.adapter.prepare(setting[2])[0][None]
    layers = [m for name, m in model.named_modules() if hasattr(m, "sampling_offsets") and "decoder" in name]
    seen: list[Any] = []
    for layer in layers:
        kept: dict[str, Any] = {"layer": layer}
        seen.append(kept)
        layer.register_forward_pre_hook(
            lambda m, args, kwargs, kept=kept: kept.update(args=args, kwargs=kwargs), with_kwargs=True
        )
        layer.sampling_offsets.register_forward_hook(lambda m, a, out, kept=kept: kept.update(offsets=out))
        layer.attention_weights.register_forward_hook(lambda m, a, out, kept=kept: kept.update(logits=out))
    with torch.no_grad():
        model(pixels[:, :3]) if setting[1] is None else model(pixel_values=pixels[:, :3])
    result = []
    for kept in seen:
        layer, kwargs = kept["layer"], kept["kwargs"]
        reference = kwargs.get("reference_points", kept["args"][1] if len(kept["args"]) > 1 else None)
        shapes = kwargs.get("spatial_shapes_list", kept["args"][3] if len(kept["args"]) > 3 else None)
        heads = layer.n_heads
        points = getattr(layer, "num_points_list", None) or [layer.n_points] * len(shapes)
        logits = kept["logits"][0].unflatten(1, (heads, -1))
        offsets = kept["offsets"][0].unflatten(1, (heads, -1, 2))  # [Q, H, T, 2]
        level = torch.repeat_interleave(torch.arange(len(shapes)), torch.tensor(points))
        boxes = reference[0].expand(-1, len(shapes), -1)[:, level][:, None]  # [Q, 1, T, 2 or 4]
        if boxes.shape[-1] == 2:
            sizes = torch.tensor([[w, h] for h, w in shapes])[level]
            places = boxes + offsets / sizes
        else:
            counts = torch.tensor(points)[level][:, None]
            places = boxes[..., :2] + offsets / counts * boxes[..., 2:] / 2
        result.append((logits.softmax(dim=2), places, [(h, w, p) for (h, w), p in zip(shapes, points, strict=True)]))
    return result


def sampled_map(weights: Tensor, places: Tensor, levels: Any) -> list[Tensor]:
    """[h, w] of each level, from weights [H, T] and places [H, T, 2], point by point."""
    maps, start = [], 0
    for height, width, points in levels:
        one = torch.zeros(height, width, dtype=torch.float64)
        for head in range(len(weights)):
            for p in range(start, start + points):
                x, y = (places[head, p] * torch.tensor([width, height]) - 0.5).tolist()
                for row in range(height):
                    for column in range(width):
                        share = max(0.0, 1 - abs(row - y)) * max(0.0, 1 - abs(column - x))
                        one[row, column] += float(weights[head, p]) * share / len(weights)
        maps.append(one)
        start += points
    return maps


@pytest.mark.parametrize("kind", few([*SAMPLED, "ultralytics"], "deformable_detr"))
def test_sampling_points_by_hand(kind: str, seed: int) -> None:
    setting = settle(kind, seed)
    explainer, explanation = explain(setting, "attention", imgsz=128)
    layers = sampled_points(setting, explainer)
    weights, places, levels = layers[-1]
    for ours, query in zip(explanation.maps[:2], explanation.objects.index.tolist(), strict=False):
        maps = sampled_map(weights[query], places[query], levels)
        finest = max(maps, key=torch.numel)
        truth = torch.zeros_like(finest)
        for one in maps:  # the share of a coarse cell lies on several fine ones
            large = nn.functional.interpolate(one[None, None], finest.shape, mode="bilinear")[0, 0]
            truth += large * one.numel() / finest.numel()
        assert ours.shape == finest.shape
        assert_close(ours, truth.numpy())
    every = explain(setting, "samplingpoints", imgsz=128)[1].maps[0]
    torch.testing.assert_close(every, explain(setting, RawAttention(last=len(layers)), imgsz=128)[1].maps[0])


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["rt_detr", "deformable_detr"])
def test_relevance_of_sampling_points_by_hand(kind: str, seed: int) -> None:
    """Equations 5 to 10 with gradients at each point's weight; the encoder, whose attention is no matrix, left out."""
    setting = settle(kind, seed)
    explainer, explanation = explain(setting, "relevance", imgsz=128)
    model = copy.deepcopy(setting[0]).requires_grad_(True)
    model.config._attn_implementation = "eager"
    among: list[Tensor] = []
    points: list[Tensor] = []
    for layer in model.model.decoder.layers:
        layer.self_attn.register_forward_hook(lambda m, args, out: among.append(out[1]))
        layer.encoder_attn.attn.register_forward_pre_hook(lambda m, args: points.append(args[5]))
    outputs = model(pixel_values=explainer.adapter.prepare(setting[2])[0][None, :3])
    layers = sampled_points(setting, explainer)
    for i, ours in enumerate(explanation.maps[:2]):
        query = int(explanation.objects.index[i])
        score = outputs.logits[0, query, explanation.class_ids[i]]
        gradients = torch.autograd.grad(score, [*among, *points], retain_graph=True, allow_unused=True)
        r_qq = np.eye(among[0].shape[2])
        total: list[Any] | None = None
        for own, g_own, weights, g_points, (_, places, levels) in zip(
            among, gradients[: len(among)], points, gradients[len(among) :], layers, strict=True
        ):
            cam = np.zeros(own.shape[2:])
            if g_own is not None:
                cam = np.maximum(numbers(g_own) * numbers(own), 0).mean(axis=0)
            counted = (g_points * weights)[0].clamp(min=0).flatten(2).detach()  # [Q, H, T]
            maps = [sampled_map(counted[q], places[q], levels) for q in range(len(counted))]
            across = [np.stack([maps[q][level].numpy() for q in range(len(maps))]) for level in range(len(levels))]
            if total is None:
                total = [np.zeros_like(one) for one in across]
            total = [one + np.einsum("pq,qhw->phw", cam, one) for one in total]
            r_qq = r_qq + cam @ r_qq
            total = [a + np.einsum("qp,qhw->phw", normalised(r_qq), b) for a, b in zip(total, across, strict=True)]
        assert total is not None
        found = [torch.from_numpy(one[query]) for one in total]
        finest = max(found, key=torch.numel)
        truth = torch.zeros_like(finest)
        for one in found:
            large = nn.functional.interpolate(one[None, None], finest.shape, mode="bilinear")[0, 0]
            truth += large * one.numel() / finest.numel()
        assert_close(ours, truth.numpy())


@pytest.mark.parametrize("kind", few([*KINDS, "ultralytics"], "detr", "rt_detr"))
def test_the_model_comes_back_as_it_was(kind: str, seed: int) -> None:
    setting = settle(kind, seed)
    implementation = getattr(getattr(setting[0], "config", None), "_attn_implementation", None)
    before = fingerprint(setting[0])
    plain = explain(setting, "odam", imgsz=128)[1]
    for method in METHODS:
        explanation = explain(setting, method, imgsz=128)[1]
        torch.testing.assert_close(explanation.scores, plain.scores)
        assert torch.equal(explanation.objects.index, plain.objects.index)
        assert all(one.isfinite().all() and one.any() for one in explanation.maps)
    assert fingerprint(setting[0]) == before
    if implementation is not None:
        assert setting[0].config._attn_implementation == implementation


def test_what_cannot_be_done_says_so(seed: int) -> None:
    picture = random_picture(seed, 64, 64)
    with pytest.raises(MethodError, match=r"ultralytics models have no attention .* 'odam'"):
        Explainer(random_yolo("yolov8n.yaml", seed, picture, 64), "relevance")
    model, processor = random_detr("detr", seed)
    with pytest.raises(MethodError, match="attend to whole maps, not to points: use 'attention'"):
        Explainer(model, "samplingpoints", processor=processor)
    with pytest.raises(LayerError, match="reads attention, which has its own layers"):
        Explainer(model, "rollout", layers="level", processor=processor)
    assert get_method("rollout").reads == "attention"
