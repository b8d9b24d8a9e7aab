"""Painting: heatmaps, boxes and labels on video frames."""

from dataclasses import dataclass

import numpy as np

from detcam import render
from detcam.errors import InputError, nearest
from detcam.types import Objects

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


def labelled(picture: np.ndarray, objects: Objects, tracks: list[int], chosen: list[int]) -> None:
    """Draw the boxes and labels of the chosen objects on an image [H, W, 3] uint8 RGB, in place."""
    boxes, scores = objects.boxes.tolist(), objects.scores.tolist()
    for i in chosen:
        title = f"{objects.labels[i]} {tracks[i]} {scores[i]:.2f}"
        render.draw_box_on(picture, boxes[i], title, TRACK_COLOURS[tracks[i] % len(TRACK_COLOURS)])
