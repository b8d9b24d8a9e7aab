"""Ask why a model missed objects, or called them something else.

python examples/why_missed.py                                                    a drawn scene, the demo model
python examples/why_missed.py street.jpg yolov8n.pt 10 20 80 160 person          your photo, weights, box and class
"""

import sys
from pathlib import Path

import detcam
from detcam.scenes import CLASSES, HELD_OUT_SEED, draw_scene


def main(out: Path, image: object, model: str, ask: list, conf: float) -> None:
    explainer = detcam.Explainer(model, conf=conf)
    print(f"returned: {', '.join(explainer(image).labels) or 'nothing'}")
    explanation = explainer(image, ask=ask)
    for answer in explanation.asked:
        for i in answer.objects:  # as the asked class and, if another class won, as that one
            print(f"{i}: {explanation.notes[i]}")
    print(f"pictures in {explanation.save(out)}")


if __name__ == "__main__":
    given = sys.argv[1:]
    if given:
        picture, weights, *box, name = given
        main(Path("example-why-missed"), picture, weights, [([float(side) for side in box], name)], conf=0.25)
    else:
        # What is really in the scene, and a threshold that some of it does not pass.
        scene = draw_scene(HELD_OUT_SEED)
        pairs = [(box, CLASSES[kind]) for box, kind in zip(scene.boxes.tolist(), scene.class_ids, strict=True)]
        wrong = (scene.boxes[0].tolist(), CLASSES[(scene.class_ids[0] + 1) % len(CLASSES)])
        main(Path("example-why-missed"), scene.image, "scenes", [*pairs, wrong], conf=0.65)
