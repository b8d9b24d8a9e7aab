"""Frames through the model: some explained, the others only detected, both by the same adapter."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from statistics import median
from time import perf_counter

import numpy as np
import torch

from detcam.explainer import Explainer
from detcam.explanation import Explanation
from detcam.geometry import Geometry
from detcam.types import Objects
from detcam.video.source import Picture
from detcam.video.stages import Clock

LONGEST = 30  # frames that a heatmap is carried at most, when a budget chooses
PREFERRED = 5  # frames; where the user's method would have to be carried for longer, a cheaper one is taken
TOGETHER = 3  # batches that are read at once, so that frames to explain and others each fill theirs
SPARE = 0.8  # share of the budget's time that the model may take: the other stages want some


@dataclass(frozen=True)
class Found:
    """One frame and what the model found in it; `explanation` is None where it was only detected."""

    index: int
    picture: Picture
    objects: Objects
    geometry: Geometry
    explanation: Explanation | None


def detect(explainer: Explainer, images: list[np.ndarray]) -> list[tuple[Objects, Geometry]]:
    """The objects that `explainer` would explain, without explaining them.

    Args:
        explainer: whose model and thresholds to use.
        images: [H, W, 3] uint8 RGB, all of one size; they go through the model together.

    Returns:
        The objects of each picture, and how it lay in the network's input.
    """
    if not images:
        return []
    adapter = explainer.adapter
    placed = [adapter.prepare(image) for image in images]
    pixels = torch.stack([tensor for tensor, _ in placed]).contiguous(memory_format=torch.channels_last)
    geometries = [geometry for _, geometry in placed]
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(adapter.device.type, enabled=False):
        outputs = adapter.forward(pixels, explainer.max_det)
        objects = adapter.detect(outputs, geometries, explainer.conf, explainer.iou, explainer.max_det)
    return list(zip(objects, geometries, strict=True))


class Pace:
    """Which frames are explained: each K-th, none, or as many as a budget allows.

    With a budget, K follows what a detected and an explained frame were last seen to cost.

    Attributes:
        every: the K of now; 0 explains nothing.
    """

    def __init__(self, every: int = 1, budget: float | None = None) -> None:
        self.every = every
        self._budget = budget
        self._since = LONGEST + every  # frames since the last one that was explained
        self._plain = self._dear = 0.0  # seconds for a frame without and with an explanation

    def due(self) -> bool:
        """Whether the next frame is to be explained."""
        self._since += 1
        if not self.every or self._since < self.every:
            return False
        self._since = 0
        return True

    def note(self, frames: int, explained: bool, seconds: float) -> None:
        """`frames` frames took `seconds` in the model."""
        if self._budget is None or not frames:
            return
        each = seconds / frames
        if explained:
            self._dear = each if not self._dear else 0.8 * self._dear + 0.2 * each
        else:
            self._plain = each if not self._plain else 0.8 * self._plain + 0.2 * each
        if self._plain and self._dear:
            self.every = period(self._budget, self._plain, self._dear)


def period(budget: float, plain: float, dear: float) -> int:
    """The least K with which `budget` frames a second can be met, at most LONGEST.

    One frame in K takes `dear` seconds in the model, the others `plain`.
    """
    spare = SPARE / budget - plain
    extra = max(dear - plain, 0.0)
    return LONGEST if spare * LONGEST <= extra else max(math.ceil(extra / spare), 1)


@dataclass(frozen=True)
class Choice:
    """What a budget led to."""

    explainer: Explainer
    every: int
    words: str


def choose(images: list[np.ndarray], explainer: Explainer, budget: float, cheaper: Explainer | None) -> Choice:
    """The explainer and the K for `budget` frames a second, measured on some frames of the video.

    Args:
        images: frames to measure on, [H, W, 3] uint8 RGB.
        explainer: what the user asked for.
        budget: frames per second.
        cheaper: what to fall back on where `explainer` would explain too few frames.
    """
    plain = _seconds(lambda image: detect(explainer, [image]), images)
    dear = _seconds(explainer, images)
    every = period(budget, plain, dear)
    said = f"{explainer.settings['method']} on every {_ordinal(every)} frame"
    if every > PREFERRED and cheaper is not None and cheaper.settings != explainer.settings:
        cheap = _seconds(cheaper, images)
        if cheap < dear:
            explainer, every = cheaper, period(budget, plain, cheap)
            layers = ", ".join(explainer.settings["layers"])
            said = f"{explainer.settings['method']} at {layers} on every {_ordinal(every)} frame, for {said} is slower"
            dear = cheap
    cost = f"a frame takes {plain * 1000:.0f} ms to detect, {dear * 1000:.0f} ms to explain"
    short = "; the detector alone is too slow for it" if plain > 1 / budget else ""
    return Choice(explainer, every, f"budget of {budget:g} frames a second: {said} ({cost}{short})")


def _seconds(run: object, images: list[np.ndarray]) -> float:
    """What one call takes: the median, after one that is not counted."""
    assert callable(run)
    run(images[0])
    taken = []
    for image in images:
        begin = perf_counter()
        run(image)
        taken.append(perf_counter() - begin)
    return median(taken)


def _ordinal(number: int) -> str:
    ending = "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def found(pictures: Iterator[Picture], explainer: Explainer, pace: Pace, batch: int, clock: Clock) -> Iterator[Found]:
    """Each frame with its objects, in order; up to `batch` frames go through the model together."""
    index = 0
    while some := list(islice(pictures, batch * min(max(pace.every, 1), TOGETHER if batch > 1 else 1))):
        due = [pace.due() for _ in some]
        wanted, rest = ([p for p, flag in zip(some, due, strict=True) if flag is which] for which in (True, False))
        explained: list[Explanation] = []
        plain: list[tuple[Objects, Geometry]] = []
        begin = perf_counter()
        with clock("explain"):
            for few in _batches(wanted, batch):
                explained += explainer([p.image for p in few])
        middle = perf_counter()
        with clock("detect"):
            for few in _batches(rest, batch):
                plain += detect(explainer, [p.image for p in few])
        pace.note(len(wanted), True, middle - begin)
        pace.note(len(rest), False, perf_counter() - middle)
        both = iter(explained), iter(plain)
        for picture, flag in zip(some, due, strict=True):
            if flag:
                explanation = next(both[0])
                yield Found(index, picture, explanation.objects, explanation.geometry, explanation)
            else:
                objects, geometry = next(both[1])
                yield Found(index, picture, objects, geometry, None)
            index += 1


def _batches(pictures: list[Picture], size: int) -> Iterator[list[Picture]]:
    return (pictures[i : i + size] for i in range(0, len(pictures), size))
