"""Class names of a data set, to map the class numbers of its labels to those of a model."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import yaml

from detcam.evaluate.labels.base import Label
from detcam.files import read_regular

UP = 2  # parent folders of the labels to search: ROOT/labels/val
MAX_BYTES = 2**20


def names_beside(folder: Path) -> dict[int, str] | None:
    """The class names by number from the data.yaml in a folder of YOLO labels or in the two folders above it.

    None without such a file, or without names in it.
    """
    folder = folder.resolve()
    for place in (folder, *folder.parents[:UP]):
        try:
            description = yaml.safe_load(read_regular(place / "data.yaml", MAX_BYTES).decode("utf-8"))
            names = description["names"]
        except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError, KeyError, TypeError):
            continue
        named = dict(enumerate(names)) if isinstance(names, list) else names
        pairs = named.items() if isinstance(named, dict) else ()
        if pairs and all(isinstance(number, int) and isinstance(name, str) for number, name in pairs):
            return named
    return None


def by_name(labels: Sequence[Label], given: Mapping[int, str] | None, known: Mapping[int, str]) -> list[Label]:
    """The labels with class names for numbers, if the model has every name of the data set.

    A model with other class numbers (a background first, or another order) is then judged by the right classes. If any
    name differs, the numbers stay. `given` and `known` are the class names by number of the data set and of the model.
    """
    if not given or not set(given.values()) <= set(known.values()):
        return list(labels)
    return [
        replace(label, kind=given[label.kind]) if isinstance(label.kind, int) and label.kind in given else label
        for label in labels
    ]
