"""What the explainer is asked for is checked, with an error that says what to do; and what it says about its maps."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import predict, random_picture, wrapped
from torch import Tensor, nn

from detcam import DetcamError, Explainer, InputError
from detcam.adapters import YoloAdapter
from detcam.errors import ImageError, LayerError, MethodError, ModelError, TargetError


def refuse(kind: type[InputError], expected: str, action: Callable[[], Any]) -> None:
    with pytest.raises(kind, match=expected) as caught:
        action()
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, InputError)
    assert isinstance(caught.value, DetcamError)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"conf": -0.1}, "conf.*-0.1"),
        ({"conf": 1.5}, "conf.*1.5"),
        ({"conf": float("nan")}, "conf.*nan"),
        ({"iou": 2}, "iou.*2"),
        ({"max_det": 0}, "max_det.*0"),
        ({"max_det": -3}, "max_det.*-3"),
        ({"imgsz": 0}, "imgsz.*0"),
        ({"imgsz": 31}, "imgsz.*31"),
        ({"imgsz": -640}, "imgsz.*-640"),
        ({"device": "cuda:99"}, "device 'cuda:99' cannot be used"),
        ({"device": "toaster"}, "device 'toaster' cannot be used"),
    ],
    ids=str,
)
def test_numbers_and_devices_out_of_range(options: dict[str, Any], expected: str, detector: nn.Module) -> None:
    refuse(InputError, expected, lambda: Explainer(detector, **options))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there(detector: nn.Module) -> None:
    refuse(InputError, "device 'cuda' cannot be used.*use device 'cpu'", lambda: Explainer(detector, device="cuda"))


@pytest.mark.parametrize(
    "options", [{"conf": "0.5"}, {"iou": None}, {"max_det": "3"}, {"imgsz": "640"}, {"imgsz": (320, 31)}], ids=str
)
def test_options_of_another_type(options: dict[str, Any], detector: nn.Module) -> None:
    refuse(InputError, next(iter(options)), lambda: Explainer(detector, **options))


def test_regions_are_for_semantic_segmenters(detector: nn.Module) -> None:
    refuse(
        InputError,
        "segments: 'clas' does not exist: did you mean 'class'",
        lambda: Explainer(detector, segments="clas"),
    )
    component = "segments: 'component' is for semantic segmenters.*ultralytics detect model.*leave segments out"
    refuse(InputError, component, lambda: Explainer(detector, segments="component"))
    Explainer(detector, segments="class")

    class Semantic(YoloAdapter):
        segments = "class"

    for segments in ("class", "component"):
        explainer = Explainer(detector, segments=segments, adapter=Semantic)
        assert isinstance(explainer.adapter, Semantic)
        assert explainer.adapter.segments == segments
    assert Semantic.segments == "class"


def test_unknown_names_come_with_the_nearest(detector: nn.Module) -> None:
    def explainer(**options: Any) -> Callable[[], Any]:
        return lambda: Explainer(detector, **options)

    refuse(MethodError, "'gradcan' does not exist: did you mean 'gradcam'", explainer(method="gradcan"))
    refuse(TargetError, "'clas' does not exist: did you mean 'class'", explainer(target="clas"))
    refuse(LayerError, "'model.99' does not exist: did you mean 'model.9'", explainer(layers=["model.99"]))
    refuse(LayerError, "'levle' does not exist: did you mean 'level'", explainer(layers="levle"))
    refuse(LayerError, "layers is empty", explainer(layers=[]))
    refuse(LayerError, "Conv2d.*does not exist", explainer(layers=[nn.Conv2d(1, 1, 1)]))
    refuse(TargetError, "'mask' does not exist for this ultralytics detect model", explainer(target="mask"))
    refuse(TargetError, "'objectness' does not exist", explainer(target="objectness"))


def test_layers_that_cannot_be_explained(detector: nn.Module, picture: np.ndarray) -> None:
    for layers, target in [("model.22.cv2.0", "class"), ("model.22.cv3.0", "box"), ("model.22.cv3.0.2", "left")]:
        explainer = Explainer(detector, "odam", [layers], imgsz=160, target=target)
        refuse(LayerError, f"{layers}.*{target} score does not depend", lambda e=explainer: e(picture))
    for layers in ("model.22", "model.22.dfl"):
        explainer = Explainer(detector, "odam", layers, imgsz=160, target="class")
        with pytest.raises(LayerError, match=layers):
            explainer(picture)
    detector.spare = nn.Conv2d(3, 3, 1)
    explainer = Explainer(detector, imgsz=160, layers="spare")
    refuse(LayerError, "'spare' did not run", lambda: explainer(picture))


def test_layers_by_name_and_as_the_user_s_own_modules(detector: nn.Module, picture: np.ndarray) -> None:
    wrapper = wrapped(detector)
    for names in (["model.9"], ["model.4", "model.15"]):
        modules = [detector.get_submodule(name) for name in names]
        by_name = Explainer(wrapper, imgsz=160, layers=names)(picture)
        for layers in (modules, modules[0] if len(modules) == 1 else modules, names[0] if len(names) == 1 else names):
            explanation = Explainer(wrapper, imgsz=160, layers=layers)(picture)
            assert torch.equal(explanation.heatmaps, by_name.heatmaps)
            assert explanation.settings["layers"] == names
    # Naming a layer twice does not count it twice.
    twice = Explainer(wrapper, imgsz=160, layers=["model.9", "model.9"])(picture)
    assert torch.equal(twice.maps[0], Explainer(wrapper, imgsz=160, layers="model.9")(picture).maps[0])


class MyDetector(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


def test_models_that_are_no_detectors() -> None:
    tasks = pytest.importorskip("ultralytics.nn.tasks")
    refuse(ModelError, "Linear is not a detector", lambda: Explainer(nn.Linear(2, 2)))
    refuse(ModelError, "MyDetector is not a detector", lambda: Explainer(MyDetector()))
    refuse(
        ModelError, "holds no network", lambda: Explainer(tasks.DetectionModel("yolov8n.yaml", verbose=False).model[0])
    )
    for nothing in (None, 3, {"a": 1}, lambda x: x):
        refuse(ModelError, "is not a network", lambda n=nothing: Explainer(n))


def test_no_detections(detector: nn.Module, picture: np.ndarray, tmp_path: Path) -> None:
    assert len(predict(detector, picture, imgsz=160, conf=0.999).boxes) == 0
    for layers in ("level", "evidence", ["model.9"]):
        for method in ("odam", "eigencam"):
            explanation = Explainer(detector, imgsz=160, conf=0.999, layers=layers, method=method)(picture)
            assert len(explanation) == 0
            assert explanation.boxes.shape == (0, 4)
            assert explanation.scores.shape == explanation.class_ids.shape == (0,)
            assert explanation.labels == explanation.notes == explanation.maps == []
            assert explanation.heatmaps.shape == (0, 120, 200)
    explanation.save(tmp_path)
    assert (tmp_path / "contact.png").exists()
    mixed = Explainer(detector, imgsz=160, conf=0.999)([picture, picture])
    assert [len(e) for e in mixed] == [0, 0]


def test_some_pictures_of_a_batch_without_objects(detector: nn.Module, picture: np.ndarray, seed: int) -> None:
    explainer = Explainer(detector, imgsz=160, conf=0.25, target="class")
    alone = explainer(picture)
    best = float(alone.scores[0])
    blank = np.zeros_like(picture)
    explainer = Explainer(detector, imgsz=160, conf=max(best - 1e-3, 0.25))
    counts = [len(e) for e in explainer([blank, picture, blank])]
    assert counts == [len(explainer(blank)), len(explainer(picture)), len(explainer(blank))]
    assert counts[1] >= 1


def test_one_bad_picture_of_a_list_is_named(detector: nn.Module, picture: np.ndarray, tmp_path: Path) -> None:
    refuse(ImageError, r"gone\.jpg", lambda: Explainer(detector, imgsz=160)([picture, tmp_path / "gone.jpg"]))


def test_callable_targets(detector: nn.Module, picture: np.ndarray) -> None:
    """A target is any function of the raw outputs: here the logit of class 3 instead of the predicted class."""

    def third_class(outputs: Any, objects: list[Any]) -> Tensor:
        return torch.cat([outputs.logits[i, 3, found.index] for i, found in enumerate(objects)])

    explanation = Explainer(detector, "odam", imgsz=160, target=third_class)(picture)
    assert explanation.settings["target"] == "third_class"
    by_name = Explainer(detector, "odam", imgsz=160, target="class")(picture)
    agree = 0
    for i, kind in enumerate(by_name.class_ids.tolist()):
        equal = torch.allclose(
            explanation.maps[i], by_name.maps[i], rtol=1e-3, atol=1e-4 * float(by_name.maps[i].abs().max())
        )
        assert equal == (kind == 3)
        agree += equal
    with pytest.raises(TargetError, match=r"expected a tensor of shape \[\d+\]"):
        Explainer(detector, imgsz=160, target=lambda outputs, objects: outputs.logits)(picture)
    with pytest.raises(TargetError, match="got float"):
        Explainer(detector, imgsz=160, target=lambda outputs, objects: 1.0)(picture)
    with pytest.raises(MethodError, match="no gradient at all"):
        Explainer(detector, imgsz=160, target=lambda o, objects: torch.zeros(len(objects[0])))(picture)


def test_a_map_that_is_the_same_for_every_object_says_so(detector: nn.Module, picture: np.ndarray) -> None:
    for layers in ("evidence", "level"):
        explanation = Explainer(detector, imgsz=160, method="eigencam", layers=layers)(picture)
        assert len(explanation) > 3
        assert all(note is not None and "same for every object" in note for note in explanation.notes)
        levels = explanation.objects.level.tolist()
        for i, level in enumerate(levels):
            j = levels.index(level) if layers == "level" else 0
            assert torch.equal(explanation.maps[i], explanation.maps[j])
    assert all(note is None for note in Explainer(detector, imgsz=160)(picture).notes)


def test_a_zero_map_says_why(detector: nn.Module, picture: np.ndarray) -> None:
    """An object that was read at one level has no gradient at the others' head inputs."""
    explanation = Explainer(detector, imgsz=160, layers=["model.21"])(picture)
    levels = explanation.objects.level.tolist()
    assert {0, 2} <= set(levels)
    for raw, note, level in zip(explanation.maps, explanation.notes, levels, strict=True):
        if level == 2:
            assert note is None or "no cell contributes" in note
            assert raw.any()
        else:
            assert note is not None
            assert "no gradient at model.21" in note
            assert f"level {level}" in note
            assert not raw.any()


