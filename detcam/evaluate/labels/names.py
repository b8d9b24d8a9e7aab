"""Which class of the model a label's number means, where the data set says what its classes are called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from detcam.files import read_regular

if TYPE_CHECKING:
    from detcam.evaluate.labels.base import Label

DESCRIPTION = "data.yaml"
UP = 2  # folders above the labels in which it may lie: ROOT/labels/val
MAX_BYTES = 2**20


def names_beside(folder: Path) -> dict[int, str] | None:
    """The class names by number of the data.yaml in a folder of YOLO labels or in one of the two above it.

    None where there is none, or it names no classes.
    """
    folder = folder.resolve()
    for place in (folder, *folder.parents[:UP]):
        try:
            description = yaml.safe_load(read_regular(place / DESCRIPTION, MAX_BYTES).decode("utf-8"))
            names = description["names"]
        except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError, KeyError, TypeError):
            continue
        named = dict(enumerate(names)) if isinstance(names, list) else names
        if isinstance(named, dict) and named and all(map(_is_entry, named.items())):
            return named
    return None


def _is_entry(pair: tuple[object, object]) -> bool:
    return isinstance(pair[0], int) and isinstance(pair[1], str)


def by_name(labels: Sequence[Label], given: Mapping[int, str] | None, known: Mapping[int, str]) -> list[Label]:
    """The labels with class names for numbers, if the model knows every name that the data set gives.

    So a model that counts its classes otherwise (a background first, or another order) is judged by the right ones;
    where names differ in any word, the numbers are taken as they are.

    Args:
        labels: of a picture.
        given: the data set's class names by number, or None.
        known: the model's.
    """
    if not given or not set(given.values()) <= set(known.values()):
        return list(labels)
    return [
        replace(label, kind=given[label.kind]) if isinstance(label.kind, int) and label.kind in given else label
        for label in labels
    ]
