"""Presets: what is written is what runs, and what is misspelt is named."""

from pathlib import Path

import pytest

from detcam.config import Preset, read_preset
from detcam.errors import InputError

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