def test_a_map_without_positive_cells_says_so(detector: nn.Module, picture: np.ndarray) -> None:
    def against(outputs: Any, objects: list[Any]) -> Tensor:
        return torch.stack([-(t**2).sum() for t in outputs.sides[0, :, objects[0].index].T])

    class Negative(type(Explainer(detector).method)):  # type: ignore[misc]
        def maps(self, acts: Tensor, grads: Tensor | None) -> Tensor:
            return -super().maps(acts, grads).abs()

    explanation = Explainer(detector, imgsz=160, target=against, layers=["model.9"], method=Negative())(picture)
    assert all(note is not None and note.startswith("zero map") for note in explanation.notes)
    assert not explanation.heatmaps.any()


@pytest.mark.parametrize("place", ["model.0.conv", "model.9.cv2.conv", "model.15.cv1.conv", "model.22.cv2.0.0.conv"])
@pytest.mark.parametrize("layers", ["level", "evidence"])
def test_weights_that_are_not_finite(
    place: str, layers: str, detector: nn.Module, picture: np.ndarray, tmp_path: Path
) -> None:
    model = copy.deepcopy(detector)
    with torch.no_grad():
        model.get_submodule(place).weight[0] = float("nan")
    explanation = Explainer(model, imgsz=160, layers=layers)(picture)
    for values in (explanation.heatmaps, explanation.scores, explanation.boxes):
        assert bool(values.isfinite().all())
    explanation.save(tmp_path)
    json.loads((tmp_path / "explanation.json").read_text(), parse_constant=lambda c: pytest.fail(f"{c} is no JSON"))
    if "cv2.0" in place:  # only the boxes of the finest level are lost
        assert set(explanation.objects.level.tolist()) == {1, 2}


