"""Pose, turned boxes, YOLO-World and YOLOE: every model that the installed Ultralytics ships, at its smallest size."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import CONF, LOGIT, _centre, fingerprint, random_picture
from torch import Tensor, nn

from detcam import Explainer
from detcam.adapters import YoloAdapter
from detcam.engine import Capture, shadow
from detcam.errors import ModelError

TASKS = ("pose", "obb", "world", "yoloe")
SIZE = 128
CLASSES = 7


def _shipped() -> list[str]:
    ultralytics = pytest.importorskip("ultralytics")
    names = sorted(path.stem for path in (Path(ultralytics.__file__).parent / "cfg" / "models").rglob("*.yaml"))
    scaled = []
    for name in (name for name in names if any(task in name for task in TASKS)):
        family, _, rest = name.removeprefix("yoloe-").partition("-")
        scaled.append(f"{'yoloe-' if 'yoloe' in name else ''}{family}n{'-' if rest else ''}{rest}.yaml")
    return scaled


def test_the_table_covers_every_task() -> None:
    assert set(_shipped()) >= {
        *("yolov8n-pose.yaml", "yolov8n-pose-p6.yaml", "yolo11n-pose.yaml", "yolo12n-pose.yaml", "yolo26n-pose.yaml"),
        *("yolov8n-obb.yaml", "yolo11n-obb.yaml", "yolo12n-obb.yaml", "yolo26n-obb.yaml"),
        *("yolov8n-world.yaml", "yolov8n-worldv2.yaml"),
        *("yoloe-v8n.yaml", "yoloe-11n.yaml", "yoloe-26n.yaml"),
        *("yoloe-v8n-seg.yaml", "yoloe-11n-seg.yaml", "yoloe-26n-seg.yaml"),
    }  # fmt: skip


def random_task(config: str, seed: int, picture: np.ndarray, imgsz: int, found: int = 4) -> nn.Module:
    """A model with random weights that finds about `found` objects at every level; text embeddings are random too."""
    from ultralytics.nn import tasks

    torch.manual_seed(seed)
    kinds = {"pose": "Pose", "obb": "OBB", "world": "World", "yoloe": "YOLOESeg" if "seg" in config else "YOLOE"}
    kind = next(kind for task, kind in kinds.items() if task in config)
    model = getattr(tasks, f"{kind}Model")(config, ch=3, nc=CLASSES, verbose=False)
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and "dfl" not in name:
            nn.init.kaiming_normal_(module.weight)
            if "qk" in name:
                module.weight.data *= 0.3  # a softmax of huge logits would amplify rounding errors
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, 0.2, 0.2)
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.8, 1.5)
    names = [f"thing-{i}" for i in range(CLASSES)]
    texts = nn.functional.normalize(torch.randn(1, CLASSES, 512), dim=-1)
    if "world" in config:
        model.txt_feats = texts
    elif "yoloe" in config:
        model.set_classes(names, texts)
    model.names = dict(enumerate(names))
    model.eval()
    _calibrate(model, picture, imgsz, found)
    return model


@torch.no_grad()
def _calibrate(model: Any, picture: np.ndarray, imgsz: int, found: int) -> None:
    head = model.model[-1]
    contrast = "world" in model.yaml["yaml_file"] or "yoloe" in model.yaml["yaml_file"]
    branches = [(head.cv2, head.cv4 if contrast else head.cv3, head.cv3)]
    if getattr(head, "one2one_cv2", None) is not None:
        last = head.one2one_cv4 if contrast else head.one2one_cv3
        branches.append((head.one2one_cv2, last, head.one2one_cv3))
    for boxes, _, classes in branches:
        for box, branch in zip(boxes, classes, strict=True):
            nn.init.normal_(branch[-1].weight, 0, 0.2)
            nn.init.normal_(box[-1].weight, 0, 0.05)
            box[-1].bias.data = (-0.5 * torch.arange(head.reg_max, dtype=torch.float32) + 1.5).repeat(4)
    adapter = YoloAdapter(shadow(model), model, imgsz)
    batch = adapter.prepare(picture)[0][None]
    outputs: dict[Any, Tensor] = {}
    handles = [
        part.register_forward_hook(lambda m, a, out, key=(i, level): outputs.update({key: out}))
        for i, (_, parts, _) in enumerate(branches)
        for level, part in enumerate(parts)
    ]
    if hasattr(head, "proto"):
        handles.append(head.proto.cv3.bn.register_forward_pre_hook(_centre))
    model(batch)
    for handle in handles:
        handle.remove()
    head.shape = None
    for i, (_, parts, _) in enumerate(branches):
        for level, part in enumerate(parts):
            best = outputs[i, level].flatten(2).amax(dim=1)[0].sort(descending=True).values
            least = min(found, len(best) - 1)
            count = least + int(best[least - 1 : least + 10].diff().neg().argmax())
            (part if contrast else part[-1]).bias.data += LOGIT - (best[count - 1] + best[count]) / 2


def predicted(config: str, model: nn.Module, picture: np.ndarray, **options: Any) -> Any:
    """What Ultralytics' own predict call returns for one RGB picture: (boxes xyxy, scores, classes), and masks."""
    from ultralytics import YOLO, YOLOE, YOLOWorld

    wrapper: Any = (YOLOWorld if "world" in config else YOLOE if "yoloe" in config else YOLO)(config)
    wrapper.model = model
    bgr = np.ascontiguousarray(picture[:, :, ::-1])
    result = wrapper.predict(bgr, device="cpu", verbose=False, **options)[0]
    found = result.obb if result.obb is not None else result.boxes
    return result, found.xyxy, found.conf, found.cls.long()


