"""Missed: why the model did not return an object that the user sees.

The user gives a box and a class. The best candidate (anchor, query or proposal) has the largest product of its IoU with
the box and its probability of the class. It is explained like any object, and the family's selection of objects tells
why it was not returned.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from detcam.adapters import Adapter, Selection
from detcam.boxes import box_iou
from detcam.errors import InputError
from detcam.explanation import Explanation
from detcam.geometry import Geometry
from detcam.questions.answer import Answer, AskedExplanation, Reason, Rival
from detcam.questions.base import Question
from detcam.questions.parsing import checked_pairs, class_number
from detcam.types import Objects

SAME_PLACE = 0.5  # IoU from which the model's object counts as its answer for the asked box
SLACK = 0.01  # of an IoU: suppression shifts boxes far apart by class, which costs digits


class Missed(Question):
    """The best candidates for objects that the model should have found; see `detcam.questions.missed`."""

    def __init__(self, ask: Any, size: tuple[int, int], conf: float, iou: float, max_det: int) -> None:
        self._pairs = checked_pairs(ask, size)
        self._conf, self._iou, self._max_det = conf, iou, max_det
        self._answers: list[Answer] = []

    @torch.no_grad()
    def objects(self, adapter: Adapter, outputs: Any, geometry: Geometry) -> Objects:
        """The best candidates; an InputError for an unknown class, or a family or image without candidates."""
        found = adapter.detect(outputs, [geometry], self._conf, self._iou, self._max_det)[0]
        boxes, scores = adapter.image_candidates(outputs, geometry)
        names = adapter.class_names(scores.shape[1])
        class_ids = [class_number(kind, names, f"ask[{i}]") for i, (_, kind) in enumerate(self._pairs)]
        places, pairs = geometry.to_source(boxes), list(zip(self._pairs, class_ids, strict=True))
        best = [_best(places, scores, box, own) for (box, _), own in pairs]
        rows = []  # for each pair the candidate as the asked class, and who may have won
        for ((box, _), own), one in zip(pairs, best, strict=True):
            rows += [(one, own), _other(one, own, scores, found, box, self._conf)]
        candidates, kinds = torch.tensor(rows, device=boxes.device).T.contiguous()
        both = adapter.objects_at(outputs, candidates, kinds, geometry)
        unlimited = adapter.detect(outputs, [geometry], self._conf, self._iou, len(scores) * len(names))[0]
        self._answers = []
        kept: list[int] = []
        for i, ((box, _), own) in enumerate(pairs):
            asked, other = (both.select(kinds.new_tensor([place])) for place in (2 * i, 2 * i + 1))
            overlap = float(box_iou(asked.boxes.new_tensor([box]), asked.boxes))
            reason: Reason = "no overlap"
            rival = None
            if overlap > 0:
                selection = adapter.selection(self._iou)
                if not adapter.enters(outputs, asked, self._conf):
                    selection = replace(selection, overlap=None)
                reason, rival = _verdict(asked, other, found, unlimited, self._conf, selection)
            mine = [2 * i, 2 * i + 1] if reason == "another class won" else [2 * i]
            answer = Answer(
                box=tuple(box),
                label=names[own],
                class_id=own,
                candidate=best[i],
                candidate_box=tuple(asked.boxes[0].tolist()),
                iou=overlap,
                score=float(asked.scores[0]),
                rank=1 + int((scores[:, own] > scores[best[i], own]).sum()),
                candidates=len(scores),
                reason=reason,
                rival=rival,
                objects=tuple(range(len(kept), len(kept) + len(mine))),
            )
            self._answers.append(answer)
            kept += mine
        return both.select(kinds.new_tensor(kept))

    def answered(self, explanation: Explanation) -> AskedExplanation:
        return AskedExplanation.of(explanation, self._answers)


def _best(boxes: Tensor, scores: Tensor, box: Sequence[float], class_id: int) -> int:
    """The candidate with the largest IoU times score [A, K] of the class; if none overlaps the box, the nearest.

    Boxes are [A, 4] in source pixels, or [A, K, 4] with a box for each class.
    """
    boxes = boxes if boxes.ndim == 2 else boxes[:, class_id]
    usable = boxes.isfinite().all(dim=1).nonzero().flatten()  # a broken model's NaN stays inside
    if not len(usable):
        raise InputError("ask: the model has no candidates in this image: there is nothing to explain")
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
    """(candidate, class) of the candidate's best class or, if that is too weak, of the returned object in the box."""
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
    """Why a candidate, `asked` as the asked class, was not returned, and its rival, for which `other` is considered.

    The model returned the objects `found`, and would return `unlimited` without a limit.
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
    """Whether the single object `asked`, a candidate with its class, is among `found`."""
    return bool(((found.index == asked.index) & (found.class_ids == asked.class_ids)).any())


def _rival(asked: Objects, others: Objects, i: int) -> Rival:
    return Rival(
        label=others.labels[i],
        class_id=int(others.class_ids[i]),
        score=float(others.scores[i]),
        box=tuple(others.boxes[i].tolist()),
        iou=float(box_iou(asked.network_boxes, others.network_boxes[i : i + 1])),
    )
