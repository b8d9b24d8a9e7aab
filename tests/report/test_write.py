"""Which pages are written where, from the command line, and what happens to what cannot be shown."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from saved_sets import made, save_light, save_many
from support import random_picture

from detcam import cli
from detcam.errors import OutputError
from detcam.report import write_report


def pages(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*.html"))


def data_of(page: Path) -> dict[str, Any]:
    """The data that a page carries."""
    found = re.search(r'id="data">(.*)</script>', page.read_text(encoding="utf-8"))
    assert found is not None
    return json.loads(found[1])


def test_one_picture_is_one_page(seed: int, tmp_path: Path) -> None:
    image = random_picture(seed, 60, 80)
    for method in ("odam", "gradcam"):
        save_light(tmp_path / method, made(image, 2, method=method), "x/a.jpg")
    assert write_report(tmp_path) == tmp_path / "report.html"
    assert pages(tmp_path) == ["report.html"]
    data = data_of(tmp_path / "report.html")
    assert data["name"] == "a.jpg"
    assert data["facets"] == ["method"]
    assert [variant["choices"]["method"] for variant in data["variants"]] == ["gradcam", "odam"]


def test_a_view_stands_for_method_and_layers(seed: int, tmp_path: Path) -> None:
    image = random_picture(seed, 60, 80)
    for view, method, target in (("why", "layerig", "margin"), ("where", "odam", "class")):
        ours = {"method": method, "layers": [method], "target": target, "view": view}
        save_light(tmp_path / view, made(image, 2, **ours), "a.jpg")
    write_report(tmp_path)
    data = data_of(tmp_path / "report.html")
    assert data["facets"] == ["view"]
    assert {v["choices"]["view"]: v["reading"][:4] for v in data["variants"]} == {"why": "Why:", "where": "Wher"}
    save_light(tmp_path / "box", made(image, 2, **{**ours, "target": "box"}), "a.jpg")
    write_report(tmp_path)
    assert data_of(tmp_path / "report.html")["facets"] == ["view", "target"], "two of them are the same view"
    save_light(tmp_path / "x", made(image, 2, **{**ours, "method": "gradcam", "view": None}), "a.jpg")
    write_report(tmp_path)
    assert data_of(tmp_path / "report.html")["facets"] == ["method", "layers", "target"], "not every one is a view"


def test_several_pictures_get_an_index(seed: int, tmp_path: Path) -> None:
    save_many(tmp_path, 3, 2, seed)
    assert write_report(tmp_path) == tmp_path / "index.html"
    assert pages(tmp_path) == [*(f"000{i}/report.html" for i in range(3)), "index.html", "looks.html"]
    told: list[tuple[int, int]] = []
    again = write_report(tmp_path, progress=lambda done, total: told.append((done, total)))
    assert again == tmp_path / "index.html", "a second time as the first"
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert data_of(tmp_path / "0001" / "report.html")["index"] == "../index.html"
    assert not list(tmp_path.rglob(".*"))


def test_what_belongs_together(seed: int, tmp_path: Path) -> None:
    """The same pixels from two files are two pictures; made the same way twice, without a name, also."""
    image = random_picture(seed, 60, 80)
    for folder, source, method in [
        ("a", "a.jpg", "odam"), ("b", "b.jpg", "odam"), ("b2", "b.jpg", "gradcam"), ("c", None, "odam"), ("d", None, "odam"),
    ]:  # fmt: skip
        save_light(tmp_path / folder, made(image, 1, method=method), source)
    save_light(tmp_path / "other", made(random_picture(seed + 1, 60, 80), 1), "a.jpg")
    write_report(tmp_path)
    assert [p["name"] for p in data_of(tmp_path / "index.html")["pictures"]] == ["a.jpg", "b.jpg", "c", "d", "a.jpg"]
    assert len(data_of(tmp_path / "b" / "report.html")["variants"]) == 2


def test_runs_that_differ_in_nothing_else_are_told_apart_by_folder(seed: int, tmp_path: Path) -> None:
    image = random_picture(seed, 60, 80)
    for folder, conf in [("low", 0.1), ("high", 0.5)]:
        save_light(tmp_path / folder, made(image, 1, conf=conf), "a.jpg")
    data = data_of(write_report(tmp_path))
    assert data["facets"] == ["run"]
    assert [variant["choices"]["run"] for variant in data["variants"]] == ["high", "low"]


def test_nothing_but_what_the_policy_names_can_run(seed: int, tmp_path: Path) -> None:
    save_many(tmp_path, 2, 1, seed)
    write_report(tmp_path)
    for path in tmp_path.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
        assert policy is not None
        assert policy[1].startswith("default-src 'none'; img-src data:; ")
        assert "unsafe" not in policy[1]
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
        assert text.count("</script>") == 2


def test_maps_that_are_not_finite_or_constant(seed: int, tmp_path: Path) -> None:
    maps = [torch.full((3, 3), value) for value in (float("nan"), float("inf"), -1.0, 2.0)]
    save_light(tmp_path, made(random_picture(seed, 60, 80), 4, maps=maps))
    for found in data_of(write_report(tmp_path))["variants"][0]["objects"]:
        assert np.isfinite([found["map"]["low"], found["map"]["high"]]).all()


@pytest.mark.parametrize("damage", ["gone", "empty", "no picture", "no json", "old", "no maps", "half"])
def test_what_cannot_be_shown_is_one_line(
    damage: str, seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "set" / "a"
    save_light(folder, made(random_picture(seed, 60, 80), 1))
    if damage == "gone":
        folder = tmp_path / "nowhere"
    elif damage == "empty":
        (folder / "explanation.json").unlink()
    elif damage == "no picture":
        (folder / "picture.jpg").unlink()
    elif damage == "no json":
        (folder / "explanation.json").write_text("{")
    elif damage == "old":
        (folder / "explanation.json").write_text('{"objects": []}')
    elif damage == "no maps":
        np.savez(folder / "heatmaps.npz", heatmaps=np.zeros((1, 60, 80)))
    else:
        data = (folder / "heatmaps.npz").read_bytes()
        (folder / "heatmaps.npz").write_bytes(data[: len(data) // 2])
    assert cli.run(["report", str(folder)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert str(folder) in error
    assert error.count("\n") == 1
    assert pages(tmp_path) == []


def test_a_damaged_picture_is_one_line(seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_many(tmp_path, 2, 1, seed)
    for damaged in (b"no picture", b""):
        (tmp_path / "0001" / "picture.jpg").write_bytes(damaged)
        assert cli.run(["report", str(tmp_path)]) == 2
        assert f"error: {tmp_path / '0001'} holds no complete explanation (picture.jpg" in capsys.readouterr().err
    assert not (tmp_path / "index.html").exists()


def test_a_page_that_cannot_be_written(seed: int, tmp_path: Path) -> None:
    save_light(tmp_path, made(random_picture(seed, 60, 80), 1))
    (tmp_path / "report.html").mkdir()
    with pytest.raises(OutputError, match=r"report\.html cannot be written"):
        write_report(tmp_path)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.nightly
def test_the_command_line(seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from detcam.scenes import HELD_OUT_SEED, draw_scene

    for i in range(2):
        cv2.imwrite(str(tmp_path / f"scene {i}.png"), draw_scene(HELD_OUT_SEED + i).image[:, :, ::-1])
    first, second = (str(tmp_path / f"scene {i}.png") for i in range(2))
    assert cli.run(["explain", "--model", "scenes", first, "--out", str(tmp_path / "one"), "--report"]) == 0
    assert f"Open {tmp_path / 'one' / 'report.html'}" in capsys.readouterr().out
    assert data_of(tmp_path / "one" / "report.html")["name"] == "scene 0.png"
    assert (
        cli.run(["explain", "--model", "scenes", first, second, "--out", str(tmp_path / "two"), "--report", "--json"])
        == 0
    )
    assert len(json.loads(capsys.readouterr().out)) == 2
    assert pages(tmp_path / "two") == ["index.html", "looks.html", "scene 0/report.html", "scene 1/report.html"]
    assert cli.run(["report", str(tmp_path / "two" / "scene 1")]) == 0
    assert capsys.readouterr().out == f"Open {tmp_path / 'two' / 'scene 1' / 'report.html'}\n"


def test_names_that_are_no_unicode(seed: int, tmp_path: Path) -> None:
    """Linux allows any bytes in names; Python carries them as lone surrogates."""
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    try:
        (tmp_path / name).mkdir()
    except OSError:
        pytest.skip("this file system takes Unicode names only")
    for i in range(2):
        made(random_picture(seed + i, 60, 80), 1).save(tmp_path / name / f"{i}{name}", f"{i}{name}.jpg")
    write_report(tmp_path)
    assert data_of(tmp_path / "index.html")["pictures"][0]["page"] == "caf%E9/0caf%E9/report.html"


def test_the_package_carries_the_pages() -> None:
    assert '"report/assets/*"' in (Path(__file__).parents[2] / "pyproject.toml").read_text()
