"""Class numbers of labels, and what a model calls them."""

from pathlib import Path

import numpy as np
import pytest

from detcam.evaluate.labels.base import Label
from detcam.evaluate.labels.names import by_name, names_beside
from detcam.evaluate.labels.read import read_labels

BOX = np.array([0.0, 0.0, 4.0, 4.0])
LABELS = [Label(0, BOX, None), Label(2, BOX, None), Label("fish", BOX, None)]


def test_numbers_mean_the_model_s_classes_of_that_name() -> None:
    """A model with a background in front, and one with another order."""
    given = {0: "kite", 1: "fish", 2: "house"}
    for known in ({0: "background", 1: "kite", 2: "fish", 3: "house"}, {0: "fish", 1: "house", 2: "kite", 3: "owl"}):
        named = by_name(LABELS, given, known)
        assert [label.kind for label in named] == ["kite", "house", "fish"]
        assert [label.is_of(k, known[k]) for label in named for k in known] == [
            known[k] == kind for kind in ("kite", "house", "fish") for k in known
        ]
        assert all(label.box is BOX for label in named)


@pytest.mark.parametrize("given", [None, {}, {0: "kite", 1: "fish", 2: "castle"}])
def test_numbers_stay_where_names_are_missing_or_others(given: dict[int, str] | None) -> None:
    assert by_name(LABELS, given, {0: "kite", 1: "fish", 2: "house"}) == LABELS


def test_a_number_without_a_name_stays() -> None:
    assert [label.kind for label in by_name(LABELS, {0: "kite"}, {5: "kite"})] == ["kite", 2, "fish"]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("names: [kite, fish]", {0: "kite", 1: "fish"}),
        ("path: x\nnames: {0: kite, 7: fish}", {0: "kite", 7: "fish"}),
        ("names: {kite: 0}", None),
        ("names: [1, 2]", None),
        ("names: []", None),
        ("names: kite", None),
        ("nc: 3", None),
        ("- names", None),
        ("names: [", None),
        ("names: " + "[" * 1000, None),
        ("\xff", None),
    ],
)
def test_the_names_of_a_data_set(text: str, names: dict[int, str] | None, tmp_path: Path) -> None:
    labels = tmp_path / "set" / "labels" / "val"
    labels.mkdir(parents=True)
    (labels / "a.txt").write_text("0 0.5 0.5 1 1\n")
    assert names_beside(labels) is None
    assert read_labels(labels).names is None
    (tmp_path / "set" / "data.yaml").write_bytes(text.encode("latin-1"))
    assert names_beside(labels) == names
    assert read_labels(labels).names == names


def test_the_nearest_data_set_counts_and_none_further_up(tmp_path: Path) -> None:
    labels = tmp_path / "set" / "labels" / "val"
    labels.mkdir(parents=True)
    (tmp_path / "data.yaml").write_text("names: [far]")
    assert names_beside(labels) is None
    (tmp_path / "set" / "data.yaml").write_text("names: [near]")
    assert names_beside(labels) == {0: "near"}
    (labels / "data.yaml").write_text("names: [nearest]")
    assert names_beside(labels) == {0: "nearest"}
