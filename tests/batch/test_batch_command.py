"""`detcam batch` as a user meets it: what it prints, what it refuses, and what lies in the folder."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from photos import write_photos

from detcam import cli
from detcam.batch import load
from detcam.batch.estimate import Estimate
from detcam.cli.batch_summary import duration, sentences

QUICK = ["--imgsz", "160", "--workers", "1", "--threads", "1"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven pictures, one of them broken and one blank."""
    folder = tmp_path_factory.mktemp("photos")
    write_photos(folder, 3, 9)
    (folder / "broken.jpg").write_bytes(b"nothing")
    cv2.imwrite(str(folder / "blank.png"), np.full((100, 120, 3), 128, np.uint8))
    return folder


def refused(arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["batch", *arguments]) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert expected in lines[0]
    assert captured.out == ""


def test_a_job_from_beginning_to_end(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "heat"
    job = ["batch", str(photos), "--model", "scenes", "--out", str(out), *QUICK]
    assert cli.run([*job, "--chunk", "4", "--metrics", "compactness", "--report"]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    loaded = load(out)
    objects = sum(len(e) for e in loaded)
    assert lines[0].startswith(f"11 images, {objects} objects, ")
    assert lines[0].endswith(f" -> {out}")
    assert "images a second" in lines[1]
    assert lines[2].startswith("1 image failed")
    assert lines[3].startswith("  broken.jpg: ")
    assert lines[4] == f"Open {out}/explanations/index.html"
    assert "0 of 11 images" in captured.err
    assert (len(loaded), len(loaded.errors)) == (10, 1)
    assert sorted(path.name for path in out.iterdir()) == ["explanations", "job.json", "objects", "pictures"]
    assert len(list((out / "explanations").glob("*/overlay_*.png"))) == objects
    assert len(list((out / "objects").iterdir())) == 3

    refused(job[1:], "add --resume", capsys)
    refused([*job[1:], "--resume", "--conf", "0.4"], "options.conf was 0.25, now 0.4", capsys)
    again = ["--resume", "--retry-errors", "--timeout", "900"]
    assert cli.run([*job, "--metrics", "compactness", "--overlays", *again, "--json"]) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert (document["total"], document["before"], document["done"], document["errors"]) == (11, 10, 11, 1)
    assert captured.err == ""


def test_dry_run(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "heat"
    assert cli.run(["batch", str(photos), "--model", "scenes", "--out", str(out), *QUICK, "--dry-run", "--json"]) == 0
    expected = json.loads(capsys.readouterr().out)
    assert not out.exists(), "nothing is written"
    assert (expected["pictures"], expected["sampled"], expected["workers"], expected["shards"]) == (11, 11, 1, 2)
    assert [key for key, _ in expected["errors"]] == ["broken.jpg"]
    lines = list(sentences(Estimate(**expected)))
    assert lines[0].startswith("11 images; tried 11: ")
    assert "with 1 worker, " in lines[1]
    assert lines[2].startswith("  broken.jpg fails: ")
    cli.run(["batch", str(photos), "--model", "scenes", "--out", str(out), *QUICK])
    written = sum(path.stat().st_size for path in out.rglob("*.parquet"))
    assert expected["bytes"] == pytest.approx(written, rel=0.15), "all were tried, so little is left to guess"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nowhere"], "nowhere"),
        (["PHOTOS", "--engine", "spark"], "engine 'spark' does not exist"),
        (["PHOTOS", "--address", "ray://host:1"], "add --engine ray"),
        (["PHOTOS", "--conf", "2"], "conf"),
        (["PHOTOS", "--model", "nope.pt"], "nope.pt does not exist"),
        (["PHOTOS", "--metrics", "beauty"], "metric 'beauty' does not exist"),
        (["PHOTOS", "--layers", "model.99"], "layer 'model.99' does not exist"),
        (["PHOTOS", "--retry-errors"], "add --resume"),
        (["PHOTOS", "--max-errors", "0"], "1 images failed, more than --max-errors 0"),
        (["PHOTOS", "--out", "memory://heat", "--overlays"], "can only be saved on disk"),
        (["PHOTOS", "--out", "PHOTOS/heat", "--overlays"], "would be explained as images"),
        (["PHOTOS", "--device", "cuda:77"], "cuda:77"),
    ],
)
def test_refusals(
    arguments: list[str], expected: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [argument.replace("PHOTOS", str(photos)) for argument in arguments]
    out = [] if "--out" in arguments else ["--out", str(tmp_path / "heat")]
    refused(["--model", "scenes", *given, *out, *QUICK], expected, capsys)
    if expected.startswith(("metric", "layer")):  # nothing was done, so the folder can be used again
        assert load(tmp_path / "heat").keys == []


@pytest.mark.nightly
def test_help_names_no_library() -> None:
    """Nothing heavy is imported before a job begins."""
    code = (
        "import sys; from detcam import cli; cli.run(['batch', '--help']); "
        "print([m for m in ('pyarrow', 'ray', 'fsspec', 'ultralytics', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "--resume" in done.stdout


def test_words() -> None:
    assert [duration(s) for s in (0.4, 59, 300, 7200, 200_000)] == ["0 s", "59 s", "5.0 min", "2.0 h", "2.3 days"]
