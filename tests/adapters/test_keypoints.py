"""Keypoint targets: the model's own raw keypoints, maps by plain autograd, and pixels whose loss hides the keypoint."""

from __future__ import annotations

import warnings
from functools import cache, partial
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from support import few, fingerprint, random_picture, seed_of
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from torchvision_models import (
    FEW_PROPOSALS,
    SMALL,
    WIDTH,
    Setup,
    _pyramid,
    assert_readouts_agree,
    conf_after,
    drawn,
    pools,
    predict,
)
from yolo_models import SIZE, predicted, random_task

from detcam import Explainer
from detcam.adapters import YoloAdapter
from detcam.adapters.shared.keypoints import COCO, keypoint_targets
from detcam.engine import shadow
from detcam.errors import TargetError

pytest.importorskip("ultralytics")

HEADS = ("yolov8n-pose.yaml", "yolo26n-pose.yaml", "yolo26n-pose.yaml end to end")
TOLERANCE = 1e-4  # of the maximum


@cache
def built(head: str, dimensions: int = 3) -> tuple[Any, np.ndarray]:
    """A model of 5 keypoints that finds objects at every level of the picture."""
    config, _, end = head.partition(" ")
    seed = seed_of(head)
    picture = random_picture(seed, 120, 200)
    model: Any = random_task(config, seed, picture, SIZE, data_kpt_shape=(5, dimensions))
    if "26" in config:
        model.end2end = bool(end)
    return model, picture


@pytest.fixture(autouse=True)
def warm(request: pytest.FixtureRequest) -> None:
    """Build the test's model before its clock starts."""
    given = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    built(given.get("head", HEADS[0]), given.get("dimensions", 3))


def raw(model: Any, batch: Tensor) -> tuple[Tensor, Tensor]:
    """[1, K, D, A] keypoints before decoding and [1, K, D, A] decoded, of Ultralytics' own head."""
    head = model.model[-1]
    _, preds = model(batch)
    if "one2one" in preds:
        preds = preds["one2one" if head.end2end else "one2many"]
    shape = tuple(head.kpt_shape)
    return preds["kpts"].unflatten(1, shape), head._inference(preds)[:, -shape[0] * shape[1] :].unflatten(1, shape)


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("head", HEADS)
def test_scalars_are_the_heads_own_keypoints(head: str, dimensions: int) -> None:
    """The visibility before its sigmoid, or x and y in network pixels, at the anchor of the kept box."""
    model, picture = built(head, dimensions)
    adapter = YoloAdapter(shadow(model), model, SIZE)
    pixels, geometry = adapter.prepare(picture)
    outputs = adapter.forward(pixels[None].requires_grad_(), 300)
    objects = adapter.detect(outputs, [geometry], 0.25, 0.7, 300)
    anchors = objects[0].index
    readouts = adapter.readouts(outputs, objects, "keypoint 0")
    assert readouts is not None
    assert {r.sources[0].gradients.shape[1:] for r in readouts} == {(4 - dimensions, 5 * dimensions, 1, 1)}
    assert len(anchors) >= 3
    with torch.no_grad():
        before, decoded = raw(model, pixels[None])
    more = {"nms": False} if head.endswith("end") else {}
    result = predicted(head.split()[0], model, picture, imgsz=SIZE, **more)[0]
    order = (result.boxes.conf - objects[0].scores[:, None]).abs().argmin(dim=1)
    for keypoint in range(5):
        scalars = adapter.score(outputs, objects, f"keypoint {keypoint}")
        if dimensions == 3:
            assert torch.equal(scalars, before[0, keypoint, 2, anchors])
            shown = result.keypoints.data[order, keypoint, 2]
            torch.testing.assert_close(scalars.sigmoid(), shown, rtol=1e-2, atol=1e-3)
        else:
            torch.testing.assert_close(scalars, decoded[0, keypoint, :, anchors].T)
            places = geometry.to_source(scalars.detach().repeat(1, 2))[:, :2]
            torch.testing.assert_close(places, result.keypoints.data[order, keypoint], rtol=1e-2, atol=0.5)