def size_of(config: str) -> int:
    return 192 if "p6" in config else SIZE  # a multiple of the largest stride


@pytest.mark.parametrize("config", _shipped())
def test_predicted_objects_each_get_a_map(config: str, seed: int) -> None:
    picture, imgsz = random_picture(seed, 120, 200), size_of(config)
    model = random_task(config, seed, picture, imgsz)
    before = fingerprint(model)
    explanation = Explainer(model, imgsz=imgsz)(picture)
    evidence = Explainer(model, imgsz=imgsz, layers="evidence", max_det=4)(picture)
    assert fingerprint(model) == before
    assert len(explanation) >= 3
    result, boxes, scores, classes = predicted(config, model, picture, imgsz=imgsz)
    assert len(explanation) == len(boxes)
    torch.testing.assert_close(explanation.scores, scores, rtol=0, atol=1e-4)
    for i in range(len(explanation)):
        close = (boxes - explanation.boxes[i]).abs().amax(dim=1) <= 1e-2
        same = close & ((scores - explanation.scores[i]).abs() <= 1e-4) & (classes == explanation.class_ids[i])
        assert bool(same.any()), f"object {i}: {explanation.boxes[i].tolist()} is not where predict has it"
    assert explanation.labels[0] == f"thing-{int(explanation.class_ids[0])}"
    assert (explanation.masks is None) == (result.masks is None)
    for each in (explanation, evidence):
        assert all(bool(m.isfinite().all()) and bool(m.any()) for m in each.maps)
        assert each.heatmaps.shape == (len(each), 120, 200)


HEADS = ["yolov8n-pose.yaml", "yolov8n-obb.yaml", "yolov8n-worldv2.yaml", "yolov8n-world.yaml", "yoloe-26n-seg.yaml"]


def _named(score: Any, target: str, outputs: Any, objects: Any) -> Tensor:
    return score(outputs, objects, target)


