"""What a comparison of many pictures leaves on disk."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support import explanation_of, random_picture

import detcam
from detcam.analysis.comparison import Comparison
from detcam.errors import OutputError
from detcam.report import comparison_page as write
from detcam.report.comparison_page import write_comparison


def comparison(seed: int, n: int = 3, alone: int = 1) -> Comparison:
    """Of a picture of 60 x 80 in which both sides have n objects and the first side `alone` more."""
    image = random_picture(seed, 60, 80)
    boxes = torch.tensor([[8.0 * i, 5, 8 * i + 6, 50] for i in range(n + alone)]).view(-1, 4)
    labels = tuple(f"thing {i}" for i in range(n + alone))
    a = explanation_of(image, [torch.randn(6, 8) for _ in labels], labels=labels, boxes=boxes)
    b = explanation_of(image, [torch.randn(6, 8) for _ in range(n)], labels=labels[:n], boxes=boxes[:n])
    return detcam.compare(a, b)


def page_data(folder: Path) -> dict[str, Any]:
    text = (folder / "compare.html").read_text(encoding="utf-8")
    data: dict[str, Any] = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])
    return data


def test_rows_of_all_pictures_are_put_in_one_order(seed: int, tmp_path: Path) -> None:
    made = [(f"dir/{i}.png", comparison(seed + i)) for i in range(4)]
    document = write_comparison(tmp_path, made, ("old", "new"))
    assert document == json.loads((tmp_path / "compare.json").read_text(encoding="utf-8"))
    rows = document["rows"]
    assert [row["found_by"] for row in rows] == ["both"] * 12 + ["a"] * 4
    alike = [row["similarity"] for row in rows[:12]]
    assert alike == sorted(alike)
    expected = sorted(pair.similarity for _, one in made for pair in one.both)
    assert alike == pytest.approx(expected, abs=1e-6)
    assert document["summary"]["similarity"] == pytest.approx(sum(expected) / 12, abs=1e-6)
    assert {k: document["summary"][k] for k in ("pictures", "both", "only_a", "only_b")} == {
        "pictures": 4,
        "both": 12,
        "only_a": 4,
        "only_b": 0,
    }
    assert [p["picture"] for p in document["pictures"]] == [f"dir/{i}.png" for i in range(4)]
    for row in rows:
        explanation = dict(made)[row["picture"]].a
        place = row["a"]["object"]
        assert row["a"]["label"] == explanation.labels[place]
        assert row["a"]["energy_in_box"] == pytest.approx(explanation.energy_in_box[place], abs=1e-5)
    data = page_data(tmp_path)
    assert [p["name"] for p in data["pictures"]] == [f"{i}.png" for i in range(4)]
    shown = [(f"dir/{data['pictures'][r['picture']]['name']}", r["a"], r["b"]) for r in data["rows"]]
    assert shown == [(r["picture"], r["a"]["object"], r["b"] and r["b"]["object"]) for r in rows]


def test_the_page_holds_the_first_rows_of_each_kind_and_their_pictures_only(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write, "SHOWN", 2)
    gathered = write.Gathered(("a", "b"))
    most = 0
    for i in range(30):
        gathered.add(f"{i}.png", comparison(seed + i))
        most = max(most, len(gathered.packed))
    assert most <= 9, "pictures that cannot be shown are dropped on the way"
    document = gathered.document()
    (tmp_path / "compare.html").write_text(gathered.page(document), encoding="utf-8")
    data = page_data(tmp_path)
    assert len(document["rows"]) == 120
    assert data["left_out"] == 116
    first = [
        row for kind in (["both"], ["a", "b"]) for row in [r for r in document["rows"] if r["found_by"] in kind][:2]
    ]
    shown = [(data["pictures"][row["picture"]]["name"], row["a"], row["b"]) for row in data["rows"]]
    assert shown == [(row["picture"], row["a"]["object"], row["b"] and row["b"]["object"]) for row in first]
    assert len(data["pictures"]) == len({row["picture"] for row in first})


def test_no_pictures_no_objects(seed: int, tmp_path: Path) -> None:
    for i, made in enumerate(([], [("x.png", comparison(seed, 0, 0))])):
        document = write_comparison(tmp_path / str(i), made)
        assert document["rows"] == []
        assert document["summary"]["similarity"] is None
        assert page_data(tmp_path / str(i))["pictures"] == []


def test_an_error_on_the_way_leaves_the_earlier_result(seed: int, tmp_path: Path) -> None:
    write_comparison(tmp_path, [("x.png", comparison(seed))])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def broken() -> Iterator[tuple[str, Comparison]]:
        yield "y.png", comparison(seed + 1)
        raise RuntimeError("planted")

    with pytest.raises(RuntimeError, match="planted"):
        write_comparison(tmp_path, broken())
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_that_cannot_be_written_is_one_clear_error(seed: int, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="choose another --out"):
        write_comparison(tmp_path / "file", [])
    with pytest.raises(OutputError, match="choose another --out"):
        write_comparison(tmp_path / "file" / "below", [])


def test_a_name_that_is_no_unicode(seed: int, tmp_path: Path) -> None:
    write_comparison(tmp_path, [(b"caf\xe9.png".decode("utf-8", "surrogateescape"), comparison(seed))])
    assert json.loads((tmp_path / "compare.json").read_text(encoding="utf-8"))["pictures"][0]["picture"] == "caf?.png"
    assert page_data(tmp_path)["pictures"][0]["name"].startswith("caf")
