"""`detcam compare` as a user meets it: files, tables, exit codes, one line per error."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from rich.cells import cell_len

import detcam
from detcam import cli
from detcam.cli.compare import ends, names, sides
from detcam.scenes import HELD_OUT_SEED, draw_scene

QUICK = ["--imgsz", "192", "--model", "scenes-yolo"]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("compare")
    paths = [folder / f"a scene with quite a long name {i}.png" for i in range(2)]
    for i, path in enumerate(paths):
        cv2.imwrite(str(path), draw_scene(HELD_OUT_SEED + i, (240, 320)).image[:, :, ::-1])
    return [str(path) for path in paths]


def test_two_layers_of_one_model(scenes: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "compare",
        *scenes,
        "--layers",
        "level",
        "--layers",
        "evidence",
        "--out",
        str(tmp_path),
        "--json",
        *QUICK,
    ]
    assert cli.run(arguments) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    document = json.loads(printed.out)
    assert document == json.loads((tmp_path / "compare.json").read_text())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["compare.html", "compare.json"]
    assert (document["a"]["name"], document["b"]["name"]) == ("level", "evidence")
    explainers = [detcam.Explainer("scenes-yolo", layers=layers, imgsz=192) for layers in ("level", "evidence")]
    expected = []
    for path in scenes:
        a, b = (explainer(path) for explainer in explainers)
        expected += [(path, pair.a, pair.b, pair.similarity) for pair in detcam.compare(a, b).pairs]
    assert len(expected) >= 6
    expected.sort(key=lambda row: row[3])
    rows = [(row["picture"], row["a"]["object"], row["b"]["object"], row["similarity"]) for row in document["rows"]]
    assert [row[:3] for row in rows] == [row[:3] for row in expected]
    assert [row[3] for row in rows] == pytest.approx([row[3] for row in expected], abs=1e-5)
    assert document["summary"]["similarity"] == pytest.approx(np.mean([row[3] for row in expected]), abs=1e-5)


def test_the_table_fits_80_columns_and_a_pipe(
    scenes: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("detcam.cli.console.LINE_SECONDS", 0)
    for images in (scenes, scenes[:1]):
        assert (
            cli.run(["compare", *images, "--method", "odam", "--method", "eigencam", "--out", str(tmp_path), *QUICK])
            == 0
        )
        printed = capsys.readouterr()
        told = [f"{i} of {len(images)} images compared" for i in range(len(images))]
        assert printed.err.splitlines() == told, "no bar, but a line now and then"
        assert "\x1b" not in printed.out
        *lines, opened = printed.out.splitlines()
        assert max(map(cell_len, lines)) <= 80
        assert opened == f"Open {tmp_path / 'compare.html'}", "a path is never broken"
        assert lines[:2] == ["A: odam", "B: eigencam"]
        rows = json.loads((tmp_path / "compare.json").read_text())["rows"]
        told = [line for line in lines if line.startswith("│")]
        assert len(told) == min(len(rows), 20)
        for line, row in zip(told, rows, strict=False):
            cells = [cell.strip() for cell in line.strip("│").split("│")]
            assert cells[0] == row["a"]["label"]
            assert abs(float(cells[-2]) - row["similarity"]) <= 0.0051
            assert len(images) == 1 or cells[1].endswith(row["picture"][-5:])


def test_hostile_names_are_one_line_of_text(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from rich.console import Console

    from detcam.cli.compare import report

    label = "[red]dog[/] \x1b[31m\n\u202egod שלום 🦊"
    facts = {"label": label, "score": 0.5}
    row = {"picture": "a/\x1b]0;x\x07.png", "a": facts, "b": None, "similarity": None, "rank_correlation": None}
    document = {
        "a": {"name": label},
        "b": {"name": "b"},
        "summary": {"pictures": 2, "both": 0, "only_a": 1, "only_b": 0, "similarity": None, "rank_correlation": None},
        "rows": [row] * 30,
    }
    report(document, tmp_path / "\x1b[0m.html", Console(width=80, highlight=False, soft_wrap=True))
    printed = capsys.readouterr().out
    assert not any(c in printed for c in "\x1b\x07\u202e")
    assert r"[red]dog[/] \x1b[31m\n\u202egod שלום 🦊" in printed
    assert "... and 10 more" in printed
    for width in (30, 50, 79, 200):
        report(document, Path("x"), Console(width=width, highlight=False, soft_wrap=True))
        assert max(map(cell_len, capsys.readouterr().out.splitlines()[3:-3])) <= width


def test_nothing_found_is_a_normal_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blank = tmp_path / "blank.png"
    cv2.imwrite(str(blank), np.full((120, 200, 3), 127, np.uint8))
    arguments = ["compare", str(blank), "--model", "scenes", "--target", "class", "--target", "box", "--conf", "0.9"]
    assert cli.run([*arguments, "--out", str(tmp_path / "o")]) == 0
    assert "0 objects in both, 0 in A only, 0 in B only" in capsys.readouterr().out
    assert json.loads((tmp_path / "o" / "compare.json").read_text())["rows"] == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "nothing to compare"),
        (["--model", "scenes-yolo"], "nothing to compare"),
        (["--method", "odam", "--method", "gradcam", "--method", "layercam"], "--method is given 3 times"),
        (["--method", "odam", "--method", "gradcm"], "gradcam"),
        (["--model", "scenes-yolo", "--model", "none.pt"], "none.pt does not exist"),
        (["--target", "class", "--target", "iou"], "target 'iou' does not exist"),
        (["--layers", "level", "--layers", "model.99"], "model.99"),
        (["--layers", "level", "--layers", "evidence", "--match", "0"], "--match: expected a number above 0"),
        (["--layers", "level", "--layers", "evidence", "absent.png"], "absent.png does not exist"),
        (["--layers", "level", "--layers", "evidence", "--out", "{scene}"], "cannot be written"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str], said: str, scenes: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--model", "scenes-yolo"] if arguments and "--model" not in arguments else []
    given = [*model, *(argument.format(scene=scenes[0]) for argument in arguments)]
    out = [] if "--out" in given else ["--out", str(tmp_path / "o")]
    assert cli.run(["compare", scenes[0], *given, *out]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert said in error
    assert not (tmp_path / "o").exists()


def test_options_given_twice_differ_and_the_others_are_shared() -> None:
    a, b = sides({"model": ["x.pt", "y.pt"], "layers": ["model.9", "level"], "target": ["box"]})
    assert a == {"model": "x.pt", "layers": "model.9", "target": "box"}
    assert b == {"model": "y.pt", "layers": "level", "target": "box"}
    assert names(a, b) == ("x.pt · model.9", "y.pt · level")
    assert names({"model": "x.pt"}, {"model": "x.pt"}) == ("x.pt", "x.pt")


@pytest.mark.parametrize(
    ("one", "other", "short"),
    [
        ("old.pt", "new.pt", ("old.pt", "new.pt")),
        ("runs/a/best.pt", "runs/b/best.pt", ("a/best.pt", "b/best.pt")),
        ("runs/a/weights/best.pt", "runs/b/weights/best.pt", ("a/weights/best.pt", "b/weights/best.pt")),
        ("best.pt", "b/best.pt", ("best.pt", "b/best.pt")),
        ("scenes", "/w/scenes.pt", ("scenes", "scenes.pt")),
    ],
)
def test_paths_are_called_by_their_shortest_ends_that_differ(one: str, other: str, short: tuple[str, str]) -> None:
    assert ends(one, other) == short
    assert ends(other, one) == short[::-1]


def test_two_real_models_agree_on_what_is_there(shared: Path, tmp_path: Path) -> None:
    picture = shared / "data" / "coco64" / "images" / "000000000036.jpg"
    models = [str(shared / "weights" / name) for name in ("yolov8n.pt", "yolov8n-seg.pt")]
    arguments = ["compare", str(picture), "--model", models[0], "--model", models[1], "--imgsz", "320"]
    assert cli.run([*arguments, "--out", str(tmp_path)]) == 0
    document = json.loads((tmp_path / "compare.json").read_text())
    assert (document["a"]["name"], document["b"]["name"]) == ("yolov8n.pt", "yolov8n-seg.pt")
    both = {row["a"]["label"]: row for row in document["rows"] if row["found_by"] == "both"}
    assert {"umbrella", "person"} <= set(both)
    assert 0.1 < both["umbrella"]["similarity"] < 0.95, "two models trained apart: alike, not the same"