@pytest.mark.parametrize("config", HEADS)
def test_readouts_lead_to_the_same_maps_as_the_plain_scalar(config: str, seed: int) -> None:
    """A target given as a callable has no readout, so each object takes its own backward from `score`."""
    picture, imgsz = random_picture(seed, 120, 200), size_of(config)
    model = random_task(config, seed, picture, imgsz)
    targets = ["margin", "left"] + (["mask"] if "seg" in config else [])
    for target in targets:
        explainer = Explainer(model, imgsz=imgsz, target=target, max_det=6)
        fast = explainer(picture)
        assert explainer.runner.windowed is not None
        assert explainer.runner.windowed.exact, target
        scalar = partial(_named, explainer.adapter.score, target)
        plain = Explainer(model, imgsz=imgsz, target=scalar, max_det=6)(picture)
        assert len(fast) >= 2
        for one, slow in zip(fast.maps, plain.maps, strict=True):
            torch.testing.assert_close(one, slow, rtol=1e-3, atol=float(slow.abs().amax()) * 1e-4 + 1e-9)


@pytest.mark.parametrize("config", ["yolo26n-pose.yaml", "yolo11n-obb.yaml", "yolov8n-worldv2.yaml", "yoloe-11n.yaml"])
def test_class_scores_are_those_of_the_head_at_the_kept_anchor(config: str, seed: int) -> None:
    picture, imgsz = random_picture(seed, 120, 200), size_of(config)
    model = random_task(config, seed, picture, imgsz)
    adapter = YoloAdapter(shadow(model), model, imgsz)
    pixels, geometry = adapter.prepare(picture)
    outputs = adapter.forward(pixels[None], 300)
    objects = adapter.detect(outputs, [geometry], CONF, 0.7, 300)
    with torch.no_grad():
        _, predictions = model(pixels[None])
    logits = predictions.get("one2many", predictions)["scores"][0]
    own = logits[objects[0].class_ids, objects[0].index]
    torch.testing.assert_close(adapter.score(outputs, objects, "class"), own)
    torch.testing.assert_close(adapter.score(outputs, objects, "prob"), objects[0].scores)
    rest = logits.clone()
    rest[objects[0].class_ids, objects[0].index] = -torch.inf
    torch.testing.assert_close(adapter.score(outputs, objects, "margin"), own - rest[:, objects[0].index].amax(dim=0))


@pytest.mark.parametrize("config", ["yolov8n-pose.yaml", "yolo11n-obb.yaml", "yolo26n-obb.yaml"])
def test_candidates_lie_where_their_objects_do(config: str, seed: int) -> None:
    picture = random_picture(seed, 120, 200)
    model = random_task(config, seed, picture, SIZE)
    adapter = YoloAdapter(shadow(model), model, SIZE)
    pixels, geometry = adapter.prepare(picture)
    outputs = adapter.forward(pixels[None], 300)
    found = adapter.detect(outputs, [geometry], CONF, 0.7, 300)[0]
    boxes, probabilities, _ = adapter.candidates(outputs)
    torch.testing.assert_close(boxes[0, found.index], found.network_boxes, rtol=0, atol=1e-3)
    torch.testing.assert_close(probabilities[0, found.index, found.class_ids], found.scores)


@pytest.mark.parametrize("config", ["yolo26n-obb.yaml", "yolo26n-pose.yaml", "yoloe-26n-seg.yaml"])
def test_heads_without_non_maximum_suppression(config: str, seed: int) -> None:
    picture = random_picture(seed, 120, 200)
    model: Any = random_task(config, seed, picture, SIZE)
    model.end2end = True
    explanation = Explainer(model, imgsz=SIZE)(picture)
    _, boxes, scores, classes = predicted(config, model, picture, imgsz=SIZE, nms=False)
    assert len(explanation) == len(boxes) >= 3
    torch.testing.assert_close(explanation.scores, scores, rtol=0, atol=1e-4)
    order = explanation.boxes.sum(dim=1).argsort(), boxes.sum(dim=1).argsort()
    torch.testing.assert_close(explanation.boxes[order[0]], boxes[order[1]], rtol=0, atol=1e-2)
    assert explanation.class_ids[order[0]].tolist() == classes[order[1]].tolist()
    assert all(bool(m.any()) for m in explanation.maps)


