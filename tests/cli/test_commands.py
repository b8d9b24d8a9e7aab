"""The command line as a user meets it: files, exit codes, one line per error."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from detcam import cli
from detcam.scenes import HELD_OUT_SEED, draw_scene


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "scene.png"
    cv2.imwrite(str(path), draw_scene(HELD_OUT_SEED, (240, 320)).image[:, :, ::-1])
    return path


def check_folder(folder: Path, objects: int | None = None) -> dict:
    """An output folder holds what the documentation says, and the files agree with one another."""
    document = json.loads((folder / "explanation.json").read_text())
    heatmaps = np.load(folder / "heatmaps.npz")["heatmaps"]
    n = len(document["objects"])
    assert objects is None or n == objects
    assert heatmaps.dtype == np.float32
    assert heatmaps.shape == (n, document["image"]["height"], document["image"]["width"])
    assert np.isfinite(heatmaps).all()
    assert n == 0 or (heatmaps.min() >= 0 and heatmaps.max() <= 1)
    names = [found["overlay"] for found in document["objects"]]
    assert sorted(names) == sorted(p.name for p in folder.glob("overlay_*.png"))
    for name in [*names, "contact.png"]:
        assert cv2.imread(str(folder / name)) is not None
    assert not list(folder.glob(".*"))
    return document


def test_explain_writes_every_file(scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["explain", "--model", "scenes", str(scene), "--out", str(tmp_path / "o")]) == 0
    document = check_folder(tmp_path / "o")
    assert len(document["objects"]) >= 3
    assert "objects (" in capsys.readouterr().out


def test_several_images_get_a_folder_each(scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sub").mkdir()
    twin = tmp_path / "sub" / scene.name
    twin.write_bytes(scene.read_bytes())
    assert cli.run(["explain", "--model", "scenes", str(scene), str(twin), "--out", str(tmp_path / "o"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    first, second = check_folder(tmp_path / "o" / "scene"), check_folder(tmp_path / "o" / "scene_2")
    assert first["objects"] == second["objects"]
    assert [p["source"] for p in printed] == [str(scene), str(twin)]


def test_fewer_objects_leave_no_overlay_of_an_earlier_run(scene: Path, tmp_path: Path) -> None:
    assert cli.run(["explain", "--model", "scenes", str(scene), "--out", str(tmp_path)]) == 0
    assert cli.run(["explain", "--model", "scenes", str(scene), "--max-det", "1", "--out", str(tmp_path)]) == 0
    check_folder(tmp_path, objects=1)


def test_no_detections_are_a_normal_result(tmp_path: Path) -> None:
    blank = tmp_path / "blank.png"
    cv2.imwrite(str(blank), np.full((120, 200, 3), 127, np.uint8))
    assert cli.run(["explain", "--model", "scenes", str(blank), "--conf", "0.9", "--out", str(tmp_path / "o")]) == 0
    check_folder(tmp_path / "o", objects=0)


def test_config_and_flags(scene: Path, tmp_path: Path) -> None:
    preset = tmp_path / "p.yaml"
    preset.write_text("method: gradcam\nlayers: evidence\nmax_det: 2\n")
    arguments = [
        "explain",
        str(scene),
        "--model",
        "scenes-yolo",
        "--config",
        str(preset),
        "--method",
        "layercam",
        "--out",
        str(tmp_path / "o"),
    ]
    assert cli.run(arguments) == 0
    settings = check_folder(tmp_path / "o", objects=2)["settings"]
    assert settings["method"] == "layercam"
    assert settings["layers"] == ["model.4", "model.6", "model.9"]


def write_bad_files(folder: Path, scene: Path) -> None:
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("no picture")
    _, data = cv2.imencode(".jpg", cv2.imread(str(scene)))
    (folder / "cut.jpg").write_bytes(data.tobytes()[: len(data) // 2])
    (folder / "folder").mkdir()
    (folder / "weights.pt").write_bytes(b"not a checkpoint")
    (folder / "file").write_text("in the way")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["explain", "missing.jpg"], ["missing.jpg", "does not exist"]),
        (["explain", "text.jpg", "--model", "scenes"], ["text.jpg", "not an image"]),
        (["explain", "cut.jpg", "--model", "scenes"], ["cut.jpg", "damaged"]),
        (["explain", "empty.jpg", "--model", "scenes"], ["empty.jpg", "0 bytes"]),
        (["explain", "folder", "--model", "scenes"], ["folder", "directory"]),
        (["explain", "SCENE", "--model", "scenes", "--method", "gradcm"], ["gradcm", "'gradcam'"]),
        (["explain", "SCENE", "--model", "scenes-yolo", "--layers", "model.99"], ["model.99", "'model.9'"]),
        (
            ["explain", "SCENE", "--model", "scenes-yolo", "--layers", "model.22.cv2.0"],
            ["model.22.cv2.0", "does not depend"],
        ),
        (["explain", "SCENE", "--model", "scenes", "--target", "clas"], ["clas", "'class'"]),
        (["explain", "SCENE", "--model", "scenes", "--target", "objectness"], ["objectness", "torchvision"]),
        (["explain", "SCENE", "--model", "no.pt"], ["no.pt", "does not exist"]),
        (["explain", "SCENE", "--model", "weights.pt"], ["weights.pt", "cannot be loaded"]),
        (["explain", "SCENE", "--model", "scens"], ["scens", "'scenes'"]),
        (["explain", "SCENE", "--model", "scenes", "--conf", "7"], ["conf", "7"]),
        (["explain", "SCENE", "--model", "scenes", "--out", "file/deeper"], ["file/deeper", "--out"]),
        (["explain", "SCENE", "--model", "scenes", "--config", "none.yaml"], ["none.yaml"]),
        (["explain", "SCENE", "--model", "scenes", "--cnf", "1"], ["--cnf"]),
        (["explain"], ["images"]),
        (["explain", "SCENE"], ["model: none is given", "--model yolov8n.pt", "--model scenes"]),
        (["video", "folder"], ["model: none is given", "--model yolov8n.pt", "--model scenes"]),
        (["batch", "folder"], ["model: none is given", "--model yolov8n.pt", "--model scenes"]),
        (["compare", "SCENE", "--method", "odam", "--method", "gradcam"], ["model: none is given"]),
        (["explain", "SCENE", "--model", "a.onnx"], ["a.onnx is an exported network", "candidates="]),
        (["explain", "SCENE", "--model", "scenes", "--classes", "kyte"], ["'kyte' is not a class", "'kite'"]),
        (["explain", "SCENE", "--model", "scenes", "--imgsz", "64,64,64"], ["imgsz"]),
        (["nonsense"], ["nonsense"]),
        (["layers", "no.pt"], ["no.pt"]),
        (["demo", "--scenes", "0"], ["scenes"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_is_one_line_and_exit_2(
    arguments: list[str],
    words: list[str],
    scene: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_bad_files(tmp_path, scene)
    monkeypatch.chdir(tmp_path)
    before = {p.relative_to(tmp_path) for p in tmp_path.rglob("*")}
    assert cli.run([str(scene) if a == "SCENE" else a for a in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert all(word in captured.err for word in words), captured.err
    assert captured.out == ""
    assert {p.relative_to(tmp_path) for p in tmp_path.rglob("*")} == before


def test_no_gpu_for_device_cuda(scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU, so --device cuda is no error")
    assert cli.run(["explain", "--model", "scenes", str(scene), "--device", "cuda", "--out", str(tmp_path / "o")]) == 2
    assert "use device 'cpu'" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_a_failure_inside_is_exit_1_and_a_traceback_only_with_debug(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("the roof is leaking")

    monkeypatch.setattr("detcam.explainer.Explainer.__init__", broken)
    arguments = ["explain", "--model", "scenes", str(scene), "--out", str(tmp_path / "o")]
    assert cli.run(arguments) == 1
    quiet = capsys.readouterr().err
    assert "the roof is leaking" in quiet
    assert "Traceback" not in quiet
    assert cli.run([*arguments, "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_lists_are_json_on_demand(capsys: pytest.CaptureFixture[str]) -> None:
    answers = {}
    for command in (["methods"], ["families"], ["layers", "scenes-yolo"], ["doctor"]):
        assert cli.run([*command, "--json"]) == 0
        answers[command[0]] = json.loads(capsys.readouterr().out)
    assert {"odam", "gradcam", "eigencam"} <= {m["name"] for m in answers["methods"]["methods"]}
    presets = {preset for layer in answers["layers"] for preset in layer["presets"]}
    assert presets == {"level", "evidence", "stem"}
    sides = {layer["stride"] * layer["height"] for layer in answers["layers"]}
    assert sides == {256}  # the height of the demo model's input for a scene
    assert {layer["gradient"] == 0 for layer in answers["layers"]} == {True, False}
    assert answers["doctor"]["packages"]["torch"]


def test_layers_of_a_picture(scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["layers", "scenes-yolo", "--image", str(scene), "--json"]) == 0
    named = {layer["name"]: layer for layer in json.loads(capsys.readouterr().out)}
    assert (named["model.9"]["kind"], named["model.9"]["gradient"]) == ("SPPF", 1.0)
    assert cli.run(["layers", "scenes-yolo", "--image", str(tmp_path / "gone.png")]) == 2
    assert "gone.png does not exist" in capsys.readouterr().err


def test_families_say_what_was_tested_and_what_is_here(capsys: pytest.CaptureFixture[str]) -> None:
    from importlib.metadata import version

    from detcam.adapters import ADAPTERS

    assert cli.run(["families", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["family"] for row in rows] == [*(adapter.family for adapter in ADAPTERS), "custom"]
    for row in rows:
        library = row["family"].split()[0]
        assert row["models"]
        assert row["targets"]
        assert row["install"]
        if library == "custom":
            assert row["tested"] is None
            continue
        assert row["tested"], f"{library}: say which version was tested, in detcam/cli/families.py"
        assert row["tested"].startswith(f"{library} ")
        if row["installed"] is not None:
            assert row["installed"] == version(library)
    assert {row["tested"] for row in rows if row["family"] == "ultralytics"} == {"ultralytics 8.4.190"}
    assert cli.run(["families"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("tested: ultralytics 8.4.183 and 8.4.190; here" in line for line in lines)


def test_demo_explains_held_out_scenes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["demo", "--out", str(tmp_path / "demo"), "--scenes", "2"]) == 0
    check_folder(tmp_path / "demo")
    check_folder(tmp_path / "demo" / "scene_002")
    assert "detcam explain photo.jpg --model yolov8n.pt" in capsys.readouterr().out


@pytest.mark.nightly
def test_the_module_runs_as_a_program_and_stays_light() -> None:
    """`python -m detcam methods` imports no library that it does not need."""
    heavy = ("ultralytics", "transformers", "ray", "av", "matplotlib")
    script = f"""
import atexit, runpy, sys
atexit.register(lambda: print([name for name in {heavy} if name in sys.modules]))
sys.argv = ["detcam", "methods"]
runpy.run_module("detcam", run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "odam" in done.stdout
    assert all(len(line) <= 80 for line in done.stdout.splitlines())
    assert done.stdout.splitlines()[-1] == "[]"
