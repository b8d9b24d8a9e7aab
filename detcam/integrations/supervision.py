"""supervision: Detections that carry their heatmaps, and an annotator that draws them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from detcam import render
from detcam.errors import DependencyError, InputError

if TYPE_CHECKING:
    from detcam.explanation import Explanation

HEATMAPS = "heatmaps"  # the key in Detections.data


def detections(explanation: Explanation) -> Any:
    """See `Explanation.to_supervision`."""
    try:
        import supervision as sv
    except ImportError:
        raise DependencyError("to_supervision needs supervision: pip install supervision") from None
    masks = explanation.masks
    return sv.Detections(
        xyxy=explanation.boxes.cpu().numpy(),
        mask=None if masks is None else masks.cpu().numpy(),
        confidence=explanation.scores.cpu().numpy(),
        class_id=explanation.class_ids.cpu().numpy(),
        data={
            "class_name": np.array(explanation.labels, dtype=str),
            HEATMAPS: explanation.heatmaps.cpu().numpy(),
        },
    )


class HeatAnnotator:
    """Draws the heat of each object, the hottest in front, as supervision's annotators draw: `annotate(scene, ...)`.

    ::

        scene = HeatAnnotator().annotate(scene, detections)
        scene = sv.BoxAnnotator().annotate(scene, detections)

    Args:
        opacity: that of the hottest pixel, in [0, 1].
        colormap: a name of `detcam.render.COLORMAPS`.
    """

    def __init__(self, opacity: float = 0.75, colormap: str = "inferno") -> None:
        self.opacity = opacity
        self.colormap = colormap

    def annotate(self, scene: Any, detections: Any) -> Any:
        """The scene itself, drawn on.

        Args:
            scene: the picture of the detections: an array [H, W, 3] uint8 BGR, as supervision's are, or a PIL image.
            detections: from `Explanation.to_supervision`, also filtered or tracked.

        Raises:
            InputError: if the detections carry no heatmaps, or those of another picture.
        """
        if not len(detections):
            return scene
        heat = detections.data.get(HEATMAPS)
        if heat is None:
            raise InputError(f"detections: data has no {HEATMAPS!r}: give what Explanation.to_supervision returned")
        heat = np.asarray(heat).max(axis=0)
        if isinstance(scene, Image.Image):
            scene.paste(Image.fromarray(self._drawn(np.asarray(scene.convert("RGB")), heat)))
        else:
            scene[:] = self._drawn(scene[:, :, ::-1], heat)[:, :, ::-1]
        return scene

    def _drawn(self, picture: np.ndarray, heat: np.ndarray) -> np.ndarray:
        if picture.shape[:2] != heat.shape:
            raise InputError(
                f"scene: expected a picture of {heat.shape[1]} x {heat.shape[0]} pixels, as the heatmaps are, got "
                f"{picture.shape[1]} x {picture.shape[0]}"
            )
        return render.blend(picture, heat, self.opacity, self.colormap)
