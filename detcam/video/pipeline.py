"""Pipeline: decoding, model and tracking, each in its thread, with bounded queues between them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import chain, islice
from typing import Any

import torch

from detcam.errors import InputError
from detcam.explainer import Explainer
from detcam.video.detect import DetectedFrame, Pace, choose, detected_frames
from detcam.video.energy import energies
from detcam.video.frame import Frame
from detcam.video.open import open_source
from detcam.video.source import Picture, Source
from detcam.video.stages import Ahead, Clock, timed
from detcam.video.tracks import HeatMemory, Tracker

ROOM = 4  # capacity of the queue before a stage
TRIED = 4  # frames that are timed for a budget


class Stats:
    """Counts and times of a run.

    Attributes:
        frames, explained, objects: number of frames yielded, of explained frames among them, of objects in all of them.
        tracks: number of tracks so far.
        dropped: number of frames of a live source that were not read in time.
        every: every K-th frame is explained; 0: none. With a budget, the current K.
        choice: what a budget led to, as a sentence, or None.
        clocks: name of a thread -> its clock.
    """

    def __init__(self) -> None:
        self.frames = self.explained = self.objects = self.tracks = self.dropped = 0
        self.every = 1
        self.choice: str | None = None
        self.clocks: dict[str, Clock] = {}

    def clock(self, thread: str) -> Clock:
        """The clock of a thread, made on first use."""
        return self.clocks.setdefault(thread, Clock())

    def to_dict(self) -> dict[str, Any]:
        """All counts, and the seconds of each part of each thread, which add up to "alive"."""
        counts = ("frames", "explained", "objects", "tracks", "dropped", "every", "choice")
        seconds = {name: clock.to_dict() for name, clock in self.clocks.items()}
        return {**{name: getattr(self, name) for name in counts}, "seconds": seconds}


def explain(
    source: Any,
    explainer: Explainer,
    every: int = 1,
    budget: float | None = None,
    cheaper: Explainer | None = None,
    steady: bool = True,
    batch: int | None = None,
    limit: int | None = None,
    stats: Stats | None = None,
    stop: threading.Event | None = None,
) -> Iterator[Frame]:
    """Yield every frame of a video with its objects, their tracks and heatmaps.

    Decoding and the model run ahead in separate threads. Leaving the loop early ends the threads.

    Args:
        source: any source for `open_source`; a `Source` stays open.
        explainer: detects and explains the objects.
        every: explain every K-th frame; in between, heatmaps move with their boxes. Objects are detected in every
            frame. 0: explain nothing.
        budget: frames per second to reach; K is chosen and adjusted by the measured cost of frames.
        cheaper: explainer to use if `explainer` is too slow for the budget.
        steady: whether heatmaps are smoothed over time and divided by the recent maximum of their track, see
            `HeatMemory`; if False, every map is divided by its own maximum.
        batch: frames that go through the model together. Default 4, 8 on a GPU, 1 for live sources.
        limit: largest number of frames.
        stats: updated with every frame.
        stop: when set, the video ends after the current frame.

    Raises:
        InputError: if the source cannot be read or an option cannot be used.
        ImportError: if the libraries of the extra "video" are not installed.
    """
    if every < 0 or (budget is not None and not budget > 0):
        raise InputError(f"every, budget: expected every >= 0 and budget > 0, got every={every}, budget={budget}")
    stats = stats or Stats()
    opened = open_source(source)
    owned = opened is not source
    pictures = timed(opened, stats.clock("decode"), "decode")
    return _frames(
        opened, islice(pictures, limit), owned, explainer, (every, budget, cheaper), steady, batch, stats, stop
    )


def _frames(
    source: Source,
    pictures: Iterator[Picture],
    owned: bool,
    explainer: Explainer,
    pacing: tuple[int, float | None, Explainer | None],
    steady: bool,
    batch: int | None,
    stats: Stats,
    stop: threading.Event | None,
) -> Iterator[Frame]:
    every, budget, cheaper = pacing
    batch = batch or (1 if source.live else 8 if explainer.adapter.device.type == "cuda" else 4)
    stages: list[Ahead[Any]] = []
    try:
        clock = stats.clock("decode")
        decoded: Ahead[Picture] = Ahead(pictures, ROOM + batch, clock, source.live, stop)
        stages.append(decoded)
        waiting, tried = iter(decoded), []
        if budget is not None:
            with stats.clock("paint")("choose"):
                tried = list(islice(waiting, TRIED))
                if tried:
                    choice = choose([p.image for p in tried], explainer, budget, cheaper)
                    explainer, every, stats.choice = choice.explainer, choice.every, choice.description
        clock = stats.clock("model")
        pictures = timed(chain(tried, waiting), clock, "input")
        pace = Pace(every, budget)
        model: Ahead[DetectedFrame] = Ahead(
            detected_frames(pictures, explainer, pace, batch, clock), ROOM, clock, stop=stop
        )
        stages.append(model)
        clock = stats.clock("paint")
        with clock("track"):  # importing the tracker takes a moment
            tracker, memory = Tracker(float(source.rate or 25)), HeatMemory(steady)
        for item in timed(model, clock, "input"):
            with clock("track"):
                frame = _tracked(item, tracker, memory)
            stats.frames += 1
            stats.explained += frame.explained
            stats.objects += len(frame)
            stats.tracks = max([stats.tracks, *frame.tracks])
            stats.dropped, stats.every = decoded.dropped, pace.every
            yield frame
    finally:
        for stage in reversed(stages):
            stage.close()
        if owned:
            source.close()


@torch.no_grad()
def _tracked(item: DetectedFrame, tracker: Tracker, memory: HeatMemory) -> Frame:
    picture, objects, explanation = item.picture, item.objects, item.explanation
    tracks = tracker.update(objects, picture.time)
    if explanation is not None:
        shares = energies(explanation.maps, objects.boxes, item.geometry)
        boxes = objects.network_boxes.cpu().numpy()
        memory.add(tracks, boxes, explanation.maps, shares, explanation.notes, picture.time, item.geometry.network)
    heats = memory.get(tracks, picture.time)
    return Frame(
        item.index, picture.time, picture.duration, picture.image, objects, tracks, heats, explanation is not None,
        item.geometry,
    )  # fmt: skip
