"""Every example runs, writes its pictures, and stays short."""

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SHORT = [
    "explain_one_image.py",
    "explain_one_mask.py",
    "explain_video.py",
    "own_layer_and_method.py",
    "own_model.py",
    "why_missed.py",
]


@pytest.mark.parametrize("name", SHORT)
def test_example_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [name])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    assert list(tmp_path.rglob("*.png"))


@pytest.mark.parametrize("name", SHORT)
def test_example_is_under_60_lines(name: str) -> None:
    assert len((EXAMPLES / name).read_text().splitlines()) < 60
