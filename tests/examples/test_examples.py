"""Every example runs, writes its pictures, and stays short."""

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
# They train for minutes and put their result in place of the shipped weights; tests/zoo and tests/evaluate judge these.
TRAINING = {
    "train_demo_detr.py",
    "train_demo_model.py",
    "train_demo_semantic.py",
    "train_planted_models.py",
    "training.py",  # what they share
}
SHORT = sorted(path.name for path in EXAMPLES.glob("*.py") if path.name not in TRAINING)


def test_what_does_not_run_here_is_there() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} >= TRAINING
    assert len(SHORT) >= 6


@pytest.mark.parametrize("name", SHORT)
def test_example_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [name])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    assert list(tmp_path.rglob("*.png"))


@pytest.mark.parametrize("name", SHORT)
def test_example_is_under_60_lines(name: str) -> None:
    assert len((EXAMPLES / name).read_text().splitlines()) < 60
