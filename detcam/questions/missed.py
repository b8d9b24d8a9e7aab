"""Misses and mistakes: what became of an object that the user sees and the model did not return.

The user gives a box and a class. Among all that the model considered (anchors, queries, proposals), the best candidate
for them has the largest IoU times probability of the asked class. It is explained as any object is, and the family's
own way from candidates to objects tells why it was not returned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor

from detcam.adapters import Adapter, Selection
from detcam.boxes import box_iou
from detcam.errors import InputError
from detcam.explanation import Explanation
from detcam.geometry import Geometry
from detcam.questions.base import Question
from detcam.questions.parsing import Pair, checked_pairs, class_number
from detcam.types import Objects


class Missed(Question):
    """What became of objects that the model should have found; see `detcam.questions.missed`."""

    def __init__(self, ask: Any, size: tuple[int, int], conf: float, iou: float, max_det: int) -> None:
        self._pairs = checked_pairs(ask, size)
        self._conf, self._iou, self._max_det = conf, iou, max_det
        self._answers: list[Answer] = []

    def objects(self, adapter: Adapter, outputs: Any, geometry: Geometry) -> Objects:
        """See `Question.objects`: the candidates that fit best."""
        found = adapter.detect(outputs, [geometry], self._conf, self._iou, self._max_det)[0]
        chosen, self._answers = answers(adapter, outputs, found, self._pairs, geometry, self._conf, self._iou)
        return chosen

    def answered(self, explanation: Explanation) -> AskedExplanation:
        """See `Question.answered`."""
        return AskedExplanation.of(explanation, self._answers)


Reason = Literal["returned", "confidence", "suppressed", "another class won", "max_det", "own limit", "no overlap"]


SAME_PLACE = 0.5  # IoU from which an object counts as what the model says of the asked box


SLACK = 0.01  # of an IoU: suppression shifts boxes far apart by class, which costs digits


@dataclass(frozen=True)
class Rival:
    """What stands in the candidate's place: the class that won there, or the object that suppressed it.

    Attributes:
        label: its class name.
        class_id: its class number.
        score: its score in [0, 1].
        box: (x1, y1, x2, y2) in source pixels.
        iou: its overlap with the candidate's box.
    """

    label: str
    class_id: int
    score: float
    box: tuple[float, ...]
    iou: float


@dataclass(frozen=True)
class Answer:
    """What became of an object that was asked for.

    Attributes:
        box: the asked box (x1, y1, x2, y2), cut to the picture, in source pixels.
        label: the asked class's name.
        class_id: the asked class's number.
        candidate: the number of the anchor, query or proposal that fits best, as in `Objects.index`.
        candidate_box: its box in source pixels.
        iou: the overlap of the two boxes.
        score: the candidate's score for the asked class, in [0, 1].
        rank: 1 if no candidate has a larger score for that class, anywhere in the picture.
        candidates: how many candidates there are.
        reason: "returned": it is among the model's objects; "confidence": its score is too low; "another class won":
            there the candidate, or the model's object in the same place, scores higher for another class;
            "suppressed": a stronger object of the class overlaps it; "max_det": enough stronger objects were there;
            "own limit": the model's own post-processing looks at no more candidates, or drops it for an empty mask;
            "no overlap": no candidate overlaps the asked box, and this is the nearest one.
        rival: the class that won, or the object that suppressed it; else None.
        objects: its positions in the explanation: as the asked class and, if another class won, as that one.
    """

    box: tuple[float, ...]
    label: str
    class_id: int
    candidate: int
    candidate_box: tuple[float, ...]
    iou: float
    score: float
    rank: int
    candidates: int
    reason: Reason
    rival: Rival | None
    objects: tuple[int, ...]

    def sentence(self, conf: float) -> str:
        """The diagnosis for people to read; `conf` is the lowest score of an object."""
        scored = f"scores {self.score:.3g} for {self.label}, rank {self.rank} of {self.candidates}"
        if self.reason == "no overlap":
            return f"asked for {self.label}: no candidate overlaps the box; the nearest one, shown here, {scored}"
        return (
            f"asked for {self.label}: the best candidate overlaps the box by {self.iou:.2f} and {scored}: "
            f"{self._verdict(conf)}"
        )

    def _verdict(self, conf: float) -> str:
        if self.reason == "returned":
            return "returned, it is among the model's objects"
        if self.reason == "confidence":
            return f"dropped, its score is not above conf {conf:g}"
        if self.reason == "max_det":
            return "dropped, stronger objects fill max_det"
        if self.reason == "own limit":
            return "dropped by the model's own post-processing, for its limit of candidates or an empty mask"
        assert self.rival is not None
        if self.reason == "another class won":
            return f"another class won, {self.rival.label} with {self.rival.score:.3g}"
        corners = ", ".join(f"{side:.0f}" for side in self.rival.box)
        return (
            f"suppressed, it overlaps a stronger {self.rival.label} ({self.rival.score:.3g}, box {corners}) "
            f"by {self.rival.iou:.2f}"
        )


@dataclass(frozen=True)
class AskedExplanation(Explanation):
    """An explanation of candidates that the user asked for; its objects are these candidates.

    Attributes:
        asked: an answer for each asked pair, in their order.
    """

    asked: list[Answer] = field(default_factory=list)

    @classmethod
    def of(cls, explanation: Explanation, asked: list[Answer]) -> AskedExplanation:
        """The same maps, each with the diagnosis as its note, before what the note says about the map."""
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
        """See `Explanation.to_dict`; the answers stand under "asked"."""
        return {**super().to_dict(), "asked": [asdict(answer) for answer in self.asked]}


@torch.no_grad()
def answers(
    adapter: Adapter,
    outputs: Any,
    found: Objects,
    pairs: list[Pair],
    geometry: Geometry,
    conf: float,
    iou: float,
) -> tuple[Objects, list[Answer]]:
    """The candidates to be explained, and what became of each pair.

    Args:
        adapter: the model.
        outputs: what it put out for one picture.
        found: the objects that it returned.
        pairs: from `checked_pairs`.
        geometry: how the picture lies in the network's input.
        conf: lowest score of an object.
        iou: overlap of suppression that the user chose.

    Raises:
        InputError: for an unknown class, a family that cannot be asked, or a picture without any candidate.
    """
    boxes, scores = adapter.image_candidates(outputs, geometry)
    names = adapter.class_names(scores.shape[1])
    class_ids = [class_number(kind, names, f"ask[{i}]") for i, (_, kind) in enumerate(pairs)]
    best = [_best(geometry.to_source(boxes), scores, box, own) for (box, _), own in zip(pairs, class_ids, strict=True)]
    rows = []  # for each pair the candidate as the asked class, and who may have won
    for (box, _), one, own in zip(pairs, best, class_ids, strict=True):
        rows += [(one, own), _other(one, own, scores, found, box, conf)]
    candidates, kinds = torch.tensor(rows, device=boxes.device).T.contiguous()
    both = adapter.objects_at(outputs, candidates, kinds, geometry)
    unlimited = adapter.detect(outputs, [geometry], conf, iou, len(scores) * len(names))[0]
    made: list[Answer] = []
    kept: list[int] = []
    for i, (box, _) in enumerate(pairs):
        asked, other = (both.select(kinds.new_tensor([place])) for place in (2 * i, 2 * i + 1))
        overlap = float(box_iou(asked.boxes.new_tensor([box]), asked.boxes))
        reason: Reason = "no overlap"
        rival = None
        if overlap > 0:
            selection = adapter.selection(iou)
            if not adapter.enters(outputs, asked, conf):
                selection = replace(selection, overlap=None)
            reason, rival = _verdict(asked, other, found, unlimited, conf, selection)
        mine = [2 * i, 2 * i + 1] if reason == "another class won" else [2 * i]
        answer = Answer(
            box=tuple(box),
            label=names[class_ids[i]],
            class_id=class_ids[i],
            candidate=best[i],
            candidate_box=tuple(asked.boxes[0].tolist()),
            iou=overlap,
            score=float(asked.scores[0]),
            rank=1 + int((scores[:, class_ids[i]] > scores[best[i], class_ids[i]]).sum()),
            candidates=len(scores),
            reason=reason,
            rival=rival,
            objects=tuple(range(len(kept), len(kept) + len(mine))),
        )
        made.append(answer)
        kept += mine
    return both.select(kinds.new_tensor(kept)), made


def _best(boxes: Tensor, scores: Tensor, box: Sequence[float], class_id: int) -> int:
    """The candidate with the largest IoU times score of the class; of those that do not overlap, the nearest.

    Args:
        boxes: [A, 4] in source pixels, or [A, K, 4] where each class has its own.
        scores: [A, K].
        box: the asked box.
        class_id: the asked class.
    """
    boxes = boxes if boxes.ndim == 2 else boxes[:, class_id]
    usable = boxes.isfinite().all(dim=1).nonzero().flatten()  # a broken model's NaN stays inside
    if not len(usable):
        raise InputError("ask: the model considered no candidate in this picture: there is nothing to explain")
    asked, boxes = boxes.new_tensor([box]), boxes[usable]
    overlaps = box_iou(asked, boxes)[0]
    if not bool(overlaps.any()):
        apart = (boxes[:, :2] + boxes[:, 2:] - asked[:, :2] - asked[:, 2:]).norm(dim=1)
        return int(usable[apart.argmin()])
    fit = overlaps * scores[usable, class_id].nan_to_num(0)
    return int(usable[(fit if bool(fit.any()) else overlaps).argmax()])


def _other(
    candidate: int, class_id: int, scores: Tensor, found: Objects, box: Sequence[float], conf: float
) -> tuple[int, int]:
    """The candidate's best class or, if that is too weak, the returned object of another class that lies in the box."""
    top = int(scores[candidate].argmax())
    if top == class_id or scores[candidate, top] <= conf:
        there = box_iou(found.boxes.new_tensor([box]), found.boxes)[0].masked_fill(found.class_ids == class_id, 0)
        if bool((there >= SAME_PLACE).any()):
            i = int(there.argmax())
            return int(found.index[i]), int(found.class_ids[i])
    return candidate, top


