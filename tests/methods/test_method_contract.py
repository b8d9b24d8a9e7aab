"""What every method keeps: checks crossed with all registered methods; a new method needs a row in `contract.py`."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from contract import TABLE, Subject, declared
from support import few, fingerprint
from torch import nn

from detcam import Explanation
from detcam.methods import METHODS, SweepMethod, get_method
from detcam.options import LAYER_PRESETS

READABLE = {
    "activations", "gradients", "second derivatives", "input gradients", "biases", "forwards", "boxes",
    "attention", "nothing",
}  # fmt: skip
YOLO = [name for name, row in TABLE.items() if row.model == "yolo"]
LONG = [
    name
    for name, row in TABLE.items()
    if issubclass(METHODS[name], SweepMethod)
    and {"C", *METHODS[name].parameters()} & set(re.findall(r"\w+", row.made.passes))
]  # sweeps that tell of progress
HALF = [
    name
    for name, row in TABLE.items()
    if row.close or row.model != "yolo" or name in ("gradcam", "eigencam", "scorecam")
]
QUICK = ("rise", "ablationcam", "smoothgrad")  # one sweep of each kind
every_method = pytest.mark.parametrize("name", TABLE)


def test_every_method_has_a_row() -> None:
    assert list(TABLE) == list(METHODS)


@every_method
def test_describes_itself(name: str) -> None:
    method = METHODS[name]
    assert method.name == name == name.lower()
    assert type(get_method(name)) is method
    assert method.formula
    years = map(str, range(2013, 2030))
    assert method.source == "a baseline" or any(year in method.source for year in years), "the source names the year"
    assert set(method.reads.split(", ")) <= READABLE
    assert "F" in method.passes
    assert ("B" in method.passes) == ("gradients" in method.reads)
    assert method.object_specific == (method.reads != "activations")
    assert all(set(facts) == {"default", "range"} for facts in method.parameters().values())
    assert method.layers in LAYER_PRESETS
    assert method.__doc__


def assert_sound(explanation: Explanation, count: int) -> None:
    """Finite float32 maps, heatmaps in [0, 1], and a note wherever a map is not positive."""
    assert len(explanation) == count
    for raw, heat, note in zip(explanation.maps, explanation.heatmaps, explanation.notes, strict=True):
        assert raw.dtype == heat.dtype == torch.float32
        assert raw.isfinite().all()
        assert heat.isfinite().all()
        assert 0 <= float(heat.min()) <= float(heat.max()) <= 1
        assert (raw > 0).any() or note


def assert_each_its_own(explanation: Explanation) -> None:
    """As many maps as objects; for methods that read activations only one map, which says so."""
    name, kind = explanation.settings["method"], METHODS[str(explanation.settings["method"]).split(":")[0]]
    if not kind.object_specific:
        assert all(torch.equal(raw, explanation.maps[0]) for raw in explanation.maps)
        assert set(explanation.notes) == {f"the same for every object: {name} reads activations only"}
        return
    sources = len(set(explanation.objects.index.tolist()))  # a query may give two objects, of two classes
    shown = [raw for raw in explanation.maps if raw.any()]  # a score may not depend on a layer
    assert len(shown) >= len(explanation) / 2
    assert len({raw.numpy().tobytes() for raw in shown}) >= len(shown) - len(explanation) + sources
    assert not any("the same for every object" in (note or "") for note in explanation.notes)


@pytest.mark.parametrize("found", few([1, 10], 10))
@every_method
def test_passes_are_those_declared(name: str, found: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forwards counted at the first convolution and in the neck, backwards at autograd's door; the model untouched."""
    row = TABLE[name]
    subject = Subject(row)
    images, backwards = {"F": 0, "T": 0}, []

    def count(unit: str) -> Any:
        def hook(module: nn.Module, args: Any) -> None:
            images[unit] += len(args[0])

        return hook

    next(m for m in subject.model.modules() if isinstance(m, nn.Conv2d)).register_forward_pre_hook(count("F"))
    if row.model == "yolo":
        subject.model.get_submodule("model.21.cv1.conv").register_forward_pre_hook(count("T"))
    grad = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **options: (backwards.append(1), grad(*a, **options))[1])
    before = fingerprint(subject.model)
    explainer = subject.plain(found)
    images, backwards[:] = dict.fromkeys(images, 0), []  # making it may have taken a forward
    found = row.objects(found)
    explanation = explainer(subject.image)
    tail = images["T"] - images["F"] if row.model == "yolo" else 0
    assert {"F": images["F"], "B": len(backwards), "T": tail} == declared(row, found)
    assert fingerprint(subject.model) == before
    assert_sound(explanation, found)
    assert_each_its_own(explanation)


