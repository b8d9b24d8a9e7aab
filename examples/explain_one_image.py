"""Explain every object in one picture.

python examples/explain_one_image.py                                  a drawn scene, the demo model
python examples/explain_one_image.py street.jpg yolov8n.pt            your photo, your weights
"""

import sys
from pathlib import Path

import detcam
from detcam.scenes import HELD_OUT_SEED, draw_scene


def main(out: Path, image: object, model: str) -> None:
    explainer = detcam.Explainer(model)
    explanation = explainer(image)
    for i, label in enumerate(explanation.labels):
        heat = explanation.heatmaps[i]
        x1, y1, x2, y2 = explanation.boxes[i].round().int().tolist()
        inside = heat[y1:y2, x1:x2].sum() / heat.sum().clamp(min=1e-12)
        print(f"{label} {explanation.scores[i]:.2f}: {inside:.0%} of its heat lies inside its box")
    print(f"pictures in {explanation.save(out)}")


if __name__ == "__main__":
    given = sys.argv[1:]
    picture = given[0] if given else draw_scene(HELD_OUT_SEED).image
    main(Path("example-one-image"), picture, given[1] if len(given) > 1 else "scenes")
