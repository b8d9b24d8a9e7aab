"""One-stage detectors: torchvision's own objects, scalars of the kept anchor, maps in source pixels."""

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from support import few, few_rows, fingerprint, random_picture
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.fcos import FCOS, FCOSHead
from torchvision.models.detection.ssd import SSD, SSDHead
from torchvision_models import (
    DENSE,
    Bright,
    Setup,
    architecture,
    assert_hot_on_the_square,
    assert_readouts_agree,
    assert_same_objects,
    assert_sound_maps,
    conf_after,
    predict,
    small,
    square,
)

from detcam import Explainer
from detcam.engine import object_gradients
from detcam.errors import TargetError
from detcam.types import image_index

SCALARS = ("class", "prob", "margin", "box", "left", "top", "right", "bottom")
KINDS = ["retinanet", "fcos", "ssdlite320_mobilenet_v3_large"]
SHAPES = [(90, 150), (150, 90), (64, 64), (100, 37)]


@pytest.fixture
def picture(seed: int) -> np.ndarray:
    return random_picture(seed, 120, 170)


def built(kind: str, seed: int, picture: np.ndarray) -> nn.Module:
    return architecture(kind, seed, picture) if kind in DENSE else small(kind, seed, picture)


@pytest.mark.nightly
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", DENSE)
def test_every_architecture(name: str, picture: np.ndarray, seed: int) -> None:
    model = architecture(name, seed, picture)
    result = predict(model, picture)
    conf = conf_after(result["scores"], 6)
    before = fingerprint(model)
    for preset in ("level", "evidence"):
        explanation = Explainer(model, layers=preset, conf=conf)(picture)
        assert_same_objects(explanation, result, conf)
        assert_sound_maps(explanation)
        assert explanation.masks is None
    assert fingerprint(model) == before
    for target in ("objectness", "mask"):
        if (name, target) != ("fcos_resnet50_fpn", "objectness"):
            with pytest.raises(TargetError, match=target):
                Explainer(model, target=target)


@pytest.mark.parametrize(("kind", "shape"), few_rows(product(KINDS, [(41, 333), (1, 1), (211, 117)]), ("fcos", (1, 1))))
def test_pictures_of_any_shape(kind: str, shape: tuple[int, int], seed: int) -> None:
    picture = random_picture(seed, *shape)
    model = built(kind, seed, picture).double()  # or rounding may exchange two objects
    result = predict(model, picture)
    conf = conf_after(result["scores"], 5)
    explanation = Explainer(model, conf=conf)(picture)
    assert_same_objects(explanation, result, conf)
    assert_sound_maps(explanation)


@pytest.mark.parametrize(
    ("kind", "settings"),
    few_rows(
        product(KINDS, [{"conf": 0.6}, {"conf": 0.05}, {"conf": 0.2, "max_det": 3}, {"conf": 1.0}]),
        ("retinanet", {"conf": 0.05}),
        ("fcos", {"conf": 0.2, "max_det": 3}),
    ),
    ids=str,
)
def test_conf_and_max_det(kind: str, settings: dict[str, Any], picture: np.ndarray, seed: int) -> None:
    """A threshold below the model's own lowers it; one above filters what the model returns."""
    model: Any = built(kind, seed, picture).double()
    model.score_thresh = 0.3
    explanation = Explainer(model, **settings)(picture)
    assert model.score_thresh == 0.3
    model.score_thresh = min(0.3, settings["conf"])
    assert_same_objects(explanation, predict(model, picture), **settings)


def test_imgsz(picture: np.ndarray, seed: int) -> None:
    """The shorter side, or both for SSD."""
    model: Any = small("fcos", seed, picture).double()  # norms over a single cell make much of float32's rounding
    explanation = Explainer(model, layers="level", imgsz=48, conf=0.3)(picture)
    assert explanation.geometry.resized == (48, 68)
    model.transform.min_size = (48,)
    assert_same_objects(explanation, predict(model, picture), 0.3)
    model = architecture("ssdlite320_mobilenet_v3_large", seed, picture).double()
    explanation = Explainer(model, layers="level", imgsz=256, conf=0.3)(picture)
    assert explanation.geometry.network == (256, 256)
    assert explanation.settings["imgsz"] == 256
    model.transform.fixed_size = (256, 256)
    assert_same_objects(explanation, predict(model, picture), 0.3)


def set_up(kind: str, seed: int, dtype: torch.dtype = torch.float32) -> Setup:
    pictures = [random_picture(seed + i, 120, 170) for i in range(2)]
    return Setup(built(kind, seed, pictures[0]).to(dtype), pictures, conf=0.3)


def targets(setup: Setup) -> list[str]:
    return [target for target in (*SCALARS, "objectness") if target in setup.adapter.available]


