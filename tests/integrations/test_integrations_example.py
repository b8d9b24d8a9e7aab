"""The example runs and stays short, and detcam imports without any partner."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "integrations.py"
PARTNERS = (
    "supervision",
    "pycocotools",
    "matplotlib",
    "torchvision",
    "ultralytics",
    "fiftyone",
    "wandb",
    "tensorboard",
)
VIDEO = ("av", "trackers", "scipy")


@pytest.mark.nightly
def test_the_example_writes_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for library in ("supervision", "pycocotools", "matplotlib", "ultralytics"):
        pytest.importorskip(library)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["integrations.py"])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    out = tmp_path / "example-integrations"
    assert {p.name for p in out.glob("*.png")} == {"boxes.png", "figure.png", "supervision.png", "first.png"}
    found = json.loads((out / "coco.json").read_text())
    (task,) = json.loads((out / "label-studio.json").read_text())
    rectangles = [r for r in task["predictions"][0]["result"] if r["type"] == "rectanglelabels"]
    assert len(found) == len(rectangles) > 0
    assert len(EXAMPLE.read_text().splitlines()) < 60


@pytest.mark.nightly
def test_no_partner_is_imported_with_detcam() -> None:
    names = (*PARTNERS, *VIDEO)
    code = f"import sys, detcam, detcam.cli, detcam.video; print([name for name in {names} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