def test_the_texts_decide_what_a_world_model_explains(seed: int) -> None:
    """With the texts of two classes exchanged, the map of one is what that of the other was."""
    picture = random_picture(seed, 120, 200)
    model: Any = random_task("yolov8n-worldv2.yaml", seed, picture, SIZE)

    def map_of(number: int) -> Tensor:
        def scalar(outputs: Any, objects: Any) -> Tensor:
            return outputs.logits[0, number, objects[0].index]

        return Explainer(model, imgsz=SIZE, max_det=1, target=scalar)(picture).maps[0]

    first, second = map_of(0), map_of(1)
    assert not torch.allclose(first, second, rtol=1e-2)
    model.txt_feats = model.txt_feats[:, [1, 0, *range(2, CLASSES)]]
    model.names[0], model.names[1] = model.names[1], model.names[0]
    tolerance = float(first.abs().amax()) * 1e-3
    torch.testing.assert_close(map_of(1), first, rtol=1e-3, atol=tolerance)
    torch.testing.assert_close(map_of(0), second, rtol=1e-3, atol=tolerance)


def test_masks_of_yoloe26_are_explained_through_their_prototypes_too(seed: int) -> None:
    """Its head detaches what the prototypes are made of; the gradient must agree with a finite difference."""
    picture = random_picture(seed, 120, 200)
    model = random_task("yoloe-26n-seg.yaml", seed, picture, SIZE).double()
    adapter = YoloAdapter(shadow(model), model, SIZE)
    pixels, geometry = adapter.prepare(picture)
    name = adapter.layers("level").names[0]
    layer = adapter.module.get_submodule(name)
    with Capture({name: layer}, cut_all=True) as capture:
        outputs = adapter.forward(pixels[None], 300)
    objects = adapter.detect(outputs, [geometry], 0.01, 0.7, 300)  # those with a mask
    assert len(objects[0]) >= 1
    at = capture.captured[0].tensor
    along = torch.randn_like(at)
    (gradient,) = torch.autograd.grad(adapter.score(outputs, objects, "mask").sum(), at)
    values = []
    for step in (1e-6, -1e-6):
        handle = layer.register_forward_hook(lambda m, a, out, step=step: at.detach() + step * along)
        with torch.no_grad():
            values.append(adapter.score(adapter.forward(pixels[None], 300), objects, "mask").sum().item())
        handle.remove()
    assert (gradient * along).sum().item() == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-4)


def test_a_prompt_free_model_is_refused(seed: int) -> None:
    model: Any = random_task("yoloe-11n.yaml", seed, random_picture(seed, 60, 60), 64)
    model.model[-1].lrpc = nn.ModuleList()
    with pytest.raises(ModelError, match="prompt-free"):
        Explainer(model)


def test_yoloe_suppresses_across_classes_as_its_predict_call_does(seed: int) -> None:
    picture = random_picture(seed, 120, 200)
    model: Any = random_task("yoloe-11n.yaml", seed, picture, SIZE)
    options: dict[str, Any] = {"imgsz": SIZE, "conf": 0.01, "iou": 0.3}
    texts = model.pe
    for _ in range(10):  # until neighbours differ in class
        model.pe = texts[:, :1] + 0.01 * torch.randn_like(texts)  # nearly one text
        _, boxes, scores, _ = predicted("yoloe-11n.yaml", model, picture, **options)
        within_classes = predicted("yoloe-11n.yaml", model, picture, **options, agnostic_nms=False)[1]
        if len(boxes) < len(within_classes):
            break
    explanation = Explainer(model, **options)(picture)
    assert len(explanation) == len(boxes) < len(within_classes)
    torch.testing.assert_close(explanation.scores, scores, rtol=0, atol=1e-4)
