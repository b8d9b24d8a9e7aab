"""What detcam promises for every family: the library's own objects, sound maps in source pixels, an untouched model."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from contract_checks import assert_predicted, assert_sound, check_answer, jittered, objects_in, visible
from families import CASES, parameters
from family_case import FamilyCase
from finite_differences import in_double
from square_change import assert_square_is_hot
from support import NIGHTLY, fingerprint
from torch import Tensor, nn

from detcam import Explanation, InputError
from detcam.adapters import ADAPTERS, Adapter, adapter_for
from detcam.errors import MethodError
from detcam.layers import candidate_layers

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*pretrain_weights=None"),
    pytest.mark.filterwarnings("ignore:.*jit.script:FutureWarning"),
]

SHALLOW = ("custom", "sam", "torchvision-vit_b_16", "RFDETRNano")  # with no steps between those of the presets

every_family = pytest.mark.parametrize("case", parameters())


@pytest.fixture(autouse=True)
def built(request: pytest.FixtureRequest) -> None:
    """Import the case's library and build its model before the clock of the test starts."""
    if "case" in request.fixturenames:
        request.getfixturevalue("case").model()


def test_every_adapter_has_a_case() -> None:
    tested = {case.adapter for case in CASES if case.default}
    assert tested >= {adapter.__name__ for adapter in ADAPTERS}
    assert len({case.id for case in CASES}) == len(CASES)


@every_family
def test_objects_are_those_of_the_librarys_own_call(case: FamilyCase) -> None:
    """Boxes, scores, classes, order and masks, also of an image that is much wider than high."""
    model = case.fresh().double() if case.exact else case.model()
    if "adapter" not in case.options:
        assert adapter_for(model).__name__ == case.adapter
    conf = case.threshold()
    layers = "level" if case.exact else "auto"  # float64 is slow at the stem
    explanation = case.explain(model, conf=conf, layers=layers)
    assert len(explanation) >= case.least
    assert_predicted(explanation, case.predict(model, case.options, case.image(), conf), case)
    assert_sound(explanation)
    if not case.id.startswith("mask-queries-eomt"):  # a mask of EoMT may hide all patches from its query
        assert all(bool(raw.any()) for raw in explanation.maps), explanation.notes
    others = explanation.maps[1:]
    assert not others or any(not torch.equal(explanation.maps[0], other) for other in others), "maps are of objects"


@every_family
def test_every_family_is_checked_by_intervention(case: FamilyCase) -> None:
    """Or the error says what the family lacks; at random weights a check is a number, not a verdict."""
    explanation = case.explain(conf=0.0, max_det=2)
    try:
        checks = explanation.checks
    except MethodError as error:
        checks = []
        refusal = str(error)
    else:
        refusal = ""
    assert len(checks) == (0 if refusal else len(explanation))
    assert not refusal or "lists no candidates and has no probability" in refusal
    for check in checks:
        falls = (check.hottest, check.random, check.shuffled)
        assert 0 < check.share <= 0.5
        assert 0 <= check.score <= 1
        assert all(fall <= 1 for fall in falls if fall is not None)
        assert check.score == 0 or None not in falls


class _Interrupted(Exception):
    pass


def interrupted(outputs: Any, objects: Any) -> Tensor:
    raise _Interrupted


@every_family
def test_the_model_is_untouched(case: FamilyCase) -> None:
    """In training mode, with a frozen layer and gradients of its own; also if the explanation fails halfway."""
    expected = case.explain(conf=0.0, max_det=2)
    model = case.fresh()
    module = case.module(model)
    module.train()
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    trained[0].requires_grad_(False)
    sum(parameter.sum() for parameter in trained[1:3]).backward()
    before = fingerprint(module)
    explanation = case.explain(model, conf=0.0, max_det=2)
    assert fingerprint(module) == before
    with pytest.raises(_Interrupted):
        case.explain(model, conf=0.0, max_det=2, target=interrupted)
    assert fingerprint(module) == before
    assert torch.equal(explanation.boxes, expected.boxes)
    assert torch.equal(explanation.heatmaps, expected.heatmaps)


