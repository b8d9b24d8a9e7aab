"""Pipeline: decoding, model and tracking, each in its thread, with bounded queues between them."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import chain, islice
from typing import Any

import torch

from detcam.errors import InputError
from detcam.explainer import Explainer
from detcam.render.energy import energies
from detcam.video.detect import DetectedFrame, Pace, choose, detected_frames
from detcam.video.frame import Frame
from detcam.video.readers import open_source
from detcam.video.source import Picture
from detcam.video.stages import Ahead, Clock, timed
from detcam.video.tracks import HeatMemory, Tracker

ROOM = 4  # capacity of the queue before a stage
TRIED = 4  # frames that are timed for a budget


class Stats:
    """Counts and times of a run; `dropped` are the frames of a live source that were not read in time."""

    def __init__(self) -> None:
        self.frames = self.explained = self.objects = self.tracks = self.dropped = 0
        self.every = 1  # every K-th frame is explained; 0: none. With a budget, the current K
        self.choice: str | None = None  # what a budget led to, as a sentence
        self.clocks: dict[str, Clock] = {}  # by the name of the thread

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
    counts = stats or Stats()
    opened = open_source(source)
    size = batch or (1 if opened.live else 8 if explainer.adapter.device.type == "cuda" else 4)
    decoding = counts.clock("decode")
    pictures = islice(timed(opened, decoding, "decode"), limit)

    def frames() -> Iterator[Frame]:
        used, k = explainer, every
        with ExitStack() as cleanup:
            if opened is not source:
                cleanup.callback(opened.close)
            decoded: Ahead[Picture] = Ahead(pictures, ROOM + size, decoding, opened.live, stop)
            cleanup.callback(decoded.close)
            waiting, tried = iter(decoded), []
            if budget is not None:
                with counts.clock("paint")("choose"):
                    tried = list(islice(waiting, TRIED))
                    if tried:
                        used, k, counts.choice = choose([p.image for p in tried], explainer, budget, cheaper)
            pace, clock = Pace(k, budget), counts.clock("model")
            detected = detected_frames(timed(chain(tried, waiting), clock, "input"), used, pace, size, clock)
            model: Ahead[DetectedFrame] = Ahead(detected, ROOM, clock, stop=stop)
            cleanup.callback(model.close)
            clock = counts.clock("paint")
            with clock("track"):  # importing the tracker takes a moment
                tracker, memory = Tracker(float(opened.rate or 25)), HeatMemory(steady)
            for item in timed(model, clock, "input"):
                with clock("track"):
                    frame = _tracked(item, tracker, memory)
                counts.frames += 1
                counts.explained += frame.explained
                counts.objects += len(frame)
                counts.tracks = max([counts.tracks, *frame.tracks])
                counts.dropped, counts.every = decoded.dropped, pace.every
                yield frame

    return frames()


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
