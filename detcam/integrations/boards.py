"""Experiment boards: TensorBoard and Weights & Biases. Neither library is imported."""

from typing import Any

from detcam.explanation import Explanation


def tensorboard(explanation: Explanation, writer: Any, tag: str, step: int | None) -> None:
    """See `Explanation.to_tensorboard`."""
    writer.add_image(tag, explanation.contact_sheet(), step, dataformats="HWC")


def wandb(explanation: Explanation) -> dict[str, Any]:
    """See `Explanation.to_wandb`."""
    height, width = explanation.geometry.source
    data = []
    for i, box in enumerate(explanation.boxes.tolist()):
        x1, y1, x2, y2 = (min(max(side / of, 0.0), 1.0) for side, of in zip(box, (width, height) * 2, strict=True))
        data.append(
            {
                "position": {"minX": x1, "minY": y1, "maxX": x2, "maxY": y2},
                "class_id": int(explanation.class_ids[i]),
                "box_caption": explanation.titles[i],
                "scores": {"score": float(explanation.scores[i])},
            }
        )
    names = dict(zip(explanation.class_ids.tolist(), explanation.labels, strict=True))
    return {
        "picture": explanation.image,
        "boxes": {"predictions": {"box_data": data, "class_labels": names}},
        "overlays": [explanation.overlay(i) for i in range(len(explanation))],
        "captions": explanation.titles,
    }
