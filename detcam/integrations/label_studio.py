"""Label Studio: a task with pre-annotations, as rectangles and as brush regions."""

from typing import Any

import numpy as np

from detcam.explanation import Explanation
from detcam.integrations.coco import above_threshold

LENGTHS = (3, 4, 8, 16)  # bits for the length of a run


def task(
    explanation: Explanation, image: str, threshold: float, rectangles: str, brush: str | None, to_name: str
) -> dict[str, Any]:
    """See `Explanation.to_label_studio`."""
    height, width = explanation.geometry.source
    regions = above_threshold(explanation, threshold).cpu().numpy()

    def region(i: int, name: str, control: str, kind: str, value: dict[str, Any]) -> dict[str, Any]:
        return {
            "to_name": to_name,
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "score": float(explanation.scores[i]),
            "id": f"{name}-{i}",
            "from_name": control,
            "type": kind,
            "value": {**value, kind: [explanation.labels[i]]},
        }

    result = []
    for i, box in enumerate(explanation.boxes.tolist()):
        x1, y1, x2, y2 = (100 * min(max(x / of, 0.0), 1.0) for x, of in zip(box, (width, height) * 2, strict=True))
        place = {"x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1, "rotation": 0}  # in percent
        result.append(region(i, "object", rectangles, "rectanglelabels", place))
        if brush is not None and regions[i].any():
            runs = {"format": "rle", "rle": brush_runs(regions[i])}
            result.append(region(i, "heat", brush, "brushlabels", runs))
    prediction: dict[str, Any] = {"model_version": explanation.settings.get("model", "detcam"), "result": result}
    if len(explanation):
        prediction["score"] = float(explanation.scores.mean())
    return {"data": {to_name: image}, "predictions": [prediction]}


def brush_runs(mask: np.ndarray) -> list[int]:
    """Encode a mask [H, W] bool as Label Studio stores brush regions: the bytes of an RLE of RGBA pixels, row by row.

    The format is that of the npm package @thi.ng/rle-pack. Header: number of values (32 bits), bits of a value minus 1
    (5 bits), bits of each of the four kinds of lengths minus 1 (4 bits each). Each run: a bit 1, kind of length
    (2 bits), length minus 1, value. The end is padded with zeros to a whole byte.
    """
    values = np.repeat(mask.ravel(), 4)  # red, green, blue and opacity
    edges = np.flatnonzero(np.diff(values)) + 1
    starts = np.concatenate([[0], edges])
    lengths = np.diff(np.concatenate([starts, [len(values)]]))
    bits = [f"{len(values):032b}", f"{7:05b}", *(f"{size - 1:04b}" for size in LENGTHS)]
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        value = "1" * 8 if values[start] else "0" * 8
        while length:
            kind = next((k for k, size in enumerate(LENGTHS) if length <= 2**size), len(LENGTHS) - 1)
            part = min(length, 2 ** LENGTHS[kind])
            bits.append(f"1{kind:02b}{part - 1:0{LENGTHS[kind]}b}{value}")
            length -= part
    packed = np.packbits(np.frombuffer("".join(bits).encode(), np.uint8) == ord("1"))
    return [int(byte) for byte in packed]
