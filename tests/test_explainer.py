"""Maps are those that plain autograd gives on the user's own model, however the picture comes in."""

import copy
import itertools
import random
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from support import few, fingerprint, random_picture, random_yolo, wrapped
from torch import Tensor, nn

from detcam import Explainer, Explanation
from detcam.methods import Method, get_method


def same(a: Explanation, b: Explanation, tolerance: float = 1e-5) -> None:
    assert a.labels == b.labels
    assert a.notes == b.notes
    torch.testing.assert_close(a.boxes, b.boxes, rtol=0, atol=1e-3)
    torch.testing.assert_close(a.scores, b.scores, rtol=0, atol=1e-5)
    assert [m.shape for m in a.maps] == [m.shape for m in b.maps]
    torch.testing.assert_close(a.heatmaps, b.heatmaps, rtol=0, atol=tolerance)


def reference(
    model: nn.Module, explanation: Explanation, batch: Tensor, cut: list[str], scalar: Callable[[Any, int], Tensor]
) -> list[list[Tensor]]:
    """For each object, gradient times activation summed over channels at every layer of `cut`, all cut together."""
    leaves: dict[str, Tensor] = {}

    def replace(name: str) -> Callable[..., Tensor]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            leaves[name] = output.detach().clone().requires_grad_()
            return leaves[name].clone()

        return hook

    handles = [model.get_submodule(name).register_forward_hook(replace(name)) for name in cut]
    outputs = model(batch)
    for handle in handles:
        handle.remove()
    maps = []
    for i in range(len(explanation)):
        tensors = [leaves[name] for name in cut]
        gradients = torch.autograd.grad(scalar(outputs, i), tensors, retain_graph=True, allow_unused=True)
        maps.append([
            torch.zeros(t.shape[2:]) if g is None else (g * t.detach()).sum(dim=1)[0]
            for g, t in zip(gradients, tensors, strict=True)
        ])  # fmt: skip
    return maps


def network_input(explainer: Explainer, picture: np.ndarray) -> Tensor:
    return explainer.adapter.prepare(picture)[0][None]


@pytest.mark.parametrize("target", few(["class", "prob", "margin", "left", "bottom"], "class", "left"))
@pytest.mark.parametrize(
    "config", few(["yolov8n.yaml", "yolo26n.yaml", "yolov9t.yaml"], "yolov8n.yaml", "yolo26n.yaml")
)
def test_maps_at_the_object_s_own_level(config: str, target: str, seed: int) -> None:
    picture = random_picture(seed, 150, 230)
    model = random_yolo(config, seed, picture, 224)
    explainer = Explainer(model, "odam", imgsz=224, target=target)
    explanation = explainer(picture)
    found = explanation.objects

    def scalar(outputs: Any, i: int) -> Tensor:
        raw = outputs[1].get("one2many", outputs[1])
        anchor, kind = int(found.index[i]), int(found.class_ids[i])
        logits = raw["scores"][0, :, anchor]
        if target in ("left", "bottom"):
            head = model.model[-1]
            side = 0 if target == "left" else 3
            return head.dfl(raw["boxes"])[0, side, anchor] * head.stride[found.level[i]]
        others = torch.cat([logits[:kind], logits[kind + 1 :]])
        return {"class": logits[kind], "prob": logits[kind].sigmoid(), "margin": logits[kind] - others.max()}[target]

    names = list(explainer.plan.names)
    expected = reference(model, explanation, network_input(explainer, picture), names, scalar)
    assert len(explanation) >= 10
    for ours, levels, level in zip(explanation.maps, expected, found.level.tolist(), strict=True):
        plain = levels[level]
        torch.testing.assert_close(ours, plain, rtol=0, atol=1e-4 * float(plain.abs().max()))


@pytest.mark.parametrize("config", few(["yolov8n.yaml", "yolov10n.yaml", "yolov8n-p6.yaml"], "yolov8n.yaml"))
def test_maps_of_all_evidence_at_the_neck_s_door(config: str, seed: int) -> None:
    picture = random_picture(seed, 150, 230)
    model = random_yolo(config, seed, picture, 256, found=2)
    explainer = Explainer(model, "odam", "evidence", imgsz=256)
    explanation = explainer(picture)
    found = explanation.objects

    def scalar(outputs: Any, i: int) -> Tensor:
        raw = outputs[1].get("one2many", outputs[1])
        return raw["scores"][0, int(found.class_ids[i]), int(found.index[i])]

    names = list(explainer.plan.names)
    for ours, parts in zip(
        explanation.maps, reference(model, explanation, network_input(explainer, picture), names, scalar), strict=True
    ):
        finest = max((p.shape for p in parts), key=lambda shape: shape[0])
        total = sum(nn.functional.interpolate(p[None, None], finest, mode="bilinear")[0, 0] for p in parts)
        torch.testing.assert_close(ours, total, rtol=0, atol=1e-4 * float(total.abs().max()))


