"""RF-DETR of the rfdetr package: what its own predict returns, a sound map for each object, exact gradients."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from detr_models import middle
from differences import slopes
from square_change import assert_square_is_hot
from support import assert_same_objects, fingerprint, random_picture
from torch import Tensor, nn

from detcam import Explainer
from detcam.adapters.rfdetr import RfdetrAdapter
from detcam.engine import shadow
from detcam.errors import ModelError, TargetError

rfdetr = pytest.importorskip("rfdetr")

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*pretrain_weights=None"),
    pytest.mark.filterwarnings("ignore:.*jit.script:FutureWarning"),
]

KINDS = ("RFDETRNano", "RFDETRSegNano")
QUERIES = 20


def random_rfdetr(kind: str, seed: int, **settings: Any) -> Any:
    """A wrapper whose small model has random weights and looks at 96 x 96 pixels; without a download."""
    torch.manual_seed(seed)
    small = {
        "pretrain_weights": None,
        "device": "cpu",
        "resolution": 96,
        "num_classes": 5,
        "num_queries": QUERIES,
        "num_select": QUERIES,
        "group_detr": 1,
        "hidden_dim": 64,
        "sa_nheads": 4,
        "ca_nheads": 4,
        "dec_layers": 2,
        "out_feature_indexes": [1, 2],
    }
    wrapper = getattr(rfdetr, kind)(**{**small, **settings})
    blocks = wrapper.model.model.backbone[0].encoder.encoder.encoder
    blocks.layer = blocks.layer[:2]  # nothing reads the others
    with torch.no_grad():
        for name, module in wrapper.model.model.named_modules():
            if isinstance(module, nn.Linear) and not name.endswith("sampling_offsets"):
                gain = 0.2 if name.startswith("bbox_embed.layers.2") else 1.0
                nn.init.normal_(module.weight, 0, gain * module.in_features**-0.5)
            elif name.endswith("norm_in"):
                nn.init.ones_(module.weight)  # fresh ones are zero, and so are all masks
    wrapper.model.model.eval()
    return wrapper


def as_result(detections: Any) -> Any:
    boxes, scores = torch.from_numpy(detections.xyxy), torch.from_numpy(detections.confidence)
    return SimpleNamespace(boxes=SimpleNamespace(xyxy=boxes, conf=scores, cls=torch.from_numpy(detections.class_id)))


def raw_of(wrapper: Any, picture: np.ndarray) -> dict[str, Tensor]:
    """What the model puts out for one picture, prepared by hand."""
    pixels = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
    pixels = nn.functional.interpolate(pixels, (96, 96), mode="bilinear", align_corners=False)
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        outputs = wrapper.model.model((pixels - mean[:, None, None]) / deviation[:, None, None])
    return {name: value[0] for name, value in outputs.items() if isinstance(value, Tensor)}


@pytest.mark.parametrize("kind", KINDS)
def test_predicts_objects_each_get_a_map(kind: str, seed: int) -> None:
    picture = random_picture(seed, 80, 120)
    wrapper = random_rfdetr(kind, seed)
    conf = middle(torch.from_numpy(wrapper.predict(picture, threshold=0.0).confidence))
    result = wrapper.predict(picture, threshold=conf)
    raw = raw_of(wrapper, picture)
    before = fingerprint(wrapper.model.model)
    targets = ("class", "left", "mask") if "Seg" in kind else ("class", "left")
    explanations = [
        Explainer(wrapper, conf=conf, layers=layers, target=target)(picture)
        for layers in ("level", "evidence")
        for target in targets
    ]
    assert fingerprint(wrapper.model.model) == before

    first = explanations[0]
    assert len(first) >= 3
    assert_same_objects(first, as_result(result), box=1e-2)
    assert sorted(first.labels) == sorted(result.data["class_name"])
    # The index is the query: its logit is the object's.
    own = raw["pred_logits"].sigmoid()[first.objects.index, first.class_ids]
    torch.testing.assert_close(own, first.scores, rtol=0, atol=1e-4)
    if "Seg" in kind:
        assert first.masks is not None
        assert float((first.masks == torch.from_numpy(result.mask)).float().mean()) > 0.999
        assert first.objects.mask_logits is not None
        expected = raw["pred_masks"][first.objects.index]
        torch.testing.assert_close(first.objects.mask_logits, expected, rtol=1e-3, atol=1e-3)
    for explanation in explanations:
        assert len(explanation) == len(first)
        assert all(bool(m.isfinite().all()) and bool(m.any()) for m in explanation.maps), explanation.notes
        assert explanation.heatmaps.shape == (len(first), 80, 120)
        other = next(i for i, query in enumerate(first.objects.index) if query != first.objects.index[0])
        assert not torch.equal(explanation.maps[0], explanation.maps[other])


def test_the_module_inside_gives_the_same_maps(seed: int) -> None:
    picture = random_picture(seed, 80, 120)
    wrapper = random_rfdetr("RFDETRNano", seed)
    whole = Explainer(wrapper, conf=0.0, max_det=3)(picture)
    inside = Explainer(wrapper.model.model, conf=0.0, max_det=3, imgsz=96)(picture)
    assert whole.settings["family"] == inside.settings["family"] == "rfdetr"
    assert torch.equal(whole.boxes, inside.boxes)
    assert torch.equal(whole.heatmaps, inside.heatmaps)


def test_names_of_pretrained_models_have_gaps(seed: int) -> None:
    picture = random_picture(seed, 80, 120)
    wrapper = random_rfdetr("RFDETRNano", seed, num_classes=90)
    result = wrapper.predict(picture, threshold=0.0)
    found = Explainer(wrapper, conf=0.0, max_det=QUERIES)(picture)
    assert_same_objects(found, as_result(result), box=1e-2)
    named = dict(zip(result.class_id.tolist(), result.data["class_name"], strict=True))
    for label, number in zip(found.labels, found.class_ids.tolist(), strict=True):
        assert label == (named[number] or str(number))


@pytest.fixture
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("preset", ["level", "evidence"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_match_finite_differences(kind: str, preset: str, seed: int, double: None) -> None:
    picture = random_picture(seed, 80, 120)
    wrapper = random_rfdetr(kind, seed)
    adapter = RfdetrAdapter(shadow(wrapper.model.model.double()), wrapper)
    pixels, geometry = adapter.prepare(picture)
    query, label = torch.randint(QUERIES, (1,)), torch.randint(5, (1,))

    def choose(outputs: Any) -> Any:
        return adapter.objects_at(outputs, query, label, geometry)

    targets = ("class", "prob", "margin", "left", "bottom", *(("mask",) if "Seg" in kind else ()))
    for target, (slope, difference) in slopes(adapter, pixels, geometry, preset, choose, targets).items():
        assert slope == pytest.approx(difference, rel=1e-3, abs=1e-4), target


def test_scalars_by_hand(seed: int) -> None:
    picture = random_picture(seed, 80, 120)
    wrapper = random_rfdetr("RFDETRSegNano", seed)
    adapter = RfdetrAdapter(shadow(wrapper.model.model), wrapper)
    pixels, geometry = adapter.prepare(picture)
    outputs = adapter.forward(pixels[None], 300)
    queries, labels = torch.arange(QUERIES), torch.randint(5, (QUERIES,))
    objects = [adapter.objects_at(outputs, queries, labels, geometry)]
    raw = raw_of(wrapper, picture)
    scalars = {t: adapter.score(outputs, objects, t) for t in ("class", "prob", "margin", "mask", "box", "right")}
    for query, label in enumerate(labels.tolist()):
        logits, masks = raw["pred_logits"][query], raw["pred_masks"][query]
        cx, cy, w, h = (raw["pred_boxes"][query] * 96).tolist()
        expected = {
            "class": logits[label],
            "prob": logits[label].sigmoid(),
            "margin": logits[label] - torch.cat([logits[:label], logits[label + 1 :]]).max(),
            "mask": masks[masks > 0].mean() if bool((masks > 0).any()) else masks.max(),
            "box": torch.tensor([w / 2 - cx, h / 2 - cy, cx + w / 2, cy + h / 2]),
            "right": torch.tensor(cx + w / 2),
        }
        for target, value in expected.items():
            torch.testing.assert_close(scalars[target][query], value, rtol=1e-3, atol=1e-2)


def test_a_list_of_pictures_equals_one_by_one(seed: int, double: None) -> None:
    pictures = [random_picture(seed + i, *size) for i, size in enumerate([(80, 120), (120, 70)])]
    wrapper = random_rfdetr("RFDETRSegNano", seed)
    wrapper.model.model.double()
    explainer = Explainer(wrapper, conf=0.0, max_det=4, target="mask")
    for together, picture in zip(explainer(pictures), pictures, strict=True):
        alone = explainer(picture)
        torch.testing.assert_close(together.scores, alone.scores, rtol=0, atol=1e-5)
        for one, other in zip(together.maps, alone.maps, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))


@pytest.mark.parametrize("preset", ["level", "evidence"])
def test_the_hot_spot_lies_on_the_square(preset: str, seed: int) -> None:
    wrapper = random_rfdetr("RFDETRNano", seed, resolution=192)
    for name, module in wrapper.model.model.backbone.named_modules():
        if name.endswith("attention.output.dense"):  # it carries what changed to wherever random weights look
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    names = list(Explainer(wrapper).adapter.layers(preset).names)

    def explainer(method: Any, picture: np.ndarray) -> Explainer:
        return Explainer(wrapper, method, names, conf=0.0, max_det=1)

    assert_square_is_hot(explainer, seed)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision(kind: str, seed: int) -> None:
    wrapper = random_rfdetr(kind, seed)
    wrapper.model.model.to(torch.bfloat16)
    explanation = Explainer(wrapper, conf=0.0, max_det=3)(random_picture(seed, 80, 120))
    assert len(explanation) == 3
    assert all(m.dtype == torch.float32 and bool(m.isfinite().all()) and bool(m.any()) for m in explanation.maps)


@pytest.mark.parametrize("kind", KINDS)
def test_asked_for_an_object_that_is_there(kind: str, seed: int) -> None:
    picture = random_picture(seed, 80, 120)
    explainer = Explainer(random_rfdetr(kind, seed), conf=0.0, max_det=3)
    found = explainer(picture)
    asked = explainer(picture, ask=[(found.boxes[0].tolist(), int(found.class_ids[0]))])
    answer = asked.asked[0]
    assert answer.candidates == QUERIES
    assert answer.iou > 0
    assert bool(asked.maps[0].any())
    if answer.candidate == found.objects.index[0]:
        assert answer.reason == "returned"
        assert answer.score == pytest.approx(float(found.scores[0]), abs=1e-5)


def test_the_size_follows_the_windows(seed: int) -> None:
    wrapper = random_rfdetr("RFDETRNano", seed)
    explainer = Explainer(wrapper, imgsz=100, conf=0.0, max_det=1)
    assert explainer.settings["imgsz"] == 128
    assert explainer(random_picture(seed, 80, 120)).geometry.network == (128, 128)


def test_what_cannot_be_done_is_said(seed: int) -> None:
    wrapper = random_rfdetr("RFDETRNano", seed)
    with pytest.raises(TargetError, match="target 'mask' does not exist for this rfdetr detect model"):
        Explainer(wrapper, target="mask")
    wrapper.model.model = None
    with pytest.raises(ModelError, match=r"RFDETRNano: its LWDETR is gone, as after inference\(inplace=True\)"):
        Explainer(wrapper)