@pytest.mark.parametrize("kind", few(KINDS, "fcos", "ssdlite320_mobilenet_v3_large"))
def test_scores_are_those_of_the_kept_anchor(kind: str, seed: int) -> None:
    """Against what hooks see while torchvision predicts, with no code of ours in between."""
    setup = set_up(kind, seed)
    outputs, objects, _ = setup.run()
    softmax = kind.startswith("ssd")
    for image, found in enumerate(objects):
        seen: dict[str, Any] = {}
        handles = [
            setup.model.head.register_forward_hook(lambda m, a, out, s=seen: s.update(out)),
            setup.model.anchor_generator.register_forward_hook(lambda m, a, out, s=seen: s.update(anchors=out[0])),
        ]
        predict(setup.model, setup.pictures[image])
        for handle in handles:
            handle.remove()
        logits, anchors = seen["cls_logits"][0, found.index], seen["anchors"][found.index]
        one = [found if i == image else o.select(torch.zeros(0, dtype=torch.int64)) for i, o in enumerate(objects)]
        scores = {target: setup.adapter.score(outputs, one, target) for target in targets(setup)}
        own = logits[torch.arange(len(found)), found.class_ids]
        torch.testing.assert_close(scores["class"], own, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(scores["prob"], found.scores, rtol=1e-4, atol=1e-4)
        share = logits.softmax(dim=1)[torch.arange(len(found)), found.class_ids] if softmax else own.sigmoid()
        if "objectness" in scores:
            centre = seen["bbox_ctrness"][0, found.index, 0]
            torch.testing.assert_close(scores["objectness"], centre, rtol=1e-4, atol=1e-4)
            share = (share * centre.sigmoid()).sqrt()
        torch.testing.assert_close(scores["prob"], share, rtol=1e-4, atol=1e-4)
        first = int(softmax)  # after the background
        pairs = zip(logits, found.class_ids, strict=True)
        rest = torch.stack([torch.cat([r[first:k], r[k + 1 :]]).max() for r, k in pairs])
        torch.testing.assert_close(scores["margin"], own - rest, rtol=1e-4, atol=1e-4)
        # Sides lead from the anchor's centre to the decoded box, which is clipped to the picture only afterwards.
        left, top, right, bottom = (scores[side] for side in SCALARS[4:])
        x, y = (anchors[:, 0] + anchors[:, 2]) / 2, (anchors[:, 1] + anchors[:, 3]) / 2
        boxes = torch.stack([x - left, y - top, x + right, y + bottom], dim=1)
        limit = torch.tensor(setup.geometries[image].resized[::-1] * 2)
        torch.testing.assert_close(boxes.clamp(min=0).minimum(limit), found.network_boxes, rtol=1e-5, atol=1e-2)
        assert torch.equal(scores["box"], torch.stack([left, top, right, bottom], dim=1))
        height, width = setup.batch.shape[2:]
        for level, (row, column), cx, cy in zip(found.level.tolist(), found.cells.tolist(), x, y, strict=True):
            rows, columns = outputs.cells[level]
            # Anchors lie at the cells' first corner in RetinaNet and FCOS, in their middle in SSD.
            shift = 0.5 if softmax else 0.0
            assert float(cy) / (height // rows if not softmax else height / rows) == pytest.approx(
                row + shift, abs=0.51
            )
            assert float(cx) / (width // columns if not softmax else width / columns) == pytest.approx(
                column + shift, abs=0.51
            )


@pytest.mark.parametrize("kind", few(KINDS, "fcos"))
def test_gradients_agree_with_finite_differences(kind: str, seed: int) -> None:
    """In float64, along a random direction at all feature maps: from `score`, and from the library's own head."""
    setup = set_up(kind, seed, torch.float64)
    names = setup.adapter.layers("level").names
    outputs, objects, tensors = setup.run(names, max_det=2)
    image = image_index(objects, torch.device("cpu"))
    along = [torch.randn_like(t) for t in tensors]
    values = {}
    for sign in (1e-6, -1e-6):
        replaced = {name: (t.detach() + sign * d) for name, t, d in zip(names, tensors, along, strict=True)}
        handles = [
            setup.adapter.module.get_submodule(name).register_forward_hook(lambda m, a, o, r=value: r)
            for name, value in replaced.items()
        ]
        with torch.no_grad():
            moved = setup.adapter.forward(setup.batch, 300)
            values[sign] = {target: setup.adapter.score(moved, objects, target) for target in targets(setup)}
        for handle in handles:
            handle.remove()
    for target in set(targets(setup)) & {"class", "prob", "margin", "left", "objectness"}:
        slope = (values[1e-6][target] - values[-1e-6][target]) / 2e-6
        scalars = setup.adapter.score(outputs, objects, target)
        for turn, gradients in object_gradients(scalars, image, tensors):
            for row, i in enumerate(turn.tolist()):
                ours = sum(
                    float((g[row] * d[image[i]]).sum()) for g, d in zip(gradients, along, strict=True) if g is not None
                )
                assert ours == pytest.approx(float(slope[i]), rel=1e-3, abs=1e-5), target


@pytest.mark.parametrize("kind", few(KINDS, "retinanet"))
def test_the_gradient_lives_at_the_objects_own_level(kind: str, seed: int) -> None:
    set_up(kind, seed).assert_the_gradient_lives_at_the_objects_own_level()


@pytest.mark.parametrize(
    ("kind", "preset", "target"),
    few_rows(
        [(kind, *each) for kind, each in product(KINDS, [("level", "class"), ("level", "box"), ("evidence", "prob")])],
        *(("retinanet", "level", "class"), ("fcos", "evidence", "prob")),
        ("ssdlite320_mobilenet_v3_large", "level", "box"),
    ),
)
def test_readouts_give_the_gradients_of_the_plain_backward(kind: str, preset: str, target: str, seed: int) -> None:
    setup = set_up(kind, seed)
    outputs, objects, tensors = setup.run(setup.adapter.layers(preset).names, max_det=4)
    assert_readouts_agree(setup.adapter, outputs, objects, tensors, target)


def test_a_head_of_the_users_own_gets_a_plain_backward(picture: np.ndarray, seed: int) -> None:
    model: Any = small("retinanet", seed, picture)
    expected = Explainer(model, conf=0.5)(picture)
    inner = model.head

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, maps: list[Tensor]) -> Any:
            return self.inner(maps)

    model.head = Own()
    explanation = Explainer(model, conf=0.5)(picture)
    assert torch.equal(explanation.boxes, expected.boxes)
    for ours, theirs in zip(explanation.maps, expected.maps, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4 * float(theirs.abs().max()))


