"""A labelled object, and the interface of label readers."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np

MAX_BYTES = 2**31  # of a file: the largest file of COCO has 450 MB
DIGITS = 9  # of a class number


@dataclass(frozen=True)
class Label:
    """A labelled object in source pixels."""

    kind: int | str  # class, by number or by name
    box: np.ndarray  # [4] float64 xyxy
    mask: np.ndarray | None  # [H, W] bool; None if the labels have a box only

    def is_of(self, class_id: int, name: str) -> bool:
        """Whether the label has the model's class of this number and name."""
        return self.kind == (name if isinstance(self.kind, str) else class_id)


class Labels(ABC):
    """The labels of a set of images."""

    names: dict[int, str] | None = None  # class names of the data set, by number; None without names

    @abstractmethod
    def of(self, image: Path, height: int, width: int) -> list[Label]:
        """The objects of an image, without crowds; [] for an image without objects.

        Raises an InputError for an unreadable label, with the file, the place in it and what to do.
        """


def is_number(text: str) -> bool:
    """Whether a class is a number."""
    return text.isascii() and text.isdecimal() and len(text) <= DIGITS
