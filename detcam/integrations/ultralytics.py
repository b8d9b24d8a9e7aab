"""Ultralytics: explain the boxes in the `Results` of a predict or track call."""

import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from detcam.adapters import Adapter
from detcam.adapters.ultralytics.base import head_of, module_of
from detcam.boxes import box_iou
from detcam.errors import InputError
from detcam.explainer import Explainer, PreparedImage
from detcam.explanation import Explanation
from detcam.geometry import Geometry
from detcam.questions.base import Question
from detcam.types import Objects

SCORE = 0.01  # tolerance of a score: the model may have been fused or run in half precision
PLACE = 0.01  # tolerance of a side, as a share of the longer side of the box, plus one pixel
TENSOR_SIDES = 32  # pixels: predict takes tensors whose sides are multiples of it
TRACKED = 0.3  # smallest IoU of a candidate with a box that a tracker has moved
SCORE_WEIGHT = 10  # weight of the score against the place when a tracked box is matched
ALIKE = 0.05  # of these tolerances: what rounding in a fused model may change


class _Disagreement(Exception):
    """A box does not match any candidate of the model."""


class Returned(Question):
    """Question about boxes that were returned before: each is matched to the candidate with its box and score."""

    def __init__(self, result: Any, conf: float, iou: float, max_det: int) -> None:
        self._selection = conf, iou, max_det
        rows = result.boxes if result.boxes is not None else result.obb
        self._boxes, self._scores = torch.as_tensor(rows.xyxy).float(), torch.as_tensor(rows.conf).float()
        self._class_ids = torch.as_tensor(rows.cls).long()
        self._tracked, self._names = bool(rows.is_track), result.names

    @torch.no_grad()
    def objects(self, adapter: Adapter, outputs: Any, geometry: Geometry) -> Objects:
        """The boxes and scores of the results; a _Disagreement if a box does not match any candidate."""
        places, scores = adapter.image_candidates(outputs, geometry)
        given = self._boxes, self._scores, self._class_ids  # made under inference mode
        boxes, given_scores, class_ids = (values.to(places.device).clone() for values in given)
        if len(class_ids) and int(class_ids.max()) >= scores.shape[1]:
            raise _Disagreement(f"class {int(class_ids.max())} does not exist: the model has {scores.shape[1]} classes")
        off = (scores[:, class_ids].T - given_scores[:, None]).abs() / SCORE  # [N, A]; at most 1 for a match
        candidates, boxes_seen = geometry.to_source(places), geometry.to_source(geometry.to_network(boxes))
        if self._tracked:
            distance = (1 - box_iou(boxes_seen, candidates)) / (1 - TRACKED)
        else:
            sides = (boxes[:, 2:] - boxes[:, :2]).amax(dim=1, keepdim=True)
            distance = (boxes_seen[:, None] - candidates).abs().amax(dim=2) / (1 + PLACE * sides)
        kept = adapter.detect(outputs, [geometry], *self._selection)[0]
        best = _best(off * (SCORE_WEIGHT if self._tracked else 1) + distance, class_ids, kept)
        wrong = torch.maximum(off, distance).gather(1, best[:, None])[:, 0] > 1
        if bool(wrong.any()):
            i = int(wrong.nonzero()[0])
            corners = ", ".join(f"{side:.0f}" for side in boxes[i].tolist())
            raise _Disagreement(f"box {i} ({self._names[int(class_ids[i])]} {given_scores[i]:.2f} at {corners})")
        objects = adapter.objects_at(outputs, best, class_ids, geometry)
        return adapter.chosen(replace(objects, boxes=boxes, scores=given_scores))


def _best(cost: Tensor, class_ids: Tensor, kept: Objects) -> Tensor:
    """[N] the candidate of least `cost` [N, A] for each box; of candidates that are alike, one that predict keeps.

    Candidates of the same score are alike if their boxes are once they are clipped to the image; an untrained model has
    many. Predict returns each that it keeps once, in this order.
    """
    least, best = cost.min(dim=1)
    alike = (cost[:, kept.index] <= least[:, None] + ALIKE) & (kept.class_ids == class_ids[:, None])
    for i, row in enumerate(alike):
        if row.any():
            place = int(row.int().argmax())
            best[i], alike[:, place] = kept.index[place], False
    return best


class ResultsExplainer(Explainer):
    """Explainer for the results of Ultralytics' predict and track calls."""

    def explain(self, result: Any, name: str) -> Explanation:
        """`explain_results` for one image; `name` identifies it in errors."""
        if getattr(result, "probs", None) is not None:
            return self._classified(result, name)
        if getattr(result, "boxes", None) is None and getattr(result, "obb", None) is None:
            raise InputError(
                f"{name}: expected Results with boxes, rotated boxes or class probabilities, got none of them: give "
                "the results of a detect, segment, pose, obb or classify model"
            )
        question, reason = Returned(result, self.conf, self.iou, self.max_det), ""
        for placed in self._layouts(_rgb(result)):
            try:
                return self.explain_batch([placed], question)[0]
            except _Disagreement as error:
                reason = reason or str(error)
        raise InputError(
            f"{name}: {reason} is not among this model's candidates for this image: give the model and the imgsz of "
            "the predict call (results of augment=True cannot be explained)"
        )

    def _classified(self, result: Any, name: str) -> Explanation:
        explanation = self(_rgb(result))
        if explanation.class_ids.tolist() != [int(result.probs.top1)]:
            raise InputError(
                f"{name}: the results say {result.names[int(result.probs.top1)]}, this model says "
                f"{', '.join(explanation.labels) or 'nothing'}: give the model and the imgsz that made the results"
            )
        return explanation

    def _layouts(self, image: np.ndarray) -> Iterator[PreparedImage]:
        """The image as predict prepares it alone or among images of its size; among others; and as a tensor.

        Among images of several sizes, YOLO models pad the image to the full input size, which changes the boxes
        slightly. A tensor becomes the network's input as it is.
        """
        yield self.prepare(image)
        adapter: Any = self.adapter
        size, stride = adapter.size, getattr(adapter, "stride", None)
        layouts = [] if stride is None else [(size, max(size))]
        if all(side % TENSOR_SIDES == 0 for side in image.shape[:2]):
            layouts.append((image.shape[:2], stride))
        for adapter.size, adapter.stride in layouts:
            try:
                placed = self.prepare(image)
            finally:
                adapter.size, adapter.stride = size, stride
            yield placed


