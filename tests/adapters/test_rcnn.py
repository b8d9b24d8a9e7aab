"""Two-stage detectors: torchvision's own objects and masks, scalars of the kept proposal, maps in source pixels."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from support import few, few_rows, fingerprint, random_picture
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign
from torchvision_models import (
    TWO_STAGE,
    WIDTH,
    Bright,
    Setup,
    architecture,
    as_tensor,
    assert_a_list_gives_what_single_pictures_give,
    assert_hot_on_the_square,
    assert_readouts_agree,
    assert_same_objects,
    assert_sound_maps,
    conf_after,
    predict,
    slopes,
    small,
    square,
)

from detcam import Explainer
from detcam.engine import object_gradients
from detcam.errors import ImageError, TargetError
from detcam.types import image_index

BOX_SCALARS = ("class", "prob", "margin", "box", "left", "top", "right", "bottom")


@pytest.fixture
def picture(seed: int) -> np.ndarray:
    return random_picture(seed, 120, 170)


@pytest.mark.nightly
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", TWO_STAGE)
def test_every_architecture(name: str, picture: np.ndarray, seed: int) -> None:
    model = architecture(name, seed, picture)
    result = predict(model, picture)
    conf = conf_after(result["scores"], 6)
    before = fingerprint(model)
    for preset in ("level", "evidence"):
        explanation = Explainer(model, layers=preset, conf=conf)(picture)
        assert_same_objects(explanation, result, conf)
        assert_sound_maps(explanation)
    if "mask" in name:
        explanation = Explainer(model, conf=conf, target="mask")(picture)
        assert_sound_maps(explanation)
    else:
        assert explanation.masks is None
        with pytest.raises(TargetError, match="mask"):
            Explainer(model, target="mask")
    assert fingerprint(model) == before


@pytest.mark.parametrize("shape", few([(41, 333), (5, 3), (1, 1), (211, 117)], (41, 333)), ids=str)
def test_pictures_of_any_shape(shape: tuple[int, int], seed: int) -> None:
    picture = random_picture(seed, *shape)
    model = small("mask", seed, picture)
    result = predict(model, picture)
    conf = conf_after(result["scores"], 5)
    explanation = Explainer(model, conf=conf)(picture)
    assert_same_objects(explanation, result, conf)
    assert_sound_maps(explanation, reads_anything(Setup(model, [picture], conf)))


def reads_anything(setup: Setup) -> list[bool]:
    """For each object, whether its proposal lies on the maps: where padding more than doubles a side, torchvision
    takes the maps' scale for too large, and regions on the right of a wide picture are read outside of them."""
    _, objects, _ = setup.run()
    pooled: list[Tensor] = []
    heads: Any = setup.model.roi_heads
    handle = heads.box_head.register_forward_pre_hook(lambda module, given: pooled.append(given[0]))
    predict(setup.model, setup.pictures[0])
    handle.remove()
    return [bool(read) for read in pooled[0].flatten(1).any(dim=1)[objects[0].index]]


def test_a_picture_that_torchvision_resizes_to_nothing(seed: int) -> None:
    model = small("faster", seed, random_picture(seed, 60, 60))
    with pytest.raises(ImageError, match="400 x 1 pixels"):
        Explainer(model)(random_picture(seed, 1, 400))


@pytest.mark.parametrize(
    "settings",
    few([{"conf": 0.3}, {"conf": 0.01}, {"conf": 0.2, "max_det": 3}, {"conf": 1.0}], {"conf": 0.01}),
    ids=str,
)
def test_conf_and_max_det(settings: dict[str, Any], picture: np.ndarray, seed: int) -> None:
    """A threshold below the model's own lowers it; one above filters what the model returns."""
    model: Any = small("faster", seed, picture).double()  # or rounding may exchange two objects
    model.roi_heads.score_thresh = 0.1
    explanation = Explainer(model, **settings)(picture)
    assert model.roi_heads.score_thresh == 0.1
    model.roi_heads.score_thresh = min(0.1, settings["conf"])
    assert_same_objects(explanation, predict(model, picture), **settings)


def test_imgsz_is_the_shorter_side(picture: np.ndarray, seed: int) -> None:
    model: Any = small("faster", seed, picture).double()
    explainer = Explainer(model, imgsz=48, conf=0.1)
    explanation = explainer(picture)
    assert explanation.settings["imgsz"] == 48
    assert explanation.geometry.resized == (48, 68)
    assert model.transform.min_size == (64,)
    model.transform.min_size, model.transform.max_size = (48,), 96
    assert_same_objects(explanation, predict(model, picture), 0.1)


