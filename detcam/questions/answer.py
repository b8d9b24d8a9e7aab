"""Answers: what became of the objects that a user asked for."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from detcam.explanation import Explanation

Reason = Literal["returned", "confidence", "suppressed", "another class won", "max_det", "own limit", "no overlap"]


@dataclass(frozen=True)
class Rival:
    """The object in the candidate's place: the class that won there, or the box that suppressed the candidate."""

    label: str  # class name
    class_id: int  # class number
    score: float  # in [0, 1]
    box: tuple[float, ...]  # (x1, y1, x2, y2) in source pixels
    iou: float  # IoU with the candidate's box


@dataclass(frozen=True)
class Answer:
    """The best candidate for an object that the user asked for, and why the model did not return it.

    Reasons: "returned": the candidate is among the model's objects; "confidence": its score is too low; "another class
    won": the candidate, or the model's object in the same place, scores higher for another class; "suppressed": a
    stronger object of the class overlaps it; "max_det": stronger objects fill the limit; "own limit": the model's
    post-processing considers fewer candidates, or drops it for an empty mask; "no overlap": no candidate overlaps the
    asked box, and this is the nearest.
    """

    box: tuple[float, ...]  # the asked box (x1, y1, x2, y2) in source pixels, clipped to the image
    label: str  # name of the asked class
    class_id: int  # number of the asked class
    candidate: int  # index of the anchor, query or proposal that fits best, as in `Objects.index`
    candidate_box: tuple[float, ...]  # the candidate's box in source pixels
    iou: float  # IoU of the asked box and the candidate's box
    score: float  # the candidate's score for the asked class, in [0, 1]
    rank: int  # rank of that score among all candidates of the image, from 1
    candidates: int  # number of candidates
    reason: Reason
    rival: Rival | None  # the class that won, or the object that suppressed the candidate
    objects: tuple[int, ...]  # positions in the explanation: the asked class and, if another class won, that class

    def sentence(self, conf: float) -> str:
        """The diagnosis as a sentence; `conf` is the score threshold."""
        scored = f"scores {self.score:.3g} for {self.label}, rank {self.rank} of {self.candidates}"
        if self.reason == "no overlap":
            return f"asked for {self.label}: no candidate overlaps the box; the nearest one, shown here, {scored}"
        return (
            f"asked for {self.label}: the best candidate overlaps the box by {self.iou:.2f} and {scored}: "
            f"{self._verdict(conf)}"
        )

    def _verdict(self, conf: float) -> str:
        if self.rival is None:
            return {
                "returned": "returned, it is among the model's objects",
                "confidence": f"dropped, its score is not above conf {conf:g}",
                "max_det": "dropped, stronger objects fill max_det",
                "own limit": "dropped by the model's own post-processing, for its limit of candidates or an empty mask",
            }[self.reason]
        if self.reason == "another class won":
            return f"another class won, {self.rival.label} with {self.rival.score:.3g}"
        corners = ", ".join(f"{side:.0f}" for side in self.rival.box)
        return (
            f"suppressed, it overlaps a stronger {self.rival.label} ({self.rival.score:.3g}, box {corners}) "
            f"by {self.rival.iou:.2f}"
        )


@dataclass(frozen=True, repr=False)
class AskedExplanation(Explanation):
    """An explanation whose objects are the best candidates for what the user asked."""

    asked: list[Answer] = field(default_factory=list)  # an answer for each asked pair, in order

    @classmethod
    def of(cls, explanation: Explanation, asked: list[Answer]) -> AskedExplanation:
        """The same maps with the diagnosis in front of each note."""
        given = {f.name: getattr(explanation, f.name) for f in fields(Explanation)}
        notes = list(explanation.notes)
        for answer in asked:
            sentences = [answer.sentence(float(explanation.settings["conf"]))]
            if len(answer.objects) > 1:
                sentences.append(f"the class that won where {answer.label} was asked for")
            for i, sentence in zip(answer.objects, sentences, strict=True):
                notes[i] = sentence if notes[i] is None else f"{sentence}; {notes[i]}"
        return cls(**{**given, "notes": notes}, asked=asked)

    def to_dict(self) -> dict[str, Any]:
        """See `Explanation.to_dict`; the answers are under "asked"."""
        return {**super().to_dict(), "asked": [asdict(answer) for answer in self.asked]}
