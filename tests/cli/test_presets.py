"""A preset means the same to every command: what it says runs, flags win over it, and what it cannot say is refused."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import pytest
import yaml

from benchmarks.training.yolo_dataset import write_dataset
from detcam import cli
from detcam.config import Preset, read_preset
from detcam.scenes import HELD_OUT_SEED

SIZE = (120, 160)
SIDES = {"explain": [], "video": [], "batch": [], "evaluate": [], "compare": ["--target", "prob", "--target", "box"]}
Printed = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two held-out scenes as pictures with labels, and as a video."""
    folder = tmp_path_factory.mktemp("scenes")
    write_dataset(folder, train=(), val=[HELD_OUT_SEED, HELD_OUT_SEED + 3], size=SIZE, workers=1)
    writer = cv2.VideoWriter(str(folder / "clip.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 5, SIZE[::-1])
    for path in sorted((folder / "images" / "val").iterdir()):
        writer.write(cv2.imread(str(path)))
    writer.release()
    return folder


def written(folder: Path, **options: object) -> str:
    path = folder / f"{'-'.join(options)}.yaml"
    path.write_text(yaml.safe_dump(options))
    return str(path)


@pytest.mark.parametrize("command", ["explain", "video", "batch"])
def test_print_config_reads_back(
    command: str, tmp_path: Path, capsys: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    preset = written(tmp_path, method="gradcam", conf=0.5, text=["a kite"], adapter="panoptic")
    flags = ["--conf", "0.4", "--layers", "model.9,model.12", "--max-det", "7", "--segments", "component"]
    before = sorted(tmp_path.iterdir())
    assert cli.run([command, "--config", preset, *flags, "--print-config"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert sorted(tmp_path.iterdir()) == before, "it does nothing else"
    path = tmp_path / "mine.yaml"
    path.write_text(printed.out)
    assert read_preset(path) == Preset(
        method="gradcam", conf=0.4, text=["a kite"], adapter="panoptic", layers=["model.9", "model.12"], max_det=7,
        segments="component",
    )  # fmt: skip
    assert cli.run([command, "--config", str(path), "--print-config"]) == 0
    assert capsys.readouterr().out == printed.out
    assert cli.run([command, "--config", str(path)]) == 2  # no picture
    assert ": give " in capsys.readouterr().err


def test_evaluate_prints_what_a_preset_can_hold(tmp_path: Path, capsys: Printed) -> None:
    """One method and one choice of layers; what is judged by default is no choice of the preset's."""
    preset = written(tmp_path, method="layercam", layers=["model.9", "model.12"], target="box")
    for flags, method, layers in (
        ([], "layercam", ["model.9", "model.12"]),
        (["--layers", "level"], "layercam", "level"),
        (["--layers", "level,evidence"], "layercam", None),
        (["--methods", "odam", "--layers", "model.4+model.6"], "odam", ["model.4", "model.6"]),
        (["--methods", "odam,gradcam"], None, ["model.9", "model.12"]),
        (["--methods", "all"], None, ["model.9", "model.12"]),
    ):
        assert cli.run(["evaluate", "--config", preset, *flags, "--imgsz", "160", "--print-config"]) == 0
        printed = yaml.safe_load(capsys.readouterr().out)
        assert (printed.get("method"), printed.get("layers")) == (method, layers)
        assert (printed["target"], printed["imgsz"]) == ("box", 160)
        Preset(**printed)
    assert cli.run(["evaluate", "--print-config"]) == 0
    assert not {"method", "layers"} & yaml.safe_load(capsys.readouterr().out).keys()


def test_compare_prints_both_sides(tmp_path: Path, capsys: Printed) -> None:
    one, other = written(tmp_path, layers="level", conf=0.3), written(tmp_path, layers=["model.9"], iou=0.5)
    flags = ["--config", one, "--config", other, "--target", "box", "--print-config"]
    assert cli.run(["compare", *flags]) == 0
    a, b = (Preset(**side) for side in yaml.safe_load_all(capsys.readouterr().out))
    assert a == Preset(layers="level", conf=0.3, target="box")
    assert b == Preset(layers=["model.9"], iou=0.5, target="box")
    assert cli.run(["compare", "--config", one, "--method", "odam", "--method", "gradcam", "--print-config"]) == 0
    a, b = (Preset(**side) for side in yaml.safe_load_all(capsys.readouterr().out))
    assert (a.method, b.method) == ("odam", "gradcam")
    assert a.updated(method="gradcam") == b == Preset(layers="level", conf=0.3, method="gradcam")
    assert cli.run(["compare", *flags, "--config", other]) == 2
    assert "--config is given 3 times" in capsys.readouterr().err
    assert cli.run(["compare", "--config", one, "--print-config"]) == 2
    assert "nothing to compare" in capsys.readouterr().err


@pytest.fixture
def given(tmp_path: Path) -> list[str]:
    """A preset, and a flag that wins over its conf."""
    preset = written(tmp_path, model="scenes-yolo", method="gradcam", layers="evidence", max_det=2, imgsz=160, conf=0.9)
    return ["--config", preset, "--conf", "0.3"]


def test_a_preset_is_what_video_runs(scenes: Path, given: list[str], tmp_path: Path) -> None:
    out, stats = str(tmp_path / "v.mp4"), tmp_path / "v.json"
    assert cli.run(["video", str(scenes / "clip.avi"), *given, "--out", out, "--json", str(stats)]) == 0
    done = json.loads(stats.read_text())
    assert (done["settings"]["method"], done["settings"]["layers"]) == ("gradcam", ["model.4", "model.6", "model.9"])
    assert done["frames"] < done["objects"] <= 2 * done["frames"], "conf is the flag's, max_det the preset's"


@pytest.mark.nightly  # a worker is a process
def test_a_preset_is_what_batch_runs(scenes: Path, given: list[str], tmp_path: Path) -> None:
    images, out = str(scenes / "images" / "val"), tmp_path / "batch"
    assert cli.run(["batch", images, *given, "--out", str(out), "--workers", "1", "--threads", "1"]) == 0
    options = json.loads((out / "job.json").read_text())["options"]
    assert {name: options[name] for name in ("method", "layers", "max_det", "imgsz", "conf")} == {
        "method": "gradcam", "layers": "evidence", "max_det": 2, "imgsz": 160, "conf": 0.3,
    }  # fmt: skip


def test_presets_are_what_compare_runs(scenes: Path, given: list[str], tmp_path: Path) -> None:
    images, out = sorted(map(str, (scenes / "images" / "val").iterdir())), tmp_path / "compared"
    other = written(tmp_path, model="scenes", layers="level", imgsz=160)
    assert cli.run(["compare", *images, *given, "--config", other, "--out", str(out)]) == 0
    document = json.loads((out / "compare.json").read_text())
    a, b = document["a"], document["b"]
    assert (a["name"], b["name"]) == (Path(given[1]).name, Path(other).name)
    assert (a["settings"]["method"], b["settings"]["method"]) == ("gradcam", "odam")
    assert a["settings"]["layers"] != b["settings"]["layers"]
    assert all(picture["objects"]["a"] == 2 for picture in document["pictures"])


@pytest.mark.nightly  # baselines, randomised weights, deletion
def test_a_preset_is_what_evaluate_runs(scenes: Path, given: list[str], tmp_path: Path, capsys: Printed) -> None:
    images, labels, out = str(scenes / "images" / "val"), str(scenes / "labels" / "val"), tmp_path / "judged"
    truth = ["--images", images, "--labels", labels, "--quick", "--pictures", "1", "--out", str(out), "--json"]
    assert cli.run(["evaluate", *given, *truth]) == 0, "the preset names the model"
    document = json.loads(capsys.readouterr().out)
    assert {name for name in document["contenders"] if "@" in name} == {"gradcam @ evidence"}
    settings = json.loads((out / "settings.json").read_text())
    assert (settings["max_det"], settings["imgsz"], settings["conf"], settings["model"]) == (2, 160, 0.3, "scenes-yolo")
    assert document["objects"] <= 2


def test_evaluate_needs_a_model_that_somebody_named(scenes: Path, tmp_path: Path, capsys: Printed) -> None:
    given = ["--images", str(scenes / "images" / "val"), "--labels", str(scenes / "labels" / "val")]
    assert cli.run(["evaluate", *given, "--config", written(tmp_path, conf=0.4)]) == 2
    assert "give --model" in capsys.readouterr().err
    assert cli.run(["evaluate", "--scenes", "1", "--config", written(tmp_path, conf=0.4)]) == 2
    assert "leave out --config\n" in capsys.readouterr().err
    assert cli.run(["evaluate", "--scenes", "1", "--target", "margin", "--max-det", "2"]) == 2
    assert "leave out --target, --max-det\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("every", ["'every'", "not part of a preset", "give --every to detcam video"]),
        ("max_errors", ["give --max-errors to detcam batch"]),
        ("fills", ["give --fills to detcam evaluate"]),
        ("match", ["give --match to detcam compare"]),
        ("steady", ["give --steady to detcam video"]),
        ("trust_checkpoint", ["--trust-checkpoint", "explain", "video", "evaluate", "batch", "compare"]),
        ("methd", ["'methd'", "did you mean 'method'"]),
        ("zzz", ["'zzz'", "choose one of"]),
    ],
)
def test_keys_that_are_not_options(key: str, words: list[str], tmp_path: Path, capsys: Printed) -> None:
    preset = written(tmp_path, **{key: True})
    for command in SIDES if key == "every" else ("explain",):
        assert cli.run([command, *SIDES[command], "--config", preset, "--print-config"]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.startswith(f"error: config {preset}: key ")
        assert printed.err.count("\n") == 1
        assert all(word in printed.err for word in words), printed.err
