"""The registry of methods, and a user's own method in an Explainer."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from detcam import Explainer, Explanation, InputError
from detcam.engine.sweeps import Probe
from detcam.errors import MethodError
from detcam.methods import DEFAULT, METHODS, Method, PooledMethod, SweepMethod, get_method, view_of


def test_names() -> None:
    assert DEFAULT == "layerig"
    assert type(get_method("auto")) is type(get_method("auto", "stem")) is METHODS["layerig"]
    assert type(get_method("auto", "level")) is type(get_method("auto", ["model.9"])) is METHODS["odam"]
    assert type(get_method("GradCAM++")) is METHODS["gradcam++"]
    for name, method in METHODS.items():
        assert type(get_method(name)) is method


def test_the_view_that_a_method_answers() -> None:
    assert view_of("layerig", "auto") == view_of("LayerIG", "stem") == "why"
    assert view_of("auto", "auto") == view_of("auto", "stem") == "why"
    assert view_of("auto", "level") == view_of("odam", "level") == view_of("odam", "auto") == "where"
    assert view_of("odam", "stem") is view_of("layerig", ["model.0"]) is view_of("captum:Saliency", "auto") is None


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("grad-cam", "gradcam"),
        ("d-rise", "drise"),
        ("score_cam", "scorecam"),
        ("gradcampp", "gradcam++"),
        ("eigen_cam", "eigencam"),
        ("oadm", "odam"),
        ("shapley-cam", "shapleycam"),
        ("smooth-grad", "smoothgrad"),
        ("fullgradcam", "fullgrad"),
    ],
)
def test_unknown_name_hints_at_the_nearest(wrong: str, meant: str) -> None:
    with pytest.raises(MethodError, match="does not exist") as caught:
        get_method(wrong)
    assert f"{meant!r}" in str(caught.value)
    assert repr(wrong) in str(caught.value)
    assert isinstance(caught.value, InputError)


def test_a_name_like_none_lists_the_choices() -> None:
    with pytest.raises(MethodError, match="choose one of odam, hirescam"):
        get_method("zzz")


class Strongest(Method):
    """The largest g * A over the channels."""

    name, formula, source = "strongest", "max_k g_k * A_k", "this test"

    def __init__(self) -> None:
        self.seen: list[tuple[torch.Size, torch.dtype]] = []

    def maps(self, acts: Tensor, grads: Tensor | None) -> Tensor:
        assert grads is not None
        assert grads.shape == acts.shape
        self.seen.append((acts.shape, grads.dtype))
        return (acts * grads).amax(dim=1)


class Brightness(Method):
    """The mean activation: no gradients, the same for all objects."""

    name, formula, source = "brightness", "mean_k A_k", "this test"
    reads, object_specific, passes = "activations", False, "1 F"

    def maps(self, acts: Tensor, grads: Tensor | None) -> Tensor:
        assert grads is None
        return acts.mean(dim=1)


class FirstChannel(PooledMethod):
    """Weight 1 for channel 0."""

    name, formula, source = "first", "A_0", "this test"

    def weights(self, acts: Tensor, grads: Tensor) -> Tensor:
        weights = torch.zeros(acts.shape[:2])
        weights[:, 0] = 1
        return weights


class Darkness(SweepMethod):
    """How far each score falls when the left or the right half is black."""

    name, formula, source = "darkness", "S - S without the half", "this test"
    reads, passes = "forwards", "4 F"

    def sweep(self, probe: Probe, layer: str) -> Tensor:
        assert layer == ""
        halves = probe.image.repeat(2, 1, 1, 1)
        middle = probe.size[1] // 2
        halves[0, ..., :middle], halves[1, ..., middle:] = 0, 0
        return (probe.unchanged - probe.scores(halves)).T[:, None, :]  # [N, 1, 2]


def explain(model: nn.Module, picture: np.ndarray, method: str | Method, layers: str = "level") -> Explanation:
    explanation = Explainer(model, method=method, layers=layers, imgsz=160, max_det=4)(picture)
    assert len(explanation) == 4
    return explanation


def test_a_users_method_explains_objects(detector: nn.Module, picture: np.ndarray) -> None:
    method = Strongest()
    assert get_method(method) is method
    explanation = explain(detector, picture, method)
    assert explanation.settings["method"] == "strongest"
    assert {dtype for _, dtype in method.seen} == {torch.float32}
    assert sum(shape[0] for shape, _ in method.seen) >= 4  # windows may compute a map from crops, never fewer
    elementwise = explain(detector, picture, "hirescam")
    for ours, summed in zip(explanation.maps, elementwise.maps, strict=True):
        assert ours.shape == summed.shape
        assert ours.any()
        assert not torch.equal(ours, summed)


def test_a_users_activation_method_gives_all_objects_one_map(detector: nn.Module, picture: np.ndarray) -> None:
    explanation = explain(detector, picture, Brightness(), layers="model.9")
    for one, note in zip(explanation.maps, explanation.notes, strict=True):
        torch.testing.assert_close(one, explanation.maps[0], rtol=0, atol=0)
        assert "same for every object: brightness" in (note or "")


def test_a_users_pooled_method_needs_weights_only(detector: nn.Module, picture: np.ndarray) -> None:
    acts = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(FirstChannel().maps(acts, torch.randn_like(acts)), acts[:, 0])
    assert all(one.any() for one in explain(detector, picture, FirstChannel()).maps)


def test_a_users_sweep_explains_objects(detector: nn.Module, picture: np.ndarray) -> None:
    explanation = explain(detector, picture, Darkness())
    assert explanation.settings["method"] == "darkness"
    assert explanation.heatmaps.shape == (4, *picture.shape[:2])
    adapter = Explainer(detector, imgsz=160).adapter
    pixels = adapter.prepare(picture)[0]
    dark = pixels.clone()
    dark[..., pixels.shape[2] // 2 :] = 0
    with torch.no_grad():
        before, after = (
            adapter.score(adapter.forward(x[None], 4), [explanation.objects], "class") for x in (pixels, dark)
        )
    for i, one in enumerate(explanation.maps):
        torch.testing.assert_close(one[0, 1], before[i] - after[i], rtol=1e-3, atol=1e-5)


def test_a_method_without_maps_is_no_method() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Method()  # type: ignore[abstract]
    with pytest.raises(TypeError, match="abstract"):
        SweepMethod()  # type: ignore[abstract]
