"""Rows of planted scenes, from the tables that their own judge makes."""

from typing import Any

import numpy as np
import pytest

from detcam.evaluate.planted import judge as planted
from detcam.evaluate.planted import rows as scenes
from detcam.evaluate.report import markdown, summarise
from detcam.scenes.planted import VARIANTS


def test_rows_keep_what_the_tables_say(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, list[int]]] = []
    columns = len(planted.MEASURES)

    def judge(variant: str, seeds: list[int], methods: Any, layers: Any, quick: bool, family: str) -> planted.Table:
        """Two objects in the first scene of every call, one in the others but none in the last."""
        assert family == "detr"
        asked.append((variant, list(seeds)))
        owner = np.array([0, *range(len(seeds) - 1)])
        values = np.stack([owner * 10.0 + c for c in range(columns)], axis=1)
        values[0, 1] = np.nan
        return planted.Table(owner, {"odam @ level": values, "noise": values + 1}, {"cam @ level": "no"}, 1.0)

    monkeypatch.setattr(planted, "judge", judge)
    wanted = [(variant, seed) for variant in VARIANTS for seed in (5, 6, 7)]
    left_out: dict[str, str] = {}
    made = list(scenes.rows(wanted, ["odam"], ["level"], left_out, done={f"{VARIANTS[0]}/6"}, family="detr"))
    assert asked == [(VARIANTS[0], [5, 7]), *((variant, [5, 6, 7]) for variant in VARIANTS[1:])]
    assert left_out == {"cam @ level": "no"}
    assert [row["picture"] for row in made] == [f"{v}/{s}" for v, s in wanted if (v, s) != (VARIANTS[0], 6)]
    second = [row for row in made if row["picture"].startswith(VARIANTS[1])]
    assert [len(row["objects"]) for row in second] == [2, 1, 0]
    name = planted.MEASURES[2].name
    assert second[1]["objects"][0]["maps"]["noise"][f"{VARIANTS[1]} {name}"] == 13.0
    assert f"{VARIANTS[1]} {planted.MEASURES[1].name}" not in second[0]["objects"][0]["maps"]["noise"]
    document = summarise(made, scenes.measures(), {})
    first = f"{VARIANTS[1]} {planted.MEASURES[0].name}"
    assert document["contenders"]["odam @ level"][first]["mean"] == pytest.approx(10 / 3, abs=1e-4)
    assert f"## Scenes: {VARIANTS[0]}" in markdown(document)


def test_every_scene_has_a_name_of_its_own() -> None:
    found = scenes.names(4)
    assert len(found) == len(set(found)) == 4 * len(VARIANTS)
    assert found == scenes.names(4)
    assert scenes.names(2) == [one for variant in VARIANTS for one in scenes.names(2) if one[0] == variant]
