"""Detection: frames go through the model; some are explained, the others are only detected."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count, islice
from statistics import median
from time import perf_counter
from timeit import timeit

import numpy as np
import torch

from detcam.explainer import Explainer
from detcam.explanation import Explanation
from detcam.geometry import Geometry
from detcam.types import Objects
from detcam.video.source import Picture
from detcam.video.stages import Clock

LONGEST = 30  # largest K that a budget chooses
PREFERRED = 5  # with a larger K than this, a budget chooses the cheaper method
TOGETHER = 3  # batches that are read at once, so that frames to explain and other frames fill batches of their own
SPARE = 0.8  # share of the budget's time for the model; the rest is for the other stages


@dataclass(frozen=True)
class DetectedFrame:
    """A frame and its objects; `explanation` is None if the frame was only detected."""

    index: int
    picture: Picture
    objects: Objects
    geometry: Geometry
    explanation: Explanation | None


def detect(explainer: Explainer, images: list[np.ndarray]) -> list[tuple[Objects, Geometry]]:
    """The objects that `explainer` would explain in each image, and its placement in the network's input.

    Nothing is explained. The images [H, W, 3] uint8 RGB, all of one size, form one batch.
    """
    if not images:
        return []
    adapter = explainer.adapter
    placed = [adapter.prepare(image) for image in images]
    pixels = torch.stack([tensor for tensor, _ in placed]).contiguous(memory_format=torch.channels_last)
    geometries = [geometry for _, geometry in placed]
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(adapter.device.type, enabled=False):
        outputs = adapter.forward(pixels, explainer.max_det)
        objects = adapter.objects(outputs, geometries, explainer.conf, explainer.iou, explainer.max_det)
    return list(zip(objects, geometries, strict=True))


class Pace:
    """Decides which frames are explained: every K-th, none, or as many as a budget allows.

    With a budget, K follows the recent cost of detecting and of explaining a frame.
    """

    def __init__(self, every: int = 1, budget: float | None = None) -> None:
        self.every = every  # the current K; 0: no frame is explained
        self._budget = budget
        self._since = LONGEST + every  # frames since the last explained frame
        self._seconds = {True: 0.0, False: 0.0}  # for a frame with and without an explanation

    def due(self) -> bool:
        """Whether the next frame is to be explained."""
        self._since += 1
        if not self.every or self._since < self.every:
            return False
        self._since = 0
        return True

    def note(self, frames: int, explained: bool, seconds: float) -> None:
        """Record that `frames` frames took `seconds` in the model."""
        if self._budget is None or not frames:
            return
        before, each = self._seconds[explained], seconds / frames
        self._seconds[explained] = 0.8 * before + 0.2 * each if before else each
        if all(self._seconds.values()):
            self.every = period(self._budget, self._seconds[False], self._seconds[True])


def period(budget: float, plain: float, explained: float) -> int:
    """The smallest K that allows `budget` frames per second, at most LONGEST.

    One frame in K takes `explained` seconds in the model, the others `plain` seconds.
    """
    spare = SPARE / budget - plain
    extra = max(explained - plain, 0.0)
    return LONGEST if spare * LONGEST <= extra else max(math.ceil(extra / spare), 1)


def choose(
    images: list[np.ndarray], explainer: Explainer, budget: float, cheaper: Explainer | None
) -> tuple[Explainer, int, str]:
    """Choose the explainer and the K for `budget` frames a second, by timing some frames [H, W, 3] uint8 RGB.

    `cheaper` is taken if `explainer`, which the user asked for, would explain too few frames. Returns the explainer,
    the K, and a sentence about them for the user.
    """
    plain = _seconds(lambda image: detect(explainer, [image]), images)
    explained = _seconds(explainer, images)
    every = period(budget, plain, explained)
    choice = f"{explainer.settings['method']} on every {_ordinal(every)} frame"
    if every > PREFERRED and cheaper is not None and cheaper.settings != explainer.settings:
        cheap = _seconds(cheaper, images)
        if cheap < explained:
            explainer, every = cheaper, period(budget, plain, cheap)
            layers = ", ".join(explainer.settings["layers"])
            method = explainer.settings["method"]
            choice = f"{method} at {layers} on every {_ordinal(every)} frame, because {choice} is slower"
            explained = cheap
    cost = f"a frame takes {plain * 1000:.0f} ms to detect, {explained * 1000:.0f} ms to explain"
    short = "; the detector alone is too slow for this budget" if plain > 1 / budget else ""
    return explainer, every, f"budget of {budget:g} frames a second: {choice} ({cost}{short})"


def _seconds(run: Callable[[np.ndarray], object], images: list[np.ndarray]) -> float:
    """Median duration of a call; the first call is a warm-up."""
    run(images[0])
    return median(timeit(partial(run, image), number=1) for image in images)


def _ordinal(number: int) -> str:
    ending = "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def detected_frames(
    pictures: Iterator[Picture], explainer: Explainer, pace: Pace, batch: int, clock: Clock
) -> Iterator[DetectedFrame]:
    """Frames with their objects, in order; up to `batch` frames go through the model together."""

    def explained(images: list[np.ndarray]) -> list[tuple[Objects, Geometry, Explanation | None]]:
        return [(explanation.objects, explanation.geometry, explanation) for explanation in explainer(images)]

    def plain(images: list[np.ndarray]) -> list[tuple[Objects, Geometry, Explanation | None]]:
        return [(objects, geometry, None) for objects, geometry in detect(explainer, images)]

    index = count()
    while frames := list(islice(pictures, batch * min(max(pace.every, 1), TOGETHER if batch > 1 else 1))):
        due = [pace.due() for _ in frames]
        results = {}
        for flag, part, run in ((True, "explain", explained), (False, "detect", plain)):
            images = [picture.image for picture, is_due in zip(frames, due, strict=True) if is_due is flag]
            begin = perf_counter()
            with clock(part):
                found = [each for i in range(0, len(images), batch) for each in run(images[i : i + batch])]
            pace.note(len(images), flag, perf_counter() - begin)
            results[flag] = iter(found)
        for picture, is_due in zip(frames, due, strict=True):
            yield DetectedFrame(next(index), picture, *next(results[is_due]))