def test_the_backbone_runs_once_for_all_objects_and_pictures(detector: nn.Module, picture: np.ndarray) -> None:
    runs: list[int] = []
    detector.model[0].register_forward_pre_hook(lambda m, args: runs.append(len(args[0])))
    explainer = Explainer(detector, "odam", imgsz=160)
    assert len(explainer(picture)) > 5
    assert runs == [1]
    explainer([picture, picture, np.ascontiguousarray(picture.transpose(1, 0, 2)), picture[::-1]])
    assert sorted(runs) == [1, 1, 3]


def in_one_order(detector: nn.Module, seed: int, shape: tuple[int, int]) -> np.ndarray:
    """A picture whose first seven scores differ by more than a batch's rounding: the first six are always the same."""
    explainer = Explainer(detector, "odam", imgsz=160, max_det=7)
    pictures = (random_picture(number, *shape) for number in itertools.count(seed, 100))
    return next(picture for picture in pictures if float(explainer(picture).scores.diff().amax()) < -1e-6)


@pytest.mark.parametrize("layers", ["level", "evidence", ["model.6", "model.18"]])
def test_a_list_gives_what_each_picture_gives_alone(layers: Any, detector: nn.Module, seed: int) -> None:
    detector = copy.deepcopy(detector).double()  # a batch's rounding may choose another maximum in a pooling layer
    shapes = [(120, 200), (121, 199), (200, 120), (64, 64), (120, 200), (40, 190)]
    pictures = [in_one_order(detector, seed + i, shape) for i, shape in enumerate(shapes)]
    explainer = Explainer(detector, "odam", layers, imgsz=160, max_det=6)
    together = explainer(pictures)
    assert isinstance(together, list)
    assert sum(len(e) for e in together) > 10
    for picture, explanation in zip(pictures, together, strict=True):
        assert np.array_equal(explanation.image, picture)
        same(explanation, explainer(picture))
    assert explainer([]) == []
    assert len(explainer((pictures[0],))) == 1


