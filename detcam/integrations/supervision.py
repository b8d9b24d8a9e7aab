"""supervision: Detections with heatmaps, and an annotator that draws the heatmaps."""

from typing import Any

import numpy as np
from PIL import Image

from detcam import render
from detcam.errors import InputError, needing
from detcam.explanation import Explanation

HEATMAPS = "heatmaps"  # the key in Detections.data


def detections(explanation: Explanation) -> Any:
    """See `Explanation.to_supervision`."""
    with needing("to_supervision needs supervision: pip install supervision"):
        import supervision as sv
    masks = explanation.masks
    return sv.Detections(
        xyxy=explanation.boxes.cpu().numpy(),
        mask=None if masks is None else masks.cpu().numpy(),
        confidence=explanation.scores.cpu().numpy(),
        class_id=explanation.class_ids.cpu().numpy(),
        data={"class_name": np.array(explanation.labels, dtype=str), HEATMAPS: explanation.heatmaps.cpu().numpy()},
    )


class HeatAnnotator:
    """Annotator in the style of supervision that draws heatmaps; the hottest object at each pixel is in front.

    ::

        scene = HeatAnnotator().annotate(scene, detections)
        scene = sv.BoxAnnotator().annotate(scene, detections)

    Args:
        opacity: opacity of the hottest pixel, in [0, 1].
        colormap: a key of `detcam.render.COLORMAPS`.
    """

    def __init__(self, opacity: float = 0.75, colormap: str = "inferno") -> None:
        self.opacity, self.colormap = opacity, colormap

    def annotate(self, scene: Any, detections: Any) -> Any:
        """Draw on the scene in place, and return it.

        Args:
            scene: the image of the detections: an array [H, W, 3] uint8 BGR, as for supervision, or a PIL image.
            detections: from `Explanation.to_supervision`; may be filtered or tracked.

        Raises:
            InputError: if the detections have no heatmaps, or heatmaps of another image size.
        """
        if not len(detections):
            return scene
        heat = detections.data.get(HEATMAPS)
        if heat is None:
            raise InputError(f"detections: data has no {HEATMAPS!r}: give the detections of Explanation.to_supervision")
        heat = np.asarray(heat).max(axis=0)
        if isinstance(scene, Image.Image):
            scene.paste(Image.fromarray(self._drawn(np.asarray(scene.convert("RGB")), heat)))
        else:
            scene[:] = self._drawn(scene[:, :, ::-1], heat)[:, :, ::-1]
        return scene

    def _drawn(self, picture: np.ndarray, heat: np.ndarray) -> np.ndarray:
        if picture.shape[:2] != heat.shape:
            raise InputError(
                f"scene: expected an image of {heat.shape[1]} x {heat.shape[0]} pixels, the size of the heatmaps, got "
                f"{picture.shape[1]} x {picture.shape[0]}"
            )
        return render.blend(picture, heat, self.opacity, self.colormap)
