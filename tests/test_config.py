"""Presets: what is written is what runs, and what is misspelt is named."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from detcam import Explainer, Explanation, cli
from detcam.adapters import PanopticAdapter
from detcam.config import Preset, read_preset
from detcam.errors import InputError
from detcam.scenes import HELD_OUT_SEED, draw_scene

CONFIGS = Path(__file__).parents[1] / "configs"


def test_the_default_preset_spells_out_the_defaults() -> None:
    assert read_preset(CONFIGS / "default.yaml") == Preset()


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.name)
def test_every_shipped_preset_is_valid(path: Path) -> None:
    read_preset(path)


def test_flags_win_over_the_file_and_missing_flags_do_not(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("method: gradcam\nconf: 0.5\nlayers: [model.9, model.12]\n")
    preset = read_preset(path).updated(conf=0.1, iou=None)
    assert (preset.method, preset.conf, preset.iou, preset.layers) == (
        "gradcam",
        0.1,
        0.7,
        ["model.9", "model.12"],
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("methd: odam", ["methd", "'method'"]),
        ("conf: 2", ["conf", "2"]),
        ("conf: high", ["conf", "high"]),
        ("max_det: 0", ["max_det"]),
        ("- a\n- b", ["list"]),
        ("a: [1", ["YAML"]),
        ("1: 2", ["1"]),
        ("conf: .nan", ["conf", "nan"]),
        ("conf: true", ["conf", "True"]),
        ("segments: clas", ["segments", "'clas'", "component"]),
        ("adapter: yolo", ["adapter", "'yolo'", "panoptic"]),
        ("text: a cat", ["text", "'a cat'"]),
        ("conf: .5\nconf: .6", ["'conf'", "twice"]),
        ("layers: &a [x]\ntext: *a", ["aliases"]),
        ("model: !!python/object/apply:os.system [echo]", ["YAML"]),
        ("a: 2001-99-99", ["YAML"]),
        ("[" * 1500, ["YAML"]),
        ("# " + "x" * 70_000, ["16,384 bytes"]),
    ],
)
def test_bad_presets_are_refused_by_name(tmp_path: Path, text: str, words: list[str]) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_preset(path)
    message = str(caught.value)
    assert "\n" not in message
    assert "bad.yaml" in message
    assert all(word in message for word in words), message


def test_a_missing_or_binary_preset_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_preset(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(InputError, match="YAML"):
        read_preset(tmp_path / "binary.yaml")


def test_flags_out_of_range_are_refused() -> None:
    with pytest.raises(InputError, match="option 'conf'"):
        Preset().updated(conf=1.5)


WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=12)
PRESETS = st.builds(
    Preset,
    model=WORDS,
    method=WORDS,
    layers=WORDS | st.lists(WORDS, max_size=3),
    target=WORDS,
    segments=st.sampled_from(["class", "component"]),
    text=st.none() | st.lists(WORDS, max_size=3),
    adapter=st.sampled_from(["auto", "panoptic"]),
    conf=st.floats(0, 1),
    iou=st.floats(0, 1),
    max_det=st.integers(1, 10**6),
    imgsz=st.none() | st.integers(32, 10**5),
    device=st.none() | WORDS,
)


@given(preset=PRESETS)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_printed_reads_back_as_it_was(tmp_path: Path, preset: Preset) -> None:
    path = tmp_path / "printed.yaml"
    path.write_text(preset.to_yaml(), encoding="utf-8")
    assert read_preset(path) == preset


def test_print_config_prints_what_is_in_force_and_does_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--config", str(CONFIGS / "mask.yaml"), "--conf", "0.4", "--layers", "model.9,model.12", "--text", "a cat"]
    assert cli.run(["explain", *flags, "--print-config"]) == 0
    printed = capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    path = tmp_path / "mine.yaml"
    path.write_text(printed)
    expected = Preset(target="mask-margin", conf=0.4, layers=["model.9", "model.12"], text=["a cat"])
    assert read_preset(path) == expected
    assert cli.run(["explain", "--config", str(path), "--print-config"]) == 0
    assert capsys.readouterr().out == printed
    assert cli.run(["explain", "--config", str(path)]) == 2  # no picture
    assert "images" in capsys.readouterr().err


def test_a_preset_holds_the_explainers_own_options() -> None:
    from inspect import signature

    known = signature(Explainer).parameters
    options = Preset(adapter="panoptic").options()
    assert set(options) <= set(known)
    assert options["adapter"] is PanopticAdapter
    defaults = {name: known[name].default for name in options if name != "model"}
    assert {name: value for name, value in Preset().options().items() if name != "model"} == defaults


def explained(image: np.ndarray, name: str, **more: Any) -> Explanation:
    explanation = Explainer(**{**read_preset(CONFIGS / name).options(), **more})(image)
    assert isinstance(explanation, Explanation)
    return explanation


def test_each_shipped_preset_does_what_it_says() -> None:
    """where.yaml stays in the box, the default does not; mask.yaml: the outline; blackbox.yaml: nothing of the model."""
    image = draw_scene(HELD_OUT_SEED, (240, 320)).image
    default, where, mask = (
        explained(image, f"{name}.yaml", model="scenes-yolo") for name in ("default", "where", "mask")
    )
    assert len(default) >= 3
    around, inside = (np.mean([v for v in e.energy_in_box if v is not None]) for e in (default, where))
    assert around < inside - 0.1
    assert (default.settings["view"], where.settings["view"]) == ("why", "where")
    assert (default.settings["target"], mask.settings["target"]) == ("margin", "mask-margin")
    assert mask.labels == default.labels
    assert not any(np.allclose(a, b, atol=1e-3) for a, b in zip(default.heatmaps, mask.heatmaps, strict=True))
    options = read_preset(CONFIGS / "blackbox.yaml").options()
    assert Explainer(**options).method.reads == "forwards"
