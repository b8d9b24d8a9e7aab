"""Ground truth for saved explanations: correct detections and missed labels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from detcam.boxes import box_iou
from detcam.errors import InputError
from detcam.evaluate.labels.base import Label, Labels
from detcam.evaluate.labels.read import read_labels
from detcam.evaluate.matching import IOU, label_boxes, pair
from detcam.saved import Saved

Key = tuple[str, ...]


@dataclass(frozen=True)
class Miss:
    """A label that no object matches."""

    label: str  # class name
    box: list[float]  # x1, y1, x2, y2 in source pixels
    saved: Saved | None = None  # the explanation in which the model was asked about the label (`ask=`), or None
    number: int | None = None  # position of the best candidate in `saved`, or None


@dataclass
class Truth:
    """Ground truth, and the explanations that answer questions about missed objects."""

    labels: Labels
    names: dict[int, str] = field(default_factory=dict)  # by number, of the classes that occur in explanations
    # Explanations made by `ask=`, by image and settings.
    asked: dict[Key, list[Saved]] = field(default_factory=lambda: defaultdict(list))
    labelled: int = 0  # number of labels of the images judged so far

    @classmethod
    def read(cls, path: Path, groups: Iterable[Sequence[Saved]]) -> Truth:
        """Read the labels at `path`, see `read_labels`, for explanations grouped by `detcam.saved.pictures`."""
        truth = cls(read_labels(path))
        for saved in (saved for group in groups for saved in group):
            answers = saved.document.get("asked", [])
            truth.names.update({int(named["class_id"]): named["label"] for named in (*saved.objects, *answers)})
            if answers:
                truth.asked[_key(saved)].append(saved)
        return truth

    def of(self, saved: Saved) -> tuple[set[int], list[Miss]]:
        """The positions of an image's objects that match a label, and the labels that no object matches.

        Objects are matched by `detcam.evaluate.matching.pair`: same class, box IoU over 0.5. Raises an InputError if
        the labels cannot be read.
        """
        height, width = saved.geometry.source
        labels = self.labels.of(Path(saved.name), height, width)
        self.labelled += len(labels)
        boxes = torch.tensor([item["box"] for item in saved.objects], dtype=torch.float32).reshape(-1, 4)
        scores = torch.tensor([item["score"] for item in saved.objects], dtype=torch.float32)
        numbers, names = ([item[fact] for item in saved.objects] for fact in ("class_id", "label"))
        pairs = pair(box_iou(boxes, label_boxes(labels, boxes.device)), scores, numbers, names, labels)
        matched = {j for _, j, _ in pairs}
        misses = [self._miss(saved, label) for j, label in enumerate(labels) if j not in matched]
        return {i for i, _, _ in pairs}, misses

    def check(self, used: bool) -> None:
        """Check that an explanation was of detections (`used`) and an image had a label; an InputError if not."""
        if not used:
            raise InputError("labels: every explanation answers a question: run detcam explain without --ask, too")
        if not self.labelled:
            raise InputError("--labels: no explained image has a label: labels are found by the name of the image file")

    def _miss(self, saved: Saved, label: Label) -> Miss:
        name = label.kind if isinstance(label.kind, str) else self.names.get(label.kind, f"class {label.kind}")
        box = [round(side, 3) for side in label.box.tolist()]
        answers = [
            (float(box_iou(torch.tensor([box]), torch.tensor([answer["box"]]))), asked, answer["objects"][0])
            for asked in self.asked.get(_key(saved), ())
            for answer in asked.document["asked"]
            if label.is_of(int(answer["class_id"]), answer["label"])
        ]
        fit, asked, number = max(answers, key=lambda answer: answer[0], default=(0.0, None, None))
        return Miss(name, box, asked, number) if fit > IOU else Miss(name, box)


def _key(saved: Saved) -> Key:
    """The image and the settings of an explanation."""
    return (str(saved.document.get("source")), saved.digest, *saved.facets.values())
