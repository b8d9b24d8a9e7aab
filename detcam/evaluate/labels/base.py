"""A labelled object, and what every reader of labels does."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np

MAX_BYTES = 2**31  # of a file: COCO's own largest has 450 MB


DIGITS = 9  # of a class


@dataclass(frozen=True)
class Label:
    """One labelled object in source pixels.

    Attributes:
        kind: its class, by number or by name.
        box: [4] float64 xyxy.
        mask: [H, W] bool; None if the labels give its box only.
    """

    kind: int | str
    box: np.ndarray
    mask: np.ndarray | None

    def is_of(self, class_id: int, name: str) -> bool:
        """Whether it is of the model's class with that number and name."""
        return self.kind == (name if isinstance(self.kind, str) else class_id)


class Labels(ABC):
    """The labels of a set of pictures.

    Attributes:
        names: what the data set calls its classes, by number; None if it does not say.
    """

    names: dict[int, str] | None = None

    @abstractmethod
    def of(self, picture: Path, height: int, width: int) -> list[Label]:
        """The objects of one picture, without crowds; [] if it has none.

        Raises:
            InputError: for what cannot be read, with the file, the place in it and what to do.
        """


def is_number(text: str) -> bool:
    """Whether a class is given by number."""
    return text.isascii() and text.isdecimal() and len(text) <= DIGITS


def shortened(line: str) -> str:
    """A line of a file, as an error quotes it."""
    return repr(line if len(line) <= 40 else line[:37] + "...")
