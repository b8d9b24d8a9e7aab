"""Which objects of saved explanations are right, and what was missed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from detcam.boxes import overlap
from detcam.errors import InputError
from detcam.evaluate.labels.base import Label, Labels
from detcam.evaluate.labels.read import read_labels
from detcam.evaluate.matching import IOU, pair
from detcam.saved import Saved

Key = tuple[str, ...]


@dataclass(frozen=True)
class Miss:
    """A label that no object matches.

    Attributes:
        label: its class name.
        box: x1, y1, x2, y2 in source pixels.
        saved: the explanation in which the model was asked about it (`ask=`), or None.
        number: the position of its best candidate there, or None.
    """

    label: str
    box: list[float]
    saved: Saved | None = None
    number: int | None = None


@dataclass
class Truth:
    """Ground truth, and what the model said when it was asked about what it missed.

    Attributes:
        labels: of the pictures.
        names: the classes by number, as far as explanations name them.
        asked: explanations made by `ask=`, by picture and way.
        labelled: how many labels were met so far.
    """

    labels: Labels
    names: dict[int, str] = field(default_factory=dict)
    asked: dict[Key, list[Saved]] = field(default_factory=lambda: defaultdict(list))
    labelled: int = 0

    @classmethod
    def read(cls, path: Path, groups: Iterable[Sequence[Saved]]) -> Truth:
        """The labels at `path`, for explanations in the groups of `detcam.saved.pictures`.

        Raises:
            InputError: see `read_labels`.
        """
        truth = cls(read_labels(path))
        for saved in (saved for group in groups for saved in group):
            answers = saved.document.get("asked", [])
            truth.names.update({int(named["class_id"]): named["label"] for named in (*saved.objects, *answers)})
            if answers:
                truth.asked[_key(saved)].append(saved)
        return truth

    def of(self, saved: Saved) -> tuple[set[int], list[Miss]]:
        """The positions of a picture's objects that match a label, and the labels that no object matches.

        They match as `detcam.evaluate.matching.pair` says: same class, box IoU over 0.5.

        Raises:
            InputError: if the labels cannot be read.
        """
        height, width = saved.geometry.source
        labels = self.labels.of(Path(saved.name), height, width)
        self.labelled += len(labels)
        boxes = torch.tensor([found["box"] for found in saved.objects], dtype=torch.float32).reshape(-1, 4)
        scores = torch.tensor([found["score"] for found in saved.objects], dtype=torch.float32)
        numbers, names = ([found[fact] for found in saved.objects] for fact in ("class_id", "label"))
        pairs = pair(boxes, scores, numbers, names, labels)
        met = {j for _, j, _ in pairs}
        return {i for i, _, _ in pairs}, [self._miss(saved, one) for j, one in enumerate(labels) if j not in met]

    def check(self, used: bool) -> None:
        """Complain if nothing could be judged.

        Raises:
            InputError: if no explanation was of detections, or no picture had any label: labels of other pictures.
        """
        if not used:
            raise InputError("labels: no explanation is of what the model found: run detcam explain without --ask, too")
        if not self.labelled:
            raise InputError(
                "--labels name none of the explained pictures: labels are found by the picture's file name"
            )

    def _miss(self, saved: Saved, label: Label) -> Miss:
        name = label.kind if isinstance(label.kind, str) else self.names.get(label.kind, f"class {label.kind}")
        box = [round(side, 3) for side in label.box.tolist()]
        answers = [
            (float(overlap(torch.tensor(box), torch.tensor([answer["box"]]))[0]), asked, answer["objects"][0])
            for asked in self.asked.get(_key(saved), ())
            for answer in asked.document["asked"]
            if label.is_of(int(answer["class_id"]), answer["label"])
        ]
        fit, asked, number = max(answers, key=lambda answer: answer[0], default=(0.0, None, None))
        return Miss(name, box, asked, number) if fit > IOU else Miss(name, box)


def _key(saved: Saved) -> Key:
    """Of a picture, and of how it was explained."""
    return (str(saved.document.get("source")), saved.digest, *saved.facets.values())