@torch.no_grad()
def bright_detector(kind: str) -> nn.Module:
    """A detector whose class logit at a cell is the brightness of that cell; its boxes are its anchors."""
    given: dict[str, Any] = {"min_size": 128, "max_size": 512}
    model: Any
    if kind == "ssd":
        boxes = DefaultBoxGenerator([[]], scales=[0.2, 0.2], clip=False)
        model = SSD(Bright(), boxes, (160, 128), 2, head=SSDHead([2], [2], 2))
    elif kind == "fcos":
        anchors = AnchorGenerator(((32,),), ((1.0,),))
        model = FCOS(Bright(), 2, anchor_generator=anchors, head=FCOSHead(2, 1, 2, num_convs=0), **given)
    else:
        model = detection.RetinaNet(Bright(), 2, anchor_generator=AnchorGenerator(((32,),), ((1.0,),)), **given)
    for part in model.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.zeros_(part.weight)
            nn.init.zeros_(part.bias)
    head = model.head
    if kind == "ssd":
        head.classification_head.module_list[0].weight[1, :, 1, 1] = 1.0  # the first anchor's class 1
        return model.eval()
    if kind == "retinanet":
        for block in head.classification_head.conv:
            block[0].weight[0, 0, 1, 1] = 1.0
    head.classification_head.cls_logits.weight[1, 0, 1, 1] = 1.0
    head.regression_head.bbox_reg.bias.fill_(0.5)
    return model.eval()


@pytest.mark.parametrize(
    ("kind", "shape"),
    few_rows(product(["retinanet", "fcos", "ssd"], SHAPES), *zip(["retinanet", "fcos", "ssd"], SHAPES, strict=False)),
)
def test_a_planted_square_is_hot_where_it_was_planted(kind: str, shape: tuple[int, int], seed: int) -> None:
    picture, planted = square(shape, seed)
    model = bright_detector(kind)
    result = predict(model, picture)
    conf = float(result["scores"][0]) - 1e-4
    explanation = Explainer(model, layers="level", conf=conf)(picture)
    assert len(explanation) >= 1
    assert_same_objects(explanation, result, conf)
    assert_hot_on_the_square(explanation, planted, one_cell=True)


def test_a_broken_model_gives_no_nan(picture: np.ndarray, seed: int) -> None:
    model: Any = small("retinanet", seed, picture)
    model.head.regression_head.bbox_reg.bias.data[:4] = float("nan")
    explanation = Explainer(model, conf=0.3)(picture)
    assert bool(explanation.boxes.isfinite().all())
    model.head.classification_head.cls_logits.bias.data.fill_(float("nan"))
    assert len(Explainer(model, conf=0.3)(picture)) == 0