@pytest.mark.nightly
def test_a_list_gives_what_single_pictures_give(seed: int) -> None:
    """Two of them are padded to one size from different ones, and proposals end where the picture does."""
    shapes = [(120, 170), (120, 172), (170, 120)]
    pictures = [random_picture(seed + i, *shape) for i, shape in enumerate(shapes)]
    model = small("faster", seed, pictures[0])
    networks = [e.geometry.network for e in Explainer(model)(pictures[:2])]
    assert networks[0] == networks[1]
    assert_a_list_gives_what_single_pictures_give(model, pictures, conf=0.3, max_det=4)


def set_up(kind: str, seed: int, dtype: torch.dtype = torch.float32, shape: tuple[int, int] = (120, 170)) -> Setup:
    pictures = [random_picture(seed + i, *shape) for i in range(2)]
    return Setup(small(kind, seed, pictures[0]).to(dtype), pictures, conf=0.2)


def test_scores_are_those_of_the_kept_proposal(seed: int) -> None:
    """Against what hooks see while torchvision predicts, with no code of ours in between."""
    setup = set_up("faster", seed)
    outputs, objects, _ = setup.run()
    for image, found in enumerate(objects):
        seen: dict[str, Any] = {}
        heads: Any = setup.model.roi_heads
        handles = [
            setup.model.rpn.register_forward_hook(lambda m, a, out, s=seen: s.update(proposals=out[0][0])),
            heads.box_predictor.register_forward_hook(lambda m, a, out, s=seen: s.update(raw=out)),
        ]
        predict(setup.model, setup.pictures[image])
        for handle in handles:
            handle.remove()
        logits, deltas = (value[found.index] for value in seen["raw"])
        one = [found if i == image else o.select(torch.zeros(0, dtype=torch.int64)) for i, o in enumerate(objects)]
        scores = {target: setup.adapter.score(outputs, one, target) for target in BOX_SCALARS}
        rows = torch.arange(len(found))
        own = logits[rows, found.class_ids]
        torch.testing.assert_close(scores["class"], own, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(scores["prob"], found.scores, rtol=1e-4, atol=1e-4)
        rest = torch.stack(
            [torch.cat([row[1:k], row[k + 1 :]]).max() for row, k in zip(logits, found.class_ids, strict=True)]
        )  # without the background
        torch.testing.assert_close(scores["margin"], own - rest, rtol=1e-4, atol=1e-4)
        # Sides lead from the proposal's centre to the decoded box, which is clipped to the picture only afterwards.
        region = seen["proposals"][found.index]
        left, top, right, bottom = (scores[side] for side in BOX_SCALARS[4:])
        x, y = (region[:, 0] + region[:, 2]) / 2, (region[:, 1] + region[:, 3]) / 2
        boxes = torch.stack([x - left, y - top, x + right, y + bottom], dim=1)
        limit = torch.tensor(setup.geometries[image].resized[::-1] * 2)
        torch.testing.assert_close(boxes.clamp(min=0).minimum(limit), found.network_boxes, rtol=0, atol=1e-2)
        assert torch.equal(scores["box"], torch.stack([left, top, right, bottom], dim=1))
        dx = deltas.view(len(found), -1, 4)[rows, found.class_ids, 0] / 10  # torchvision's weights are 10, 10, 5, 5
        shift = dx * (region[:, 2] - region[:, 0])
        torch.testing.assert_close((right - left) / 2, shift, rtol=1e-3, atol=1e-2)


def test_mask_score_is_the_mean_logit_over_the_fixed_mask(seed: int) -> None:
    setup = set_up("mask", seed, torch.float64)  # or rounding decides on which side of 0 a cell lies
    outputs, objects, _ = setup.run()
    scores = iter(setup.adapter.score(outputs, objects, "mask"))
    for picture, found in zip(setup.pictures, objects, strict=True):
        seen: list[Tensor] = []
        predictor: Any = setup.model.roi_heads.mask_predictor
        handle = predictor.register_forward_hook(lambda m, a, out, s=seen: s.append(out))
        predict(setup.model, picture)
        handle.remove()
        for i in range(len(found)):  # torchvision's first objects are ours
            logits = seen[0][i, found.class_ids[i]]
            expected = logits[logits > 0].mean() if bool((logits > 0).any()) else logits.max()
            torch.testing.assert_close(next(scores), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("target", few(["class", "mask"], "mask"))
def test_a_changed_picture_is_scored_at_the_same_regions(target: str, seed: int) -> None:
    """Methods that mask the picture ask for the scores of the same proposals and masks in several changed pictures."""
    setup = set_up("mask", seed)
    outputs, objects, _ = setup.run()
    own = setup.adapter.score(outputs, objects, target)[: len(objects[0])]
    changed = setup.adapter.forward(torch.stack([setup.batch[0], setup.batch[0] * 0.5, setup.batch[1]]), 300)
    scores = setup.adapter.score(changed, [objects[0]] * 3, target).view(3, -1)
    torch.testing.assert_close(scores[0], own, rtol=1e-3, atol=1e-3)
    assert not torch.isclose(scores[0], scores[1], rtol=1e-2).all()
    heads: Any = setup.model.roi_heads
    with torch.no_grad():  # by hand at the second picture
        features = setup.model.backbone(setup.batch[:1] * 0.5)
        if target == "class":
            pooled = heads.box_roi_pool(features, [objects[0].proposals], [setup.geometries[0].resized])
            logits = heads.box_predictor(heads.box_head(pooled))[0]
            expected = logits[torch.arange(len(logits)), objects[0].class_ids]
        else:
            pooled = heads.mask_roi_pool(features, [objects[0].network_boxes], [setup.geometries[0].resized])
            logits = heads.mask_predictor(heads.mask_head(pooled))[torch.arange(len(own)), objects[0].class_ids]
            masks = [m > 0 if bool((m > 0).any()) else m == m.max() for m in objects[0].mask_logits]
            expected = torch.stack([one[mask].mean() for one, mask in zip(logits, masks, strict=True)])
    torch.testing.assert_close(scores[1], expected, rtol=1e-3, atol=1e-3)


def test_candidates_hold_the_best_class_of_every_proposal(seed: int) -> None:
    setup = set_up("faster", seed, shape=(128, 192))  # needs no padding, where alone candidates clip otherwise
    assert setup.geometries[0].resized == setup.geometries[0].network
    outputs, objects, _ = setup.run()
    boxes, probabilities, confidence = setup.adapter.candidates(outputs)
    assert probabilities.shape == (*boxes.shape[:2], 5)
    assert bool((probabilities[..., 0] == 0).all())
    torch.testing.assert_close(confidence, probabilities.amax(dim=2))
    for image, found in enumerate(objects):
        limit = torch.tensor(setup.geometries[image].resized[::-1] * 2)
        clipped = boxes[image].clamp(min=0).minimum(limit)
        distance = (clipped[:, None] - found.network_boxes).abs().amax(dim=2)  # [A, N]
        best = probabilities[image].argmax(dim=1)
        fits = (distance < 0.1) & (best[:, None] == found.class_ids)
        strongest = [i for i in range(len(found)) if bool(fits[:, i].any())]
        assert strongest, "an object that is its proposal's best class is among them"
        for i in strongest:
            assert bool(torch.isclose(confidence[image][fits[:, i]], found.scores[i], atol=1e-3).any())


def test_objects_keep_masks_and_regions_in_step(seed: int) -> None:
    _, objects, _ = set_up("mask", seed).run()
    found = objects[0]
    chosen = found.select(torch.tensor([1, 0]))
    for name in ("masks", "mask_logits", "proposals"):
        whole, kept = getattr(found, name), getattr(chosen, name)
        assert torch.equal(kept, whole[[1, 0]])


@pytest.mark.parametrize("kind", few(["faster", "mask"], "mask"))
def test_gradients_agree_with_finite_differences(kind: str, seed: int) -> None:
    setup = set_up(kind, seed, torch.float64)
    names = setup.adapter.layers("level").names
    outputs, objects, tensors = setup.run(names, max_det=3)
    image = image_index(objects, torch.device("cpu"))
    along = [torch.randn_like(t) for t in tensors]

    def score(maps: list[Tensor], target: str) -> Tensor:
        replaced = dict(zip(outputs.features, [*maps, *list(outputs.features.values())[len(maps) :]], strict=True))
        scalars = setup.adapter.score(dataclasses.replace(outputs, features=replaced), objects, target)
        return scalars if scalars.ndim == 2 else scalars[:, None]

    for target in ("class", "prob", "margin", "box", *(["mask"] if kind == "mask" else [])):
        expected = slopes(lambda maps, t=target: score(maps, t), [t.detach() for t in tensors], along, 1e-6)
        scalars = setup.adapter.score(outputs, objects, target)
        scalars = scalars if scalars.ndim == 2 else scalars[:, None]
        for column in range(scalars.shape[1]):
            for turn, gradients in object_gradients(scalars[:, column], image, tensors):
                for row, i in enumerate(turn.tolist()):
                    ours = sum(
                        float((g[row] * d[image[i]]).sum())
                        for g, d in zip(gradients, along, strict=True)
                        if g is not None
                    )
                    assert ours != 0
                    assert ours == pytest.approx(float(expected[i, column]), rel=1e-3, abs=1e-6), target


def test_the_gradient_lives_at_the_objects_own_level(seed: int) -> None:
    set_up("faster", seed).assert_the_gradient_lives_at_the_objects_own_level()


@pytest.mark.parametrize(
    ("preset", "target"), few_rows([("level", "class"), ("evidence", "box"), ("level", "mask")], ("level", "mask"))
)
def test_readouts_give_the_gradients_of_the_plain_backward(target: str, preset: str, seed: int) -> None:
    """All objects of both pictures from one backward, each in its window, against one whole backward for each."""
    setup = set_up("mask", seed)
    outputs, objects, tensors = setup.run(setup.adapter.layers(preset).names, max_det=4)
    assert_readouts_agree(setup.adapter, outputs, objects, tensors, target)


@pytest.mark.parametrize("shape", few([(90, 150), (150, 90), (64, 64), (100, 37)], (90, 150)), ids=str)
def test_a_planted_square_is_hot_where_it_was_planted(shape: tuple[int, int], seed: int) -> None:
    """All parts pass brightness on: the first stage takes the brightest anchors, the second their mean brightness."""
    picture, planted = square(shape, seed)
    model: Any = detection.FasterRCNN(
        Bright(),
        min_size=128,
        max_size=512,
        rpn_anchor_generator=AnchorGenerator(((32,),), ((1.0,),)),
        box_roi_pool=MultiScaleRoIAlign(["0"], 7, 2),
        box_head=detection.faster_rcnn.TwoMLPHead(2 * 49, 2),
        box_predictor=detection.faster_rcnn.FastRCNNPredictor(2, 2),
    ).eval()
    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, (nn.Conv2d, nn.Linear)):
                nn.init.zeros_(part.weight)
                nn.init.zeros_(part.bias)
        model.rpn.head.conv[0][0].weight[0, 0, 1, 1] = 1.0
        model.rpn.head.cls_logits.weight[0, 0] = 1.0
        model.roi_heads.box_head.fc6.weight[0] = 1 / 98
        model.roi_heads.box_head.fc7.weight[0, 0] = 1.0
        model.roi_heads.box_predictor.cls_score.weight[1, 0] = 3.0
    explanation = Explainer(model, conf=0.6)(picture)
    assert len(explanation) >= 1
    assert_same_objects(explanation, predict(model, picture), 0.6)
    assert_hot_on_the_square(explanation, planted)


def test_names_of_classes(picture: np.ndarray, seed: int) -> None:
    model: Any = small("faster", seed, picture)
    assert Explainer(model, conf=0.1)(picture).labels[0].startswith("class ")
    model.roi_heads.box_predictor = detection.faster_rcnn.FastRCNNPredictor(WIDTH, 91)
    explanation = Explainer(model, conf=0.0, max_det=20)(picture)
    categories = detection.FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    assert explanation.labels == [categories[i] for i in explanation.class_ids.tolist()]


def test_a_broken_model_gives_no_nan(picture: np.ndarray, seed: int) -> None:
    model: Any = small("mask", seed, picture)
    nn.init.constant_(model.roi_heads.box_predictor.bbox_pred.bias[8:12].data, float("nan"))
    explanation = Explainer(model, conf=0.05)(picture)
    assert bool(explanation.boxes.isfinite().all())
    nn.init.constant_(model.roi_heads.box_predictor.cls_score.bias.data, float("nan"))
    assert len(Explainer(model, conf=0.05)(picture)) == 0


def test_a_derived_class_and_a_model_in_training(picture: np.ndarray, seed: int) -> None:
    model: Any = small("faster", seed, picture)
    expected = Explainer(model, conf=0.2)(picture)
    model.__class__ = type("MyDetector", (type(model),), {"__module__": "my_project"})
    model.train()
    before = fingerprint(model)
    explanation = Explainer(model, conf=0.2)(as_tensor(picture))
    assert fingerprint(model) == before
    assert torch.equal(explanation.boxes, expected.boxes)
    assert all(torch.equal(a, b) for a, b in zip(explanation.maps, expected.maps, strict=True))
