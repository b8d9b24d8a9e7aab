"""Frame: one image of a video with its objects, tracks and heatmaps, and how it is drawn."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detcam import render
from detcam.errors import InputError, nearest
from detcam.geometry import Geometry
from detcam.render.canvas import resized
from detcam.render.overlay import heated
from detcam.types import Objects
from detcam.video.tracks import Heat, at_boxes

VIEWS = {
    "boxes": "the heatmap of each object inside its box",
    "fused": "one layer of all heatmaps, the hottest in front, over the whole image",
    "none": "boxes and labels only; nothing is explained",
}
# RGB; distinct from one another and from the warm tones of the default colour map.
TRACK_COLOURS = (
    (64, 224, 255), (120, 255, 120), (255, 255, 255), (190, 160, 255), (0, 200, 160), (255, 170, 230),
    (90, 150, 255), (200, 255, 60), (170, 210, 255), (0, 240, 90), (225, 225, 150), (150, 150, 255),
)  # fmt: skip


@dataclass(frozen=True)
class Style:
    """Drawing style of a frame.

    Attributes:
        view: a key of VIEWS.
        classes: names of the classes to draw; None: all.
        track: number of the only track to draw; None: all.
        strongest: number of objects to draw, those with the highest scores; None: all.
        side_by_side: whether the original frame is shown on the left.
        alpha: opacity of the hottest pixel, in [0, 1].
        colormap: a key of `detcam.render.COLORMAPS`.

    Raises:
        InputError: for a value that cannot be used.
    """

    view: str = "boxes"
    classes: tuple[str, ...] | None = None
    track: int | None = None
    strongest: int | None = None
    side_by_side: bool = False
    alpha: float = 0.75
    colormap: str = "inferno"

    def __post_init__(self) -> None:
        if self.view not in VIEWS:
            raise InputError(f"view {self.view!r} does not exist: {nearest(self.view, VIEWS)}")
        render.colour_table(self.colormap)  # raises for one that does not exist
        if self.strongest is not None and self.strongest < 1:
            raise InputError(f"strongest: expected a whole number of at least 1, got {self.strongest}")
        if not 0 <= self.alpha <= 1:
            raise InputError(f"alpha: expected a number in [0, 1], got {self.alpha}")

    def chosen(self, objects: Objects, tracks: list[int]) -> list[int]:
        """Positions of the objects to draw, by increasing score: the strongest are drawn on top."""
        places = [
            i
            for i, (label, track) in enumerate(zip(objects.labels, tracks, strict=True))
            if (self.classes is None or label in self.classes) and (self.track is None or track == self.track)
        ]
        scores = objects.scores.tolist()
        places.sort(key=lambda i: scores[i])
        return places if self.strongest is None else places[-self.strongest :]


@dataclass(frozen=True)
class Frame:
    """A frame of a video with its N objects and their heatmaps.

    Attributes:
        index: number of the frame, from 0.
        time: seconds since the start of the source.
        duration: seconds for which it is shown, or None.
        image: [H, W, 3] uint8 RGB.
        objects: the objects, in the order of the library's predict call.
        tracks: track number of each object, the same from frame to frame.
        heats: heat of each object's track; None if the track was not explained yet.
        explained: whether this frame was explained; if not, its heatmaps come from earlier frames and move with the
            boxes.
        geometry: placement of the image in the network's input.
    """

    index: int
    time: float
    duration: float | None
    image: np.ndarray = field(repr=False)
    objects: Objects = field(repr=False)
    tracks: list[int]
    heats: list[Heat | None] = field(repr=False)
    explained: bool
    geometry: Geometry = field(repr=False)

    def __len__(self) -> int:
        return len(self.objects)

    @cached_property
    def warm(self) -> list[int]:
        """Positions of the objects whose heatmap is known and not zero."""
        return [i for i, heat in enumerate(self.heats) if heat is not None and heat.scale > 0]

    def cells(self, chosen: list[int]) -> tuple[Tensor, Tensor]:
        """Coarse heatmaps [K, h, w] in [0, 1] of some warm objects, and the window [K, 4] of each that fills the image.

        Windows are (left, top, right, bottom) in cells, as `detcam.ops.overlay` takes them.
        """
        heats = [heat for heat in (self.heats[i] for i in chosen) if heat is not None]
        if not heats:
            return torch.empty(0, 1, 1, device=self.objects.boxes.device), torch.empty(0, 4)
        boxes, network = self.objects.network_boxes.cpu().numpy()[chosen], self.geometry.network
        maps, windows = at_boxes(heats, boxes, self.geometry.window(network), network)
        scales = maps.new_tensor([heat.scale for heat in heats]).view(-1, 1, 1)
        return (maps / scales).clamp_(max=1), windows

    @cached_property
    def heatmaps(self) -> Tensor:
        """[N, H, W] float32 in [0, 1] at source resolution on the model's device; zero for objects without one."""
        height, width = self.geometry.source
        whole = torch.zeros(len(self), height, width, device=self.objects.boxes.device)
        if self.warm:
            full = resized(*self.cells(self.warm), (height, width))
            rows, columns = self.geometry.seen((height, width))
            whole[self.warm, rows, columns] = full[:, rows, columns]
        return whole

    def overlay(self, style: Style | None = None) -> np.ndarray:
        """The frame with heatmaps, boxes and labels: [H, W, 3] uint8 RGB; twice as wide if side by side."""
        style = style or Style()
        chosen = style.chosen(self.objects, self.tracks)
        warm = [i for i in chosen if i in set(self.warm)]
        if warm and style.view != "none":
            places = self.objects.boxes[warm].float()  # [K, 4] region of each heatmap
            if style.view == "fused":  # the part of the image that the network saw
                rows, columns = self.geometry.seen(self.geometry.source)
                places = places.new_tensor([columns.start, rows.start, columns.stop, rows.stop]).expand(len(warm), 4)
            picture = heated(self.image, *self.cells(warm), places, style.alpha, style.colormap)
        else:
            picture = self.image.copy()
        boxes, scores = self.objects.boxes.tolist(), self.objects.scores.tolist()
        for i in chosen:
            title = f"{self.objects.labels[i]} {self.tracks[i]} {scores[i]:.2f}"
            render.draw_box_on(picture, boxes[i], title, TRACK_COLOURS[self.tracks[i] % len(TRACK_COLOURS)])
        return np.concatenate([self.image, picture], axis=1) if style.side_by_side else picture

    def rows(self) -> list[dict[str, Any]]:
        """A row for each object, as plain numbers and strings; see docs/video.md."""
        objects = self.objects
        boxes, scores, classes = objects.boxes.tolist(), objects.scores.tolist(), objects.class_ids.tolist()
        return [
            {
                "frame": self.index,
                "time": round(self.time, 6),
                "track": self.tracks[i],
                "label": objects.labels[i],
                "class_id": classes[i],
                "score": round(scores[i], 6),
                "box": [round(side, 3) for side in boxes[i]],
                **_heat_row(self.heats[i]),
            }
            for i in range(len(self))
        ]


def _heat_row(heat: Heat | None) -> dict[str, Any]:
    if heat is None:
        return {"peak": None, "energy": None, "explained": None, "note": "not explained yet"}
    energy = None if heat.energy != heat.energy else round(heat.energy, 6)
    return {"peak": heat.peak, "energy": energy, "explained": round(heat.time, 6), "note": heat.note}