def plain_maps(model: Any, explainer: Explainer, explanation: Any, layer: str, keypoint: int) -> list[Tensor]:
    """[h, w] gradient times activation, positive parts summed, by autograd of Ultralytics' own outputs."""
    kept: list[Tensor] = []
    view = shadow(model)
    hook = view.get_submodule(layer).register_forward_hook(lambda m, a, output: kept.append(output.requires_grad_()))
    before, decoded = raw(view, explainer.adapter.prepare(explanation.image)[0][None])
    hook.remove()
    points = before[0, keypoint, 2:] if before.shape[2] == 3 else decoded[0, keypoint]  # [M, A]
    maps = []
    for anchor in explanation.objects.index.tolist():
        gradients = [torch.autograd.grad(scalar, kept[0], retain_graph=True)[0] for scalar in points[:, anchor]]
        maps.append(torch.stack([(g * kept[0]).relu().sum(dim=1)[0].detach() for g in gradients]).amax(dim=0))
    return maps


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("head", few(HEADS, HEADS[0], HEADS[2]))
def test_maps_are_those_of_plain_autograd(head: str, dimensions: int) -> None:
    """All objects in windows of the keypoint branch, at a layer of the backbone; of two scalars the larger counts."""
    model, picture = built(head, dimensions)
    before = fingerprint(model)
    found = []
    for keypoint in (0, 3):
        explainer = Explainer(model, "elementwise", ["model.4"], f"keypoint {keypoint}", max_det=2, imgsz=SIZE)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "gradients in windows")
            explanation = explainer(picture)
        assert len(explanation) == 2
        plain = plain_maps(model, explainer, explanation, "model.4", keypoint)
        for ours, expected in zip(explanation.maps, plain, strict=True):
            assert (ours - expected).abs().max() <= TOLERANCE * expected.abs().max()
        found.append(explanation.maps[0])
    assert not torch.allclose(found[0], found[1], atol=float(found[0].max()) / 10), "a map for each keypoint"
    assert fingerprint(model) == before


def gated(head: Any, preds: dict[str, Tensor]) -> Tensor:
    """Keypoints that another branch scales: not the outputs of the keypoint branch."""
    return preds["kpts"] * preds["scores"].mean(dim=1, keepdim=True).sigmoid()


def halved(self: Any, kpts: Tensor) -> Tensor:
    """Decoding that halves the visibility's logit."""
    changed = kpts.clone()
    changed[:, 2::3] *= 0.5
    decoded: Tensor = super(type(self), self).kpts_decode(changed)
    return decoded


def test_edited_heads_are_explained_by_what_they_return() -> None:
    """Keypoints changed behind their branch, and changed when they are decoded: the map is of the returned number."""
    model, picture = built(HEADS[0])
    for change in ("branch", "decoding"):
        edited: Any = shadow(model)
        head: Any = edited.model[-1]
        original = type(head)

        def forward_head(self: Any, *args: Any, original: Any = original, **options: Any) -> Any:
            preds = original.forward_head(self, *args, **options)
            return {**preds, "kpts": gated(self, preds)}

        own = {"forward_head": forward_head} if change == "branch" else {"kpts_decode": halved}
        head.__class__ = type("EditedPose", (original,), own)
        explainer = Explainer(edited, "elementwise", ["model.4"], "keypoint 1", max_det=3, imgsz=SIZE)
        explanation = explainer(picture)
        kept: list[Tensor] = []
        edited.model[4].register_forward_hook(lambda m, a, output, kept=kept: kept.append(output.requires_grad_()))
        decoded = edited(explainer.adapter.prepare(picture)[0][None])[0]
        for anchor, ours in zip(explanation.objects.index.tolist(), explanation.maps, strict=True):
            (gradient,) = torch.autograd.grad(decoded[0, -15 + 3 + 2, anchor].logit(), kept[0], retain_graph=True)
            expected = (gradient * kept[0]).relu().sum(dim=1)[0].detach()
            assert (ours - expected).abs().max() <= 1e-3 * expected.abs().max(), change


class OldPose(nn.Module):
    """The pose head of Ultralytics before 8.4: boxes and logits in one map for each level, keypoints beside them."""

    def __init__(self, pose: Any) -> None:
        super().__init__()
        self.cv2, self.cv3, self.cv4, self.dfl = pose.cv2, pose.cv3, pose.cv4, pose.dfl
        self.bins, self.classes = int(pose.reg_max), int(pose.nc)
        for name in ("nc", "nl", "reg_max", "stride", "kpt_shape", "nk", "i", "f", "type", "np"):
            setattr(self, name, getattr(pose, name))

    def forward(self, x: list[Tensor]) -> Any:
        from ultralytics.utils.tal import dist2bbox, make_anchors

        kpts = torch.cat([branch(m).flatten(2) for branch, m in zip(self.cv4, x, strict=True)], 2)
        maps = [torch.cat([box(m), name(m)], dim=1) for box, name, m in zip(self.cv2, self.cv3, x, strict=True)]
        anchors, strides = (t.transpose(0, 1) for t in make_anchors(maps, self.stride, 0.5))
        boxes, logits = torch.cat([m.flatten(2) for m in maps], 2).split((4 * self.bins, self.classes), dim=1)
        placed = dist2bbox(self.dfl(boxes), anchors[None], xywh=True, dim=1) * strides
        x_y = (kpts[:, [0, 1]] * 2 + anchors[None] - 0.5) * strides
        points = torch.cat([x_y, kpts[:, 2:].sigmoid()], 1)  # of the first keypoint; of the others the visibility
        return torch.cat([placed, logits.sigmoid(), points], 1), (maps, kpts)


