"""The way of the frames: decode, model, tracks; each stage in a thread of its own, the queues between them bounded."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import chain, islice
from typing import Any

import torch

from detcam.errors import InputError
from detcam.explainer import Explainer
from detcam.video.detect import Found, Pace, choose, found
from detcam.video.energy import energies
from detcam.video.frame import Frame
from detcam.video.source import Picture, Source, open_source
from detcam.video.stages import Ahead, Clock, timed
from detcam.video.tracks import HeatMemory, Tracker

ROOM = 4  # finished items that may wait before a stage
TRIED = 4  # frames that a budget is measured on


class Stats:
    """What a run did and where its time went.

    Attributes:
        frames, explained, objects: frames handed out, those of them that were explained, objects in all of them.
        tracks: numbers given so far.
        dropped: frames of a live source that nobody was ready for.
        every: each K-th frame is explained; 0: none. With a budget, the K of now.
        choice: what a budget led to, in words, or None.
        clocks: thread -> its clock.
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
        """Everything as plain numbers; seconds of each part of each thread, which add up to "alive"."""
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
    """Every frame of a video with its objects, their tracks and heatmaps.

    Decoding and the model run ahead in threads of their own. Leaving the loop early ends them.

    Args:
        source: what `open_source` takes, or a `Source`, which stays open.
        explainer: what finds and explains the objects.
        every: explain each K-th frame only, and carry its heatmaps along with the boxes in between; the model still
            finds the objects of every frame. 0 explains nothing.
        budget: frames per second to reach: K is chosen, and followed up, by what frames turn out to cost.
        cheaper: with a budget, what to explain with if `explainer` is too slow for it.
        steady: whether a track's heatmap is divided by the recent maximum of the track and follows a new map within
            a quarter of a second; if not, every map is divided by its own maximum.
        batch: frames that go through the model together. Default 4, 8 on a GPU, 1 for live sources.
        limit: end after so many frames.
        stats: filled while frames are handed out.
        stop: ends the video when it is set, after the frame at hand.

    Raises:
        InputError: if the source cannot be read or an option cannot be used.
        ImportError: if the libraries of the extra "video" are not installed.
    """
    if every < 0 or (budget is not None and not budget > 0):
        raise InputError(f"every, budget: expected at least 0 and a number above 0, got {every}, {budget}")
    stats = stats or Stats()
    opened = open_source(source)
    ours = opened is not source
    pictures = timed(opened, stats.clock("decode"), "decode")
    return _frames(
        opened, islice(pictures, limit), ours, explainer, (every, budget, cheaper), steady, batch, stats, stop
    )


def _frames(
    source: Source,
    pictures: Iterator[Picture],
    ours: bool,
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
                    explainer, every, stats.choice = choice.explainer, choice.every, choice.words
        clock = stats.clock("model")
        pictures = timed(chain(tried, waiting), clock, "input")
        pace = Pace(every, budget)
        model: Ahead[Found] = Ahead(found(pictures, explainer, pace, batch, clock), ROOM, clock, stop=stop)
        stages.append(model)
        clock = stats.clock("paint")
        with clock("track"):  # its library takes a moment to load
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
        if ours:
            source.close()


@torch.no_grad()
def _tracked(item: Found, tracker: Tracker, memory: HeatMemory) -> Frame:
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
