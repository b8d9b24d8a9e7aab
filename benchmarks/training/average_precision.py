"""COCO's average precision of a torchvision detector with masks, on held-out scenes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from pycocotools.mask import encode

from detcam.scenes import CLASSES, draw_scene

THRESHOLD = 0.5  # of a mask
HEIGHT, WIDTH = 480, 640  # of a scene


@torch.inference_mode()
def average_precision(model: Any, seeds: Sequence[int]) -> dict[str, float]:
    """Box and mask mAP of a model in eval mode, whose class 0 is the background, on the scenes of some seeds."""
    truth, found = [], []
    for seed in seeds:
        scene = draw_scene(seed)
        result = model([torch.from_numpy(scene.image).permute(2, 0, 1) / 255])[0]
        masks = result["masks"][:, 0].numpy() >= THRESHOLD
        truth += _rows(seed, scene.boxes, scene.class_ids, scene.masks)
        rows = _rows(seed, result["boxes"].numpy(), result["labels"].numpy() - 1, masks)
        found += [{**row, "score": score} for row, score in zip(rows, result["scores"].tolist(), strict=True)]
    labelled = COCO()
    labelled.dataset = {
        "images": [{"id": seed, "height": HEIGHT, "width": WIDTH} for seed in seeds],
        "categories": [{"id": i, "name": name} for i, name in enumerate(CLASSES)],
        "annotations": [{"id": i, "iscrowd": 0, **row} for i, row in enumerate(truth, 1)],
    }
    labelled.createIndex()
    judged = labelled.loadRes(found)
    figures = {}
    for name, kind in (("box", "bbox"), ("mask", "segm")):
        evaluation = COCOeval(labelled, judged, kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        figures |= {f"{name}_map50": float(evaluation.stats[1]), f"{name}_map50_95": float(evaluation.stats[0])}
    return {name: round(value, 4) for name, value in figures.items()}


def _rows(
    seed: int, boxes: NDArray[np.float32], class_ids: NDArray[np.int64], masks: NDArray[np.bool_]
) -> list[dict[str, Any]]:
    """COCO's rows of the objects of a scene."""
    rows = []
    for (x1, y1, x2, y2), class_id, mask in zip(boxes.tolist(), class_ids.tolist(), masks, strict=True):
        row = {"image_id": seed, "category_id": class_id, "bbox": [x1, y1, x2 - x1, y2 - y1]}
        rows.append({**row, "area": int(mask.sum()), "segmentation": encode(np.asfortranarray(mask.astype(np.uint8)))})
    return rows