def _verdict(
    asked: Objects, other: Objects, found: Objects, unlimited: Objects, conf: float, selection: Selection
) -> tuple[Reason, Rival | None]:
    """Why a candidate was not returned, and who stands in its place.

    Args:
        asked: the candidate as the asked class.
        other: who may have won.
        found: what the model returned.
        unlimited: what it would return if it returned any number of objects.
        conf: lowest score of an object.
        selection: how the family chooses.
    """
    score, class_id = asked.scores[0], asked.class_ids[0]
    if _holds(found, asked):
        return "returned", None
    beaten = bool(other.class_ids[0] != class_id) and bool(other.scores[0] > max(float(score), conf))
    if beaten and (score <= conf or (selection.one_class and bool(other.index[0] == asked.index[0]))):
        return "another class won", _rival(asked, other, 0)
    if score <= conf:
        return "confidence", None
    if _holds(unlimited, asked):
        return "max_det", None
    stronger = (unlimited.class_ids == class_id) & (unlimited.scores >= score)
    if selection.overlap is not None and bool(stronger.any()):
        overlaps = box_iou(asked.network_boxes, unlimited.network_boxes)[0].masked_fill(~stronger, -1)
        if float(overlaps.amax()) > selection.overlap - SLACK:
            return "suppressed", _rival(asked, unlimited, int(overlaps.argmax()))
    return "own limit", None


def _holds(found: Objects, asked: Objects) -> bool:
    """Whether the one object `asked`, an anchor or query with its class, is among those `found`."""
    return bool(((found.index == asked.index) & (found.class_ids == asked.class_ids)).any())


def _rival(asked: Objects, others: Objects, i: int) -> Rival:
    return Rival(
        label=others.labels[i],
        class_id=int(others.class_ids[i]),
        score=float(others.scores[i]),
        box=tuple(others.boxes[i].tolist()),
        iou=float(box_iou(asked.network_boxes, others.network_boxes[i : i + 1])),
    )
