"""Tracks: object identities from frame to frame, and the heatmap of each track."""

from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from detcam.errors import needing
from detcam.render.canvas import resized
from detcam.types import Objects

LOST_SECONDS = 1.0  # a track that is unseen for longer ends
HALF_LIFE = 2.0  # seconds in which a track's scale falls by half if new maps are weaker
FOLLOW = 0.4  # time constant in seconds with which a heatmap follows a new map


class Tracker:
    """Assigns track numbers to objects with ByteTrack, as implemented in the package `trackers`.

    Zhang et al. 2022, "ByteTrack: Multi-Object Tracking by Associating Every Detection Box". Every object gets a number
    on its first frame; objects of different classes are never matched. The rate is about the frames per second. Raises
    a DependencyError if `trackers` is not installed.
    """

    def __init__(self, rate: float) -> None:
        with needing('videos need trackers and supervision: pip install "detcam[video]"'):
            from supervision import Detections
            from trackers import ByteTrackTracker
        self._detections: Any = Detections
        # All objects are above the explainer's threshold, so each may start a track at once.
        self._tracker: Any = ByteTrackTracker(
            lost_track_buffer=round(30 * LOST_SECONDS),
            frame_rate=rate,
            track_activation_threshold=0.0,
            high_conf_det_threshold=0.0,
            minimum_consecutive_frames=1,
        )
        self._numbers = count(1)

    def update(self, objects: Objects, time: float) -> list[int]:
        """The track number of each object of the next frame, which is `time` seconds after the start."""
        boxes = objects.boxes.cpu().double().numpy()
        classes = objects.class_ids.cpu().numpy()
        # An offset for each class keeps boxes of different classes from overlapping.
        offsets = 4 * max(float(np.abs(boxes).max(initial=1.0)), 1e4) * classes[:, None]
        detections = self._detections(
            xyxy=boxes + offsets,
            confidence=objects.scores.cpu().numpy(),
            class_id=classes,
            data={"place": np.arange(len(boxes))},
        )
        tracked = self._tracker.update(detections, timestamp=time)
        fresh = [track for track in self._tracker.tracks if track.tracker_id == -1]
        for track in fresh:
            track.tracker_id = next(self._numbers)
        numbers = [0] * len(boxes)
        started = iter(fresh)  # in the order of the objects that started them
        if len(boxes):
            for place, number in zip(tracked.data["place"].tolist(), tracked.tracker_id.tolist(), strict=True):
                numbers[place] = number if number != -1 else next(started).tracker_id
        return numbers


@dataclass(frozen=True)
class Heat:
    """The heatmap of a track."""

    # [h, w] float32, not negative, over the network's input, for the object at `box`; raw values, smoothed over time.
    map: Tensor
    box: np.ndarray  # (x1, y1, x2, y2) in pixels of the network's input
    scale: float  # the value of heat 1: the recent maximum of the track's maps, at least that of `map`
    peak: float  # largest raw value in the last explained frame
    energy: float  # share of the raw map's energy inside the box in that frame, in [0, 1]; nan if the map is zero
    note: str | None  # None, or why the map is zero, shared or approximate
    time: float  # time of the last explained frame in seconds


class HeatMemory:
    """The heatmaps of all tracks, smoothed over time.

    A track's heatmap follows new maps with the time constant FOLLOW, moves with the box, and is divided by the recent
    maximum of the track, not by the maximum of each frame, which would flicker; unless `steady`, every map is divided
    by its own maximum and nothing is kept from earlier frames.
    """

    def __init__(self, steady: bool = True) -> None:
        self._steady = steady
        self._heats: dict[int, Heat] = {}
        self._seen: dict[int, float] = {}
        self._grid = (1, 1)

    def __len__(self) -> int:
        return len(self._heats)

    def add(
        self,
        tracks: list[int],
        boxes: np.ndarray,
        maps: list[Tensor],
        energies: list[float],
        notes: list[str | None],
        time: float,
        network: tuple[int, int],
    ) -> None:
        """Add the raw coarse maps [h, w] of the N objects of a frame, with the track number of each.

        Boxes [N, 4] are xyxy in pixels of the network's input, whose height and width are `network`; `energies` and
        `notes` are as in `Heat`, `time` is in seconds.
        """
        if not tracks:
            return
        shapes = [(m.shape[0], m.shape[1]) for m in maps]
        self._grid = max([self._grid, *shapes], key=lambda shape: shape[0] * shape[1])
        positive = [m.float().nan_to_num(0.0, 0.0, 0.0).relu() for m in maps]
        heat = torch.cat([interpolate(m[None, None], self._grid, mode="bilinear")[0] for m in positive])
        peaks = torch.stack([m.amax() for m in positive]).tolist()
        known = [self._heats.get(track) if self._steady else None for track in tracks]
        carried = [i for i, old in enumerate(known) if old is not None]
        if carried:
            before = [old for old in known if old is not None]
            whole = (0.0, 0.0, float(network[1]), float(network[0]))
            moved = resized(*at_boxes(before, boxes[carried], whole, network), self._grid)
            share = [1 - np.exp(-max(time - old.time, 0.0) / FOLLOW) for old in before]
            heat[carried] = torch.lerp(moved, heat[carried], heat.new_tensor(share).view(-1, 1, 1))
        tops = heat.flatten(1).amax(dim=1).tolist()
        for i, track in enumerate(tracks):
            old = known[i]  # the scale is the larger of the new maximum and the decayed old scale
            scale = max(tops[i], 0.0 if old is None else old.scale * 0.5 ** ((time - old.time) / HALF_LIFE))
            self._heats[track] = Heat(heat[i], boxes[i], scale, peaks[i], energies[i], notes[i], time)

    def get(self, tracks: list[int], time: float) -> list[Heat | None]:
        """The heat of each track, None if it was not explained yet. Tracks that have ended are forgotten."""
        for track in tracks:
            self._seen[track] = time
        for track in [track for track, seen in self._seen.items() if time - seen > 2 * LOST_SECONDS]:
            del self._seen[track]
            self._heats.pop(track, None)
        return [self._heats.get(track) for track in tracks]


def at_boxes(
    heats: list[Heat], boxes: np.ndarray, part: tuple[float, float, float, float], network: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """The maps [K, h, w] of heats, and the window [K, 4] of each, in cells, that is shown at `part` now.

    The objects were at `Heat.box` and are now at `boxes` [K, 4] xyxy. Boxes and `part` are in pixels of the network's
    input, whose height and width are `network`.
    """
    maps = torch.stack([heat.map for heat in heats])
    kind = np.result_type(boxes, np.float32)
    before, now = (np.array(c, kind).reshape(-1, 2, 2) for c in ([heat.box for heat in heats], boxes))
    old, new = before[:, 1] - before[:, 0], now[:, 1] - now[:, 0]  # [K, 2] width and height
    stretch = np.divide(old, new, out=np.ones_like(old), where=(old > 0) & (new > 0))
    shown = before[:, :1] + (np.array(part, kind).reshape(2, 2) - now[:, :1]) * stretch[:, None]
    windows = shown * np.array(maps.shape[:0:-1], kind) / np.array(network[::-1], kind)
    return maps, torch.tensor(windows.reshape(-1, 4), dtype=torch.float32, device=maps.device)