def explain_results(results: Any, model: Any, **options: Any) -> Any:
    """Explain the objects in the results of Ultralytics' `predict` or `track`, without detecting them again.

    Images are taken from the results. Each object is matched to the candidate (anchor or query) with its box and score,
    so the results may be filtered or reordered, and conf, iou and agnostic_nms do not matter; `classes` leaves others
    out. A box that a tracker has moved is matched to the candidate with the same score beneath it.

    Args:
        results: a Results, a list of Results, or the generator of `stream=True`.
        model: the model that made the results: an ultralytics.YOLO or RTDETR, its nn.Module, or the path of its
            weights. For a YOLO or RTDETR that has predicted before, imgsz defaults to that of the last call.
        options: options of `detcam.Explainer`, e.g. method, layers, target, imgsz, device.

    Returns:
        The Explanation of a single Results, with the same boxes and scores in the same order; otherwise a list of
        Explanations.

    Raises:
        InputError: if a box matches no candidate of the model, or the results have neither boxes nor classes.
    """
    single = hasattr(results, "orig_img")
    items = [results] if single else results
    if not isinstance(items, Iterable):
        raise InputError(f"results: expected Ultralytics' Results or a list of them, got a {type(results).__name__}")
    explainer, explanations = None, []
    for i, result in enumerate(items):
        if not hasattr(result, "orig_img"):
            raise InputError(f"results[{i}]: expected Ultralytics' Results, got a {type(result).__name__}")
        if explainer is None:  # a generator's predict call has its settings from the first result on
            explainer = ResultsExplainer(_used(model), **{**_settings(getattr(model, "predictor", None)), **options})
        explanations.append(explainer.explain(result, "results" if single else f"results[{i}]"))
    return explanations[0] if single else explanations


def ultralytics_callback(out: str | os.PathLike[str] | None = None, **options: Any) -> Callable[[Any], None]:
    """A callback for Ultralytics that explains the objects of predict and track calls while they run.

    ::

        model = YOLO("yolov8n.pt")
        model.add_callback("on_predict_batch_end", detcam.ultralytics_callback(layers="level"))
        for result in model.predict("street.jpg"):
            result.explanation.heatmaps

    Each Results gets the attribute `explanation`; it is None after a warning that says why. Heatmaps are made on first
    access, so the results of many images stay small. (At the earlier event "on_predict_postprocess_end" a tracker would
    still replace the Results.)

    Args:
        out: folder for `Explanation.save`, with a subfolder for each image; None: nothing is written.
        options: options of `detcam.Explainer` except model, conf, iou, max_det, imgsz and device, which predict sets.

    Raises:
        InputError: for an option that predict sets.
    """
    if misplaced := sorted({"model", "conf", "iou", "max_det", "imgsz", "device"} & options.keys()):
        raise InputError(f"{misplaced[0]}: predict sets this option: give {misplaced[0]} to predict instead")
    folder = None if out is None else Path(out)
    explainer: ResultsExplainer | None = None  # kept while model and settings of the predictor stay the same
    key: tuple[Any, ...] = ()
    numbers = count()

    def explain(predictor: Any) -> None:
        nonlocal explainer, key
        for result, number in zip(predictor.results, numbers, strict=False):
            result.explanation = None
            try:
                settings, network = _settings(predictor), module_of(predictor)  # fused, in predict's precision
                if explainer is None or key != (network, settings):
                    with torch.inference_mode(False):
                        explainer = ResultsExplainer(network, **settings, **options)
                    key = network, settings
                explanation = explainer.explain(result, str(result.path))
                if folder is not None:
                    explanation.save(folder / f"{number:06d}_{Path(result.path).stem}", result.path)
                result.explanation = explanation
            except Exception as error:  # whatever it is, the user's predict goes on
                warnings.warn(f"no explanation: {str(error) or type(error).__name__}", stacklevel=2)

    return explain


def _used(model: Any) -> Any:
    """The model, or predict's copy of it, if that used the other head of the model (`nms=`)."""
    copied = module_of(getattr(model, "predictor", None))
    heads = [getattr(head_of(each), "end2end", None) for each in (model, copied)]
    return copied if isinstance(copied, nn.Module) and heads[0] != heads[1] else model


def _settings(predictor: Any) -> dict[str, Any]:
    """The options of the last predict call, by the names of Explainer's options; {} if there was none."""
    if getattr(predictor, "imgsz", None) is None:
        return {}
    imgsz = int(predictor.imgsz[0]), int(predictor.imgsz[-1])
    return {**{name: getattr(predictor.args, name) for name in ("conf", "iou", "max_det")}, "imgsz": imgsz}


def _rgb(result: Any) -> np.ndarray:
    """The image of a Results, which stores three channels as BGR."""
    image = np.asarray(result.orig_img)
    return np.ascontiguousarray(image[:, :, ::-1] if image.shape[2] == 3 else image)