def test_heads_of_older_ultralytics() -> None:
    model, picture = built(HEADS[0])
    options: dict[str, Any] = {"imgsz": SIZE, "max_det": 3, "layers": "level", "target": "keypoint 0"}
    expected = Explainer(model, "odam", **options)(picture)
    old: Any = shadow(model)
    old.model[-1] = OldPose(old.model[-1])
    explanation = Explainer(old, "odam", **options)(picture)
    for ours, theirs in zip(explanation.maps, expected.maps, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE * float(theirs.abs().max()))


def test_hiding_the_hottest_pixels_hides_the_keypoint() -> None:
    """The scalar falls more than when as many cells elsewhere are hidden, over objects and keypoints."""
    model, picture = built(HEADS[0])
    cell, falls = 8, []
    grey = torch.from_numpy(cv2.GaussianBlur(picture, (0, 0), 15))
    for target in ("keypoint 0", "keypoint 3"):
        explainer = Explainer(model, "odam", "stem", target, max_det=3, imgsz=SIZE)
        explanation, adapter = explainer(picture), explainer.adapter
        for i, heat in enumerate(explanation.heatmaps):
            cells = nn.functional.avg_pool2d(heat[None, None], cell)
            order = cells.flatten().argsort(descending=True)
            count = len(order) // 10
            elsewhere = [order[count:][torch.randperm(len(order) - count)[:count]] for _ in range(2)]
            pictures = []
            for chosen in (order[:0], order[:count], *elsewhere):
                hidden = torch.zeros_like(order, dtype=torch.bool).index_fill(0, chosen, True).view_as(cells)
                mask = nn.functional.interpolate(hidden.float(), scale_factor=cell)[0, 0, :, :, None] > 0
                pictures.append(torch.where(mask, grey, torch.from_numpy(picture)).numpy())
            with torch.no_grad():
                outputs = adapter.forward(torch.stack([adapter.prepare(one)[0] for one in pictures]), 300)
                one = [explanation.objects.select(torch.tensor([i]))] * len(pictures)
                whole, hottest, *others = adapter.score(outputs, one, target).tolist()
            falls.append((whole - hottest, whole - float(np.mean(others))))
    hottest, others = np.mean(falls, axis=0)
    assert hottest > max(2 * others, 0), (hottest, others)


def keypoint_rcnn(seed: int, picture: np.ndarray) -> nn.Module:
    """Keypoint R-CNN on a small pyramid, with COCO's 17 keypoints."""
    torch.manual_seed(seed)
    parts = {
        "box_head": TwoMLPHead(WIDTH * 49, WIDTH),
        "box_predictor": FastRCNNPredictor(WIDTH, 2),
        "keypoint_roi_pool": MultiScaleRoIAlign(["0", "1", "2", "3"], 14, 2, canonical_scale=48),
        "keypoint_head": KeypointRCNNHeads(WIDTH, (16,)),
        "keypoint_predictor": KeypointRCNNPredictor(16, 17),
    }
    options = {**SMALL, **FEW_PROPOSALS, **pools(["0", "1", "2", "3"], mask=False)}
    return drawn(detection.KeypointRCNN(_pyramid([1, 2, 3, 4], LastLevelMaxPool()), **parts, **options), picture)


def test_keypoint_rcnn_scores_are_torchvisions(seed: int) -> None:
    picture = random_picture(seed, 120, 170)
    model = keypoint_rcnn(seed, picture)
    result = predict(model, picture)
    setup = Setup(model, [picture], conf_after(result["scores"], 5))
    outputs, objects, tensors = setup.run(setup.adapter.layers("level").names, max_det=5)
    for keypoint, name in enumerate(COCO):
        expected = result["keypoints_scores"][: len(objects[0]), keypoint]
        for target in (f"keypoint {keypoint}", f"keypoint {name}"):
            scalars = setup.adapter.score(outputs, objects, target)
            torch.testing.assert_close(scalars.detach(), expected, rtol=1e-3, atol=1e-3)
    assert_readouts_agree(setup.adapter, outputs, objects, tensors, "keypoint left_wrist")