@every_method
def test_the_same_on_every_run_and_in_any_batch(name: str) -> None:
    """Bit for bit on every run; alone, in a batch and beside other objects to rounding."""
    row = TABLE[name]
    single = issubclass(METHODS[name], SweepMethod) or row.model.endswith("detr")
    subject = Subject(row, torch.float32 if single else torch.float64, copied=False)
    tolerance = row.tolerance if single else 1e-4
    explainer = subject.explainer(3)
    pair = [subject.image[:, ::-1], subject.image]
    together = explainer(pair)[1]
    explainer = subject.explainer(2)
    alone, again = explainer(subject.image), explainer(subject.image)
    assert len(alone) == row.objects(2)
    places = list(zip(together.objects.index.tolist(), together.class_ids.tolist(), strict=True))
    assert all(torch.equal(raw, other) for raw, other in zip(alone.maps, again.maps, strict=True))
    for i, raw in enumerate(alone.maps):
        other = together.maps[places.index((int(alone.objects.index[i]), int(alone.class_ids[i])))]
        torch.testing.assert_close(other, raw, rtol=0, atol=tolerance * float(raw.abs().max()))


@pytest.mark.nightly
@pytest.mark.parametrize("name", [name for name in METHODS if issubclass(METHODS[name], SweepMethod)])
def test_the_same_one_forward_at_a_time(name: str) -> None:
    row = TABLE[name]
    subject = Subject(row)
    whole, singly = (subject.explainer(3, memory=memory)(subject.image) for memory in (2**28, 1))
    for raw, other in zip(whole.maps, singly.maps, strict=True):
        torch.testing.assert_close(other, raw, rtol=0, atol=row.tolerance * float(raw.abs().max()))


@pytest.mark.parametrize("name", few(LONG, *QUICK))
def test_an_interrupted_sweep_leaves_no_trace(name: str) -> None:
    subject = Subject(TABLE[name])
    told: list[int] = []

    def stop(done: int, total: int) -> None:
        told.append(done)
        if len(told) == 2:
            raise KeyboardInterrupt

    before = fingerprint(subject.model)
    explainer = subject.explainer(2, memory=1, progress=stop)
    with pytest.raises(KeyboardInterrupt):
        explainer(subject.image)
    assert told == [1, 2]
    assert fingerprint(subject.model) == before
    fresh = subject.explainer(2, memory=1)(subject.image)
    for raw, other in zip(explainer(subject.image).maps, fresh.maps, strict=True):  # the private view is clean, too
        assert torch.equal(raw, other)


@pytest.mark.parametrize("dtype", few([torch.float16, torch.bfloat16], torch.float16))
@pytest.mark.parametrize("name", few(TABLE, *HALF))
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    """Float32 maps, close to those of the same rounded weights in float32 where rounding does not decide."""
    row = TABLE[name]
    subject, options = Subject(row), {"iou": 0.3}
    subject.model = subject.model.to(torch.bfloat16 if row.model.endswith("detr") else dtype)
    explanation = subject.explainer(2, **options)(subject.image)
    assert_sound(explanation, row.objects(2))
    if row.close:
        subject.model = subject.model.float()
        single = subject.explainer(2, **options)(subject.image)
        if torch.equal(explanation.objects.index, single.objects.index):
            for raw, truth in zip(explanation.maps, single.maps, strict=True):
                both = torch.stack([raw.clamp(min=0).flatten(), truth.clamp(min=0).flatten()])
                assert both.std(dim=1).amin() == 0 or float(torch.corrcoef(both)[0, 1]) > 0.8


@every_method
def test_black_images(name: str) -> None:
    row = TABLE[name]
    subject = Subject(row, copied=False)
    assert_sound(subject.explainer(2)(np.zeros_like(subject.image)), row.objects(2))


# By default one method of each runner; a classifier always has a class.
@pytest.mark.parametrize(
    "name",
    few(
        [name for name in TABLE if name != "cam"],
        "odam",
        "eigencam",
        "fused",
        "rise",
        "scorecam",
        "fullgrad",
        "rollout",
    ),
)
def test_no_objects_give_no_maps(name: str) -> None:
    subject = Subject(TABLE[name], copied=False)
    told: list[int] = []
    nothing = subject.explainer(2, conf=1.0, progress=lambda done, total: told.append(done))(subject.image)
    assert len(nothing) == 0
    assert nothing.heatmaps.shape == (0, *subject.image.shape[:2])
    assert not told, "nothing is swept for nobody"


@pytest.mark.parametrize(
    "name",
    few([name for name in YOLO if "forwards" not in METHODS[name].reads], "odam", "kpcacam", "gcame", "fullgrad"),
)
def test_an_image_of_one_cell(name: str) -> None:
    """32 x 32 pixels: one cell at the coarsest level."""
    subject = Subject(TABLE[name])
    assert_sound(subject.explainer(2, imgsz=32)(subject.image[:32, :32]), 2)
