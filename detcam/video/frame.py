"""Frame: one image of a video with its objects, tracks and heatmaps."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detcam.geometry import Geometry
from detcam.render.canvas import resized
from detcam.render.overlay import heated
from detcam.types import Objects
from detcam.video.paint import Style, labelled
from detcam.video.tracks import Heat, at_boxes


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
            places = self._places(warm, style.view)
            picture = heated(self.image, *self.cells(warm), places, style.alpha, style.colormap)
        else:
            picture = self.image.copy()
        labelled(picture, self.objects, self.tracks, chosen)
        return np.concatenate([self.image, picture], axis=1) if style.side_by_side else picture

    def _places(self, warm: list[int], view: str) -> Tensor:
        """[K, 4] region of each heatmap: its box, or for "fused" the part of the image that the network saw."""
        boxes = self.objects.boxes[warm].float()
        if view != "fused":
            return boxes
        rows, columns = self.geometry.seen(self.geometry.source)
        return boxes.new_tensor([columns.start, rows.start, columns.stop, rows.stop]).expand(len(warm), 4)

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
