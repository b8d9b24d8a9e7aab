"""Every example runs, writes its pictures, and stays short."""

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = sorted(path.name for path in EXAMPLES.glob("*.py"))


def test_there_are_examples() -> None:
    assert len(NAMES) >= 6


SLOW = {"explain_video.py", "integrations.py"}  # tests/video and tests/integrations run the same calls


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.nightly] if n in SLOW else []) for n in NAMES])
def test_example_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [name])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    assert list(tmp_path.rglob("*.png"))


@pytest.mark.parametrize("name", NAMES)
def test_example_is_under_60_lines(name: str) -> None:
    assert len((EXAMPLES / name).read_text().splitlines()) < 60
