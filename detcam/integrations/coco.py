"""COCO's results format, with the heatmap as segmentation."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from detcam.errors import InputError, needing
from detcam.explanation import Explanation


def results(
    explanation: Explanation, image_id: int, threshold: float, categories: Mapping[int, int] | None
) -> list[dict[str, Any]]:
    """See `Explanation.to_coco`."""
    with needing('to_coco needs pycocotools: pip install "detcam[evaluate]"'):
        from pycocotools import mask as coco
    regions = above_threshold(explanation, threshold).cpu().numpy()
    rows = []
    for i, class_id in enumerate(explanation.class_ids.tolist()):
        if categories is not None and class_id not in categories:
            raise InputError(f"categories: class {class_id} ({explanation.labels[i]}) is missing: add its category id")
        x1, y1, x2, y2 = explanation.boxes[i].tolist()
        runs = coco.encode(np.asfortranarray(regions[i].astype(np.uint8)))
        rows.append(
            {
                "image_id": image_id,
                "category_id": class_id if categories is None else categories[class_id],
                "bbox": [round(side, 3) for side in (x1, y1, x2 - x1, y2 - y1)],
                "score": round(float(explanation.scores[i]), 6),
                "segmentation": {"size": [int(side) for side in runs["size"]], "counts": runs["counts"].decode()},
            }
        )
    return rows


def above_threshold(explanation: Explanation, threshold: float) -> Tensor:
    """[N, H, W] bool: where heat is at least `threshold`, never on a blank map; an InputError outside (0, 1]."""
    if not 0 < threshold <= 1:
        raise InputError(f"threshold: expected a number above 0 and at most 1, got {threshold!r}")
    return explanation.heatmaps >= threshold
