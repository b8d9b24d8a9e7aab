"""Rows on disk: whole or not there, and never mixed with rows of other settings."""

import json
from pathlib import Path

import pytest

from detcam.errors import InputError, OutputError
from detcam.evaluate.store import Store

SETTINGS = {"methods": ["odam"], "layers": ["level"], "objects": 3}


def test_rows_come_back(tmp_path: Path) -> None:
    store = Store(tmp_path / "out", SETTINGS, resume=False)
    rows = [{"picture": name, "objects": [{"label": "Bär"}]} for name in ("a.jpg", "folder/b c.jpg", "é.png")]
    for row in rows:
        store.add(row)
    assert store.done() == {row["picture"] for row in rows}
    again = Store(tmp_path / "out", {**SETTINGS, "methods": ("odam",)}, resume=True)  # JSON knows no tuple
    assert sorted(again.rows(), key=str) == sorted(rows, key=str)


def test_a_half_written_row_is_none(tmp_path: Path) -> None:
    store = Store(tmp_path, SETTINGS, resume=False)
    store.add({"picture": "a.jpg", "objects": []})
    (tmp_path / "rows" / ".b.jpg.json.part").write_text('{"picture": "b.j')  # what a kill leaves behind
    assert Store(tmp_path, SETTINGS, resume=True).done() == {"a.jpg"}


def test_rows_are_not_overwritten_by_accident(tmp_path: Path) -> None:
    Store(tmp_path, SETTINGS, resume=False).add({"picture": "a.jpg", "objects": []})
    with pytest.raises(InputError, match=r"holds 1 rows of an earlier run: add --resume"):
        Store(tmp_path, SETTINGS, resume=False)


def test_a_changed_setting_is_named(tmp_path: Path) -> None:
    Store(tmp_path, SETTINGS, resume=False).add({"picture": "a.jpg", "objects": []})
    with pytest.raises(InputError) as caught:
        Store(tmp_path, {**SETTINGS, "layers": ["evidence"], "imgsz": 320}, resume=True)
    assert 'layers was ["level"], now ["evidence"]' in str(caught.value)
    assert "imgsz was null, now 320" in str(caught.value)
    assert "methods" not in str(caught.value)
    assert json.loads((tmp_path / "settings.json").read_text()) == SETTINGS


def test_settings_may_change_before_the_first_row(tmp_path: Path) -> None:
    Store(tmp_path, SETTINGS, resume=False)
    Store(tmp_path, {"objects": 1}, resume=False).add({"picture": "a.jpg", "objects": []})
    assert Store(tmp_path, {"objects": 1}, resume=True).done() == {"a.jpg"}


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        Store(tmp_path / "file" / "out", SETTINGS, resume=False)