class Spoiled(nn.Module):
    """A layer of which one cell overflows."""

    def __init__(self, inner: nn.Module, bad: float) -> None:
        super().__init__()
        self.inner, self.bad, self.i, self.f = inner, bad, inner.i, inner.f

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x).clone()
        y[:, 0, 0, 0] = self.bad
        return y


class Cleaned(nn.Module):
    """A layer that reads only what is finite."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.i, self.f = inner, inner.i, inner.f

    def forward(self, x: Any) -> Tensor:
        return self.inner([t.nan_to_num(0, 0, 0) for t in x] if isinstance(x, list) else x.nan_to_num(0, 0, 0))


@pytest.mark.parametrize("layers", ["evidence", ["model.9"]])
@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_activations_that_are_not_finite(bad: float, layers: Any, detector: nn.Module, picture: np.ndarray) -> None:
    """The model goes on without the spoiled cell, so scores and gradients are finite and only the map is not."""
    model = copy.deepcopy(detector)
    model.model[9] = Spoiled(model.model[9], bad)
    for reader in (10, 20):
        model.model[reader] = Cleaned(model.model[reader])
    explanation = Explainer(model, imgsz=160, layers=layers, max_det=8)(picture)
    assert len(explanation) >= 3
    for normalize in ("object", "image", "none"):
        assert bool(explanation.render(dtype=torch.float32, normalize=normalize).isfinite().all())
    broken = [not bool(raw.isfinite().all()) for raw in explanation.maps]
    assert any(broken)
    for note, flag in zip(explanation.notes, broken, strict=True):
        assert flag == (note is not None and "not finite" in note)


@pytest.mark.parametrize("imgsz", [33, 96, 160])
def test_the_input_size_is_the_next_multiple_of_the_stride(imgsz: int, detector: nn.Module, seed: int) -> None:
    picture = random_picture(seed, 50, 50)
    explanation = Explainer(detector, imgsz=imgsz, conf=0.0, max_det=1)(picture)
    side = -(-imgsz // 32) * 32
    assert explanation.geometry.network == (side, side)
    assert explanation.settings["imgsz"] == imgsz