def test_every_kind_of_picture_agrees(detector: nn.Module, picture: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    cv2.imwrite(str(path), picture[:, :, ::-1])
    explainer = Explainer(detector, imgsz=160)
    first = explainer(picture)
    assert len(first) > 5
    tensor = torch.from_numpy(picture).permute(2, 0, 1) / 255
    alpha = np.dstack([picture, np.full(picture.shape[:2], 9, np.uint8)])
    for other in (path, str(path), Image.fromarray(picture), tensor, alpha):
        same(explainer(other), first, tolerance=0)


CONTEXTS: dict[str, Callable[[], Any]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "nothing": nullcontext,
}


@pytest.mark.parametrize("layers", few(["level", "evidence", ["model.9"]], "level"))
@pytest.mark.parametrize("context", CONTEXTS)
def test_the_caller_s_context_does_not_matter(
    context: str, layers: Any, detector: nn.Module, picture: np.ndarray
) -> None:
    expected = Explainer(detector, imgsz=160, layers=layers, max_det=5)(picture)
    outside = Explainer(detector, imgsz=160, layers=layers, max_det=5)
    with CONTEXTS[context]():
        grad, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        for explainer in (outside, Explainer(detector, imgsz=160, layers=layers, max_det=5)):
            explanation = explainer(picture)
            same(explanation, expected, tolerance=0)
            assert all(torch.equal(a, b) for a, b in zip(explanation.maps, expected.maps, strict=True))
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == (grad, inference)


@pytest.mark.parametrize(("dtype", "least"), [(torch.float16, 0.97), (torch.bfloat16, 0.85), (torch.float64, 0.9999)])
def test_other_precisions(dtype: torch.dtype, least: float, segmenter: nn.Module, picture: np.ndarray) -> None:
    expected = Explainer(segmenter, imgsz=160, max_det=6)(picture)
    model = copy.deepcopy(segmenter).to(dtype)
    for target in ("class", "box", "mask"):
        explanation = Explainer(model, imgsz=160, conf=0.2, target=target, max_det=3)(picture)
        assert len(explanation)
        assert explanation.heatmaps.dtype == torch.float32
        assert explanation.boxes.dtype == torch.float32
        assert all(m.dtype == torch.float32 and bool(m.isfinite().all()) for m in explanation.maps)
    explanation = Explainer(model, imgsz=160, conf=0.2, max_det=12)(picture)
    places = {key: i for i, key in enumerate(anchors_and_classes(explanation))}
    pairs = [(i, places[key]) for i, key in enumerate(anchors_and_classes(expected)) if key in places]
    assert len(pairs) >= len(expected) // 2
    ours = torch.stack([expected.heatmaps[i].flatten() for i, _ in pairs])
    theirs = torch.stack([explanation.heatmaps[j].flatten() for _, j in pairs])
    assert float(nn.functional.cosine_similarity(ours, theirs, dim=1).mean()) > least


def anchors_and_classes(explanation: Explanation) -> list[tuple[int, int]]:
    return list(zip(explanation.objects.index.tolist(), explanation.class_ids.tolist(), strict=True))


def test_random_state_and_global_settings_are_untouched(detector: nn.Module, picture: np.ndarray) -> None:
    state = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    flags = torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads()
    for layers in ("level", "evidence"):
        assert len(Explainer(detector, imgsz=160, layers=layers)(picture).heatmaps)
    assert torch.equal(torch.get_rng_state(), state[0])
    assert random.getstate() == state[1]
    assert np.array_equal(np.random.get_state()[1], state[2])  # noqa: NPY002
    assert (torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads()) == flags


def test_the_model_comes_back_as_it_was(segmenter: nn.Module, picture: np.ndarray) -> None:
    segmenter.train()
    segmenter.model[3].requires_grad_(False)
    segmenter.model[4].cv1.act.inplace = True
    next(segmenter.parameters()).grad = torch.ones_like(next(segmenter.parameters()))
    calls: list[int] = []
    segmenter.model[2].register_forward_hook(lambda m, a, o: calls.append(1))
    wrapper = wrapped(segmenter)
    overrides = dict(wrapper.overrides)
    before = fingerprint(segmenter)
    for target, layers in [("class", "level"), ("mask", "evidence"), ("box", ["model.4", "model.9"])]:
        calls.clear()
        Explainer(wrapper, imgsz=160, target=target, layers=layers)(picture)
        assert calls, "the user's hook fires"
        assert fingerprint(segmenter) == before
    assert wrapper.overrides == overrides


@pytest.mark.parametrize("layers", ["level", "evidence"])
def test_the_user_s_hooks_see_whole_pictures_once(layers: str, detector: nn.Module, picture: np.ndarray) -> None:
    expected = Explainer(detector, "odam", layers, imgsz=160)(picture)
    seen: list[tuple[int, ...]] = []

    def hook(module: nn.Module, args: Any, output: Tensor) -> None:
        assert bool(output.isfinite().all())
        seen.append(tuple(output.shape))

    for place in ("model.4", "model.15", "model.22.cv3.0", "model.22.cv3.2.1.conv"):
        detector.get_submodule(place).register_forward_hook(hook)
    explanation = Explainer(detector, "odam", layers, imgsz=160)(picture)
    assert [shape[2:] for shape in seen] == [(12, 20), (12, 20), (12, 20), (3, 5)]
    same(explanation, expected, tolerance=1e-3)


def test_everything_is_restored_after_an_exception(detector: nn.Module, picture: np.ndarray) -> None:
    class Breaks(Method):
        name, formula, source = "breaks", "", ""

        def maps(self, acts: Tensor, grads: Tensor | None) -> Tensor:
            raise ZeroDivisionError("in the method")

    def target(outputs: Any, objects: Any) -> Tensor:
        raise ZeroDivisionError("in the target")

    before = fingerprint(detector)
    for options in ({"method": Breaks()}, {"target": target}, {"method": Breaks(), "layers": ["model.9"]}):
        explainer = Explainer(detector, imgsz=160, **options)
        inside = fingerprint(explainer.adapter.module)
        with pytest.raises(ZeroDivisionError):
            explainer(picture)
        assert fingerprint(detector) == before
        hooks = [value[1] for key, value in fingerprint(explainer.adapter.module).items() if key.startswith("module")]
        assert hooks == [value[1] for key, value in inside.items() if key.startswith("module")]
        assert torch.is_grad_enabled()


def test_later_updates_of_the_weights_are_seen(detector: nn.Module, picture: np.ndarray) -> None:
    explainer = Explainer(detector, imgsz=160, conf=0.1, max_det=20)
    before = explainer(picture)
    with torch.no_grad():
        for branch in detector.model[-1].cv3:
            branch[-1].bias[2] += 3
    after = explainer(picture)
    same(after, Explainer(detector, imgsz=160, conf=0.1, max_det=20)(picture), tolerance=0)
    assert after.labels != before.labels


def test_a_method_instance_and_its_name_agree(detector: nn.Module, picture: np.ndarray) -> None:
    by_name = Explainer(detector, imgsz=160, method="layercam")(picture)
    same(Explainer(detector, imgsz=160, method=get_method("layercam"))(picture), by_name, tolerance=0)
    same(Explainer(detector, imgsz=160, method="LayerCAM")(picture), by_name, tolerance=0)
    assert by_name.settings["method"] == "layercam"