def test_keypoint_rcnn_has_a_map_for_each_keypoint(seed: int) -> None:
    """In windows as by a plain backward, at a pyramid whose levels boxes and keypoints share differently."""
    picture = random_picture(seed, 120, 170)
    model = keypoint_rcnn(seed, picture)
    before = fingerprint(model)
    options: dict[str, Any] = {"conf": 0.0, "max_det": 4}
    maps = []
    for target in ("keypoint nose", "keypoint 16"):
        explainer = Explainer(model, "odam", "level", target, **options)
        scalar = partial(_named, explainer.adapter, target)
        explanation = explainer(picture)
        plain = Explainer(model, "odam", "level", scalar, **options)(picture)
        assert len(explanation) == 4
        for ours, theirs in zip(explanation.maps, plain.maps, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE * float(theirs.abs().max()))
        maps.append(explanation.maps[0])
    assert not torch.allclose(maps[0], maps[1])
    assert fingerprint(model) == before
    with pytest.raises(TargetError, match="'keypoint tail' does not exist for this torchvision pose model: choose one"):
        Explainer(model, target="keypoint tail")
    with pytest.raises(TargetError, match="'mask' does not exist for this torchvision pose model"):
        Explainer(model, target="mask")


def _named(adapter: Any, target: str, outputs: Any, objects: Any) -> Tensor:
    scalars: Tensor = adapter.score(outputs, objects, target)
    return scalars


def test_targets_by_number_and_by_name() -> None:
    people = keypoint_targets(17, ["person"])
    assert list(people)[:17] == [f"keypoint {i}" for i in range(17)]
    assert (people["keypoint left_wrist"], people["keypoint right_ankle"]) == (9, 16)
    assert len(people) == 34
    assert len(COCO) == 17
    assert list(keypoint_targets(2, ["person"])) == ["keypoint 0", "keypoint 1"]
    assert list(keypoint_targets(17, ["dog"])) == list(people)[:17]
    assert keypoint_targets(2, ["person"], {0: ["head", "tail"]}) == {
        "keypoint 0": 0, "keypoint 1": 1, "keypoint head": 0, "keypoint tail": 1,
    }  # fmt: skip
    unnamed = {"keypoint 0": 0, "keypoint 1": 1}
    assert keypoint_targets(2, ["person"], {0: ["1", "0"]}) == unnamed, "a number is never a name"
    for given in ({0: ["head", "tail"], 1: ["bow", "stern"]}, {0: ["head"]}, None, ["head", "tail"], {0: "ab"}, {0: 2}):
        assert keypoint_targets(2, ["person"], given) == unnamed
    assert keypoint_targets(0, ["person"]) == {}


def test_a_name_is_another_word_for_its_number() -> None:
    model, picture = built(HEADS[0])
    named: Any = shadow(model)
    named.kpt_names = {i: ["a", "b", "c", "d", "left wing"] for i in range(7)}
    options: dict[str, Any] = {"method": "odam", "layers": "level", "imgsz": SIZE, "max_det": 2}
    explanation = Explainer(named, target="keypoint left wing", **options)(picture)
    assert torch.equal(explanation.heatmaps, Explainer(model, target="keypoint 4", **options)(picture).heatmaps)
    assert explanation.settings["target"] == "keypoint left wing"


def test_a_wrong_keypoint_is_told_what_exists() -> None:
    model, _ = built(HEADS[0])
    make = partial(Explainer, model, imgsz=SIZE)
    listed = "choose one of keypoint 0, keypoint 1, keypoint 2, keypoint 3, keypoint 4"
    for wrong in ("keypoint 5", "keypoint left_wrist", "keypoint N", "keypoint -1"):
        with pytest.raises(TargetError, match=f"'{wrong}' does not exist for this ultralytics pose model: {listed}$"):
            make(target=wrong)
    with pytest.raises(TargetError, match="'keypoint' does not exist: did you mean 'keypoint N'"):
        make(target="keypoint")
    detector = YoloAdapter.unwrap(__import__("ultralytics").YOLO("yolov8n.yaml"))
    with pytest.raises(TargetError, match="'keypoint 3' does not exist for this ultralytics detect model: choose one"):
        Explainer(detector, target="keypoint 3")