@pytest.mark.parametrize("case", parameters(lambda case: not case.prompted))
def test_a_batch_gives_what_single_images_give(case: FamilyCase) -> None:
    """In float64: in random networks rounding makes some units near zero jump, and their gradients with them."""
    images = [case.image(0), case.image(1), *([case.image(2, case.size[::-1])] if NIGHTLY else [])]
    model, conf = case.fresh(), case.threshold()
    with nullcontext() if case.adapter.startswith(("Rtdetr", "Yolo", "Ultralytics")) else in_double():
        case.module(model).double()
        explainer = case.explainer(model, conf=conf, max_det=2, layers="auto" if NIGHTLY else "level")
        together = explainer(images)
        assert len(together[0]) >= 1
        for explanation, image in list(zip(together, images, strict=True))[0 if NIGHTLY else 1 :]:
            alone = explainer(image)
            torch.testing.assert_close(explanation.scores, alone.scores, rtol=0, atol=1e-5)
            torch.testing.assert_close(explanation.boxes, alone.boxes, rtol=0, atol=1e-3)
            assert explanation.class_ids.tolist() == alone.class_ids.tolist()
            for ours, theirs in zip(explanation.maps, alone.maps, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


@every_family
def test_layers_are_listed_and_run(case: FamilyCase) -> None:
    """Both presets, and the name of a listed layer inside the model, give maps of the listed size that are not zero."""
    explainer = case.explainer(conf=0.0, max_det=2)
    module = case.module(case.model())
    before = fingerprint(module)
    rows = candidate_layers(explainer, case.image())
    assert len({(row.name, row.output) for row in rows}) == len(rows)
    assert len(rows) > (1 if case.id in SHALLOW else 2), "more than the presets"
    network = explainer.adapter.prepare(case.image())[1].network
    for row in rows:
        assert isinstance(module.get_submodule(row.name), nn.Module)
        assert row.channels >= 1
        assert row.stride == pytest.approx(network[0] / row.height)
        assert row.gradient is not None
    for preset in ("level", "evidence"):
        names = explainer.adapter.layers(preset).names
        listed = {row.name for row in rows if preset in row.presets}
        assert listed == {name for name in names if case.id != "mask-queries-eomt_dinov3" or name in listed}
        assert listed, "EoMT on DINOv3 runs one of them several times, which no row can stand for"
        assert max(row.gradient or 0 for row in rows if preset in row.presets) > 0
        if preset == "evidence" or NIGHTLY:  # the other checks run on the level
            explanation = case.explain(conf=0.0, max_det=2, layers=preset)
            assert any(bool(raw.any()) for raw in explanation.maps)
            assert_sound(explanation)
    reached = [row for row in rows if row.gradient and not row.output] or [row for row in rows if row.presets]
    for row in reached if NIGHTLY else [reached[len(reached) // 2]]:
        explanation = case.explain(conf=0.0, max_det=2, layers=[row.name])
        assert len(explanation) >= 1
        assert_sound(explanation)
        if not row.output:
            assert {tuple(raw.shape) for raw in explanation.maps} == {(row.height, row.width)}
    assert fingerprint(module) == before


def lists_candidates(case: FamilyCase) -> bool:
    return case.adapter not in ("CallableAdapter", "SamAdapter") and not case.id.startswith("semantic-")


def can_be_asked(case: FamilyCase) -> bool:
    return lists_candidates(case) and "Classifier" not in case.adapter


@every_family
def test_missed_objects_can_be_asked_for(case: FamilyCase) -> None:
    """The answers agree with what was returned; families that cannot be asked say so."""
    image, model = case.image(), case.model()
    if not can_be_asked(case):
        with pytest.raises(InputError, match=r"leave ask out|prompts="):
            case.explainer()(image, ask=[((2, 2, 30, 30), 0)])
        return
    explainer = case.explainer(conf=case.threshold())
    explanation = explainer(image)
    everything = objects_in(explainer.adapter, image)
    pairs = [
        *visible(explanation.boxes, explanation.class_ids, image)[:6],
        *visible(jittered(everything.boxes, case.seed), everything.class_ids.roll(1), image)[:6],
    ]
    before = fingerprint(case.module(model))
    asked = explainer(image, ask=pairs)
    assert fingerprint(case.module(model)) == before
    assert len(asked.asked) == len(pairs)
    assert_sound(asked)
    returned = list(zip(explanation.objects.index.tolist(), explanation.class_ids.tolist(), strict=True))
    for answer in asked.asked:
        check_answer(answer, asked, explanation, returned, explainer.conf, case.exact_candidates)
    if len(explanation):
        assert "returned" in {answer.reason for answer in asked.asked}


@every_family
def test_candidates_hold_every_object(case: FamilyCase) -> None:
    """float32 boxes [B, A, 4], probabilities [B, A, K] and confidences [B, A], among them those of the objects."""
    explainer = case.explainer()
    adapter: Adapter = explainer.adapter
    pixels, geometry = adapter.prepare(case.image())
    outputs = adapter.forward(pixels[None], 300)
    if not lists_candidates(case):
        with pytest.raises(MethodError, match="list no candidates"):
            adapter.candidates(outputs)
        return
    boxes, probabilities, confidence = adapter.candidates(outputs)
    count, classes = probabilities.shape[1:]
    assert boxes.shape == (1, count, 4)
    assert confidence.shape == (1, count)
    assert set(adapter.class_names(classes)) <= set(range(classes))
    for tensor in (boxes, probabilities, confidence):
        assert tensor.dtype == torch.float32
        assert not tensor.requires_grad
        assert bool(tensor.isfinite().all())
    for shares in (probabilities, confidence):
        assert float(shares.amin()) >= 0
        assert float(shares.amax()) <= 1
    objects = adapter.detect(outputs, [geometry], case.threshold(), 0.7, 300)[0]
    boxes, probabilities = adapter.image_candidates(outputs, geometry)
    own = boxes[objects.index, objects.class_ids] if boxes.ndim == 3 else boxes[objects.index]
    if not case.exact_candidates:
        return
    torch.testing.assert_close(probabilities[objects.index, objects.class_ids], objects.scores, rtol=0, atol=1e-4)
    if "Classifier" not in case.adapter:  # the one object is the whole image, of which a crop shows a part
        own, expected = geometry.to_source(own), geometry.to_source(objects.network_boxes)
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-2)


@every_family
def test_what_is_not_finite_stays_inside(case: FamilyCase) -> None:
    """For every target; and where weights are not numbers, or all zero, nothing but finite maps with a note."""
    for target in case.explainer().adapter.available if NIGHTLY else ():
        layers = "level" if case.prompted else "evidence"  # of SAM 2 the first stages lead to the mask alone
        assert_sound(case.explain(conf=0.0, max_det=2, target=target, layers=layers))
    # The layers of a classifier are those that its scores depend on: of zeros there are none.
    for value in (float("nan"),) if "Classifier" in case.adapter else (float("nan"), 0.0):
        model = case.fresh()
        with torch.no_grad():
            for parameter in case.module(model).parameters():
                parameter.fill_(value)
        explanation = case.explain(model, conf=0.0, max_det=2)
        assert bool(explanation.boxes.isfinite().all())
        assert bool(explanation.scores.isfinite().all())
        assert_sound(explanation, broken=True)


@pytest.mark.parametrize("case", parameters(lambda case: case.planted))
def test_a_planted_square_is_hot_where_it_was_planted(case: FamilyCase) -> None:
    """What changes at the layers is shown where the image changed, through letterbox, resize, crop and padding."""
    model = case.fresh()
    if case.local is not None:
        case.local(case.module(model))
    options = case.enlarged(case.options) if case.enlarged is not None else {}
    layers = list(case.square or case.explainer(model, **options).adapter.layers("evidence").names)

    def explain(method: Any, image: np.ndarray) -> Explanation:
        return case.explain(model, image, method=method, layers=layers, conf=0.0, max_det=1, **options)

    assert_square_is_hot(explain, case.seed)


@pytest.mark.parametrize("shape", [(90, 200), pytest.param((301, 77), marks=pytest.mark.nightly)], ids=str)
@every_family
def test_geometry_leads_to_the_networks_input_and_back(case: FamilyCase, shape: tuple[int, int]) -> None:
    """A bright square lies in the network's input where the geometry says; boxes come back from there."""
    adapter = case.explainer().adapter
    side, random = min(shape), np.random.default_rng(case.seed)
    top, left = (int((s - side) / 2 + random.uniform(0.2, 0.5) * side) for s in shape)
    size = side // 4
    image = np.zeros((*shape, 3), np.uint8)
    dark = adapter.prepare(image)[0]
    image[top : top + size, left : left + size] = 255
    pixels, geometry = adapter.prepare(image)
    light = (pixels - dark).sum(dim=0).clamp(min=0)
    assert geometry.source == shape
    assert geometry.network == tuple(light.shape)
    y = (light.sum(dim=1) * (torch.arange(light.shape[0]) + 0.5)).sum() / light.sum()
    x = (light.sum(dim=0) * (torch.arange(light.shape[1]) + 0.5)).sum() / light.sum()
    box = torch.tensor([[left, top, left + size, top + size]]).float()
    x1, y1, x2, y2 = geometry.to_network(box)[0].tolist()
    assert float(y) == pytest.approx((y1 + y2) / 2, abs=0.6)
    assert float(x) == pytest.approx((x1 + x2) / 2, abs=0.6)
    torch.testing.assert_close(geometry.to_source(geometry.to_network(box)), box, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        pytest.param(
            case,
            dtype,
            id=f"{case.id}-{dtype}",
            marks=[] if case.default and dtype == case.half[0] else pytest.mark.nightly,
        )
        for case in CASES
        for dtype in case.half
    ],
)
def test_lower_precision(case: FamilyCase, dtype: torch.dtype) -> None:
    model = case.fresh()
    case.module(model).to(dtype)
    explanation = case.explain(model, conf=0.0, max_det=3)
    assert len(explanation) >= 1
    assert_sound(explanation)
    assert any(bool(raw.any()) for raw in explanation.maps)
