"""FiftyOne: labels for the fields of a sample."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from detcam.errors import needing
from detcam.explanation import Explanation


def labels(explanation: Explanation, objects: Sequence[int] | None, size: tuple[int, int] | None) -> dict[str, Any]:
    """See `Explanation.to_fiftyone`."""
    with needing("to_fiftyone needs FiftyOne: pip install fiftyone"):
        import fiftyone as fo
    heat = explanation.render(size=size).cpu().numpy()  # [N, H, W] uint8
    fields = {i: f"heatmap_{i:03d}" for i in (range(len(explanation)) if objects is None else objects)}
    detections = [_detection(explanation, i, fields.get(i), fo) for i in range(len(explanation))]
    hottest = heat.max(axis=0) if len(heat) else np.zeros(heat.shape[1:], np.uint8)
    return {
        "detections": fo.Detections(detections=detections),
        "heatmap": fo.Heatmap(map=hottest, range=[0, 255]),
        **{name: fo.Heatmap(map=heat[i], range=[0, 255], label=explanation.labels[i]) for i, name in fields.items()},
    }


def _detection(explanation: Explanation, i: int, heatmap: str | None, fo: Any) -> Any:
    height, width = explanation.geometry.source
    x1, y1, x2, y2 = explanation.boxes[i].tolist()
    mask = None
    if explanation.masks is not None:
        # Explanation.masks is cropped to the box by pixel index: these are its first to its last pixel.
        columns, rows = (slice(max(math.ceil(a), 0), max(math.ceil(b), 0)) for a, b in ((x1, x2), (y1, y2)))
        inside = explanation.masks[i, rows, columns].cpu().numpy()  # FiftyOne stretches a mask over the box
        mask = inside if inside.size else None
    return fo.Detection(
        label=explanation.labels[i],
        bounding_box=[x1 / width, y1 / height, (x2 - x1) / width, (y2 - y1) / height],
        confidence=float(explanation.scores[i]),
        mask=mask,
        heatmap=heatmap,
        note=explanation.notes[i],
    )
